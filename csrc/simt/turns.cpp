#include "turns.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>

#include "machine.h"

namespace simt {
namespace {

auto& guard = *new std::mutex;
auto& turns = *new std::string;

// A program's turns go, in their order, to the file that SIMT_TURNS names.
void write_turns() {
    if (FILE* file = std::fopen(std::getenv("SIMT_TURNS"), "w")) {
        std::fprintf(file, "[%s]\n", turns.c_str());
        std::fclose(file);
    }
}

}  // namespace

bool watching_turns = std::getenv("SIMT_TURNS") && !std::atexit(write_turns);

void record_turn(const Thread& thread) {
    const std::lock_guard lock(guard);
    const uint3 at = thread.block->index;
    if (!turns.empty()) turns += ",\n ";
    turns += "{\"block\": [" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " +
             std::to_string(at.z) + "], \"thread\": " + std::to_string(thread.rank) +
             ", \"then\": \"" + (thread.state == Thread::done ? "the end" : thread.waits_for) +
             "\", \"line\": " + std::to_string(thread.site.line) + "}";
}

}  // namespace simt
