// Where compiled code lies in the source, by the debug information that the compiler left.

#pragma once

#include <string>

namespace simt {

struct Place {
    std::string file;
    int line = 0;
};

// Of a return address: the first frame, of those inlined there, that is neither the emulator's own
// nor a wrapper of an access, csrc/cuda/vector.h.
const Place& locate(const void* code);

}  // namespace simt
