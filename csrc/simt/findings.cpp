#include "findings.h"

#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "machine.h"

namespace simt {

// Never destroyed: a program looks at what was found when its other variables are gone.
static auto& guard = *new std::mutex;
static auto& found = *new std::vector<Finding>;

void report(const char* kind, Site site, const std::string& message, Site other) {
    const std::lock_guard lock(guard);
    for (Finding& old : found)
        if (old.kind == kind && old.file == site.file && old.line == site.line &&
            old.other_file == other.file && old.other_line == other.line) {
            ++old.count;
            return;
        }
    const Thread* thread = self();
    found.push_back({kind, site.file, site.line, message, other.file, other.line,
                     thread ? text(thread->block->index) : "", thread ? text(thread->index) : "",
                     1});
}

const std::vector<Finding>& findings() {
    return found;
}
void clear_findings() {
    found.clear();
}

static void print_findings() {
    for (const Finding& f : found) {
        std::fprintf(stderr, "%s:%d: error: %s: ", f.file.c_str(), f.line, f.kind.c_str());
        if (!f.thread.empty())
            std::fprintf(stderr, "thread %s of block %s ", f.thread.c_str(), f.block.c_str());
        std::fprintf(stderr, "%s", f.message.c_str());
        if (f.count > 1) std::fprintf(stderr, " (%u times)", f.count);
        std::fputc('\n', stderr);
    }
}

static std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c == '\n' ? ' ' : c;
    }
    return out + '"';
}

std::string findings_as_json() {
    std::string out = "[";
    for (const Finding& f : found) {
        if (out.size() > 1) out += ",\n ";
        out += "{\"kind\": " + quoted(f.kind) + ", \"file\": " + quoted(f.file) +
               ", \"line\": " + std::to_string(f.line) + ", \"message\": " + quoted(f.message) +
               ", \"other_file\": " + quoted(f.other_file) +
               ", \"other_line\": " + std::to_string(f.other_line) +
               ", \"block\": " + quoted(f.block) + ", \"thread\": " + quoted(f.thread) +
               ", \"count\": " + std::to_string(f.count) + "}";
    }
    return out + "]\n";
}

static void tell() {
    std::fflush(stdout);
    const char* path = std::getenv("SIMT_JSON");
    FILE* file = path ? std::fopen(path, "w") : nullptr;
    if (file) {
        std::fputs(findings_as_json().c_str(), file);
        std::fclose(file);
    } else {
        print_findings();
    }
    if (!found.empty()) std::_Exit(1);
}

// A kernel that reads or writes where the processor has no memory ends the program: not before it
// has told what was found, the last access among it.
static void end_of_program(int signal) {
    if (const Thread* thread = self())
        std::fprintf(stderr, "%s ends the program with signal %d\n", describe(*thread).c_str(),
                     signal);
    tell();
    std::_Exit(128 + signal);
}

void tell_at_end() {
    std::atexit(tell);
    static char stack[1 << 16];
    const stack_t alternative{stack, 0, sizeof stack};
    sigaltstack(&alternative, nullptr);
    struct sigaction action{};
    action.sa_handler = end_of_program;
    action.sa_flags = SA_ONSTACK | SA_RESETHAND;
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(signal, &action, nullptr);
}

}  // namespace simt
