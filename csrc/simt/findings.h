// What the emulator has to say about a kernel: findings, each at a line of its source.

#pragma once

#include <string>
#include <vector>

#include "api.h"

namespace simt {

struct Finding {
    std::string kind;  // "race", "out of bounds", ...
    std::string file;
    int line;
    std::string message;
    std::string other_file;  // of the other party to a race, or empty
    int other_line;
    std::string block, thread;
    unsigned count;  // how often it happened, at this place
};

// A finding about the thread that runs, if one does. `other`: where the other party did its part.
void report(const char* kind, Site site, const std::string& message, Site other = {"", 0});

// What has been found since the program, or the last clear_findings(), began.
const std::vector<Finding>& findings();
void clear_findings();
std::string findings_as_json();

// Have the program, whichever way it ends, say what was found: in the file that SIMT_JSON names, or
// else on the standard error.
void tell_at_end();

}  // namespace simt
