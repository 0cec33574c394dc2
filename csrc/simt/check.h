// The check build's eyes: every access to memory, compared with all that came before it.
//
// The compiler reports accesses: a kernel compiled with -fsanitize=thread calls a function before
// each, and check.cpp is what it calls, not the compiler's own library. A file compiled without it
// is not watched, and as fast as it can be.
//
// Two accesses of one place race if one of them writes and nothing orders them. What orders is kept
// in vector clocks (Lamport 1978, Mattern 1988): a thread's own time moves on whenever it lets
// others know what it has done (at a barrier, for one), and it knows of each other thread the last
// time that came to its knowledge. An earlier access happened before a later one if the later one's
// thread knows of a time of the earlier one's that is not before it. Source: FastTrack, Flanagan
// and Freund 2009.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api.h"

namespace simt {

struct Thread;
struct Block;

using Time = uint32_t;

// What a thread knows: for some blocks, by number, the latest time of each of their threads.
class Known {
public:
    using Times = std::shared_ptr<const std::vector<Time>>;

    Time of(uint32_t block, unsigned rank) const {
        for (const auto& [number, times] : times_)
            if (number == block) return rank < times->size() ? (*times)[rank] : 0;
        return 0;
    }
    void join(const Known& other);
    void set(uint32_t block, Times times);
    void clear() { times_.clear(); }
    // What the copies of a block see is kept beside what its threads know, under this number.
    static uint32_t copies_of(uint32_t block) { return block | uint32_t{1} << 31; }
    const std::vector<std::pair<uint32_t, Times>>& all() const { return times_; }

private:
    std::vector<std::pair<uint32_t, Times>> times_;
};

// Who touched a place, when, and from where in the code.
struct Access {
    uint32_t block;
    uint16_t rank;
    uint8_t bytes;  // a bit for each of the four
    bool atomic;
    Time time;
    const void* code;  // in the kernel, or null where `site` is known
    Site site;
};

// Four bytes of memory: the last accesses, and which bytes have been written at all.
struct Granule {
    uint32_t stamp = 0;  // of the block or launch that this is about; older ones are forgotten
    uint8_t written = 0;
    std::vector<Access> writes, reads;
};

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

// What has been found since the program, or the last clear_findings(), began.
const std::vector<Finding>& findings();
void clear_findings();
void print_findings();
std::string findings_as_json();

void report(const char* kind, Site site, const std::string& message);

// Memory of the device: accesses anywhere else are out of bounds. `written`: whether it holds
// values.
void register_memory(const void* begin, size_t bytes, const std::string& name, bool written);
void forget_memory(const void* begin);
void mark_written(const void* begin, size_t bytes);

// Hooks of the machine. A release lets `to` know what the thread has done; an acquire takes note.
void check_launch();
void check_barrier(const std::vector<Thread*>& threads, const Known& arrived);
void release(Thread& thread, Known& to);
void acquire(Thread& thread, const Known& from);
void check_fence(Thread& thread, bool device_wide);
void check_proxy_fence(Thread& thread);
void check_access(const void* address, size_t bytes, bool write, const void* code);
void check_access(const void* address, size_t bytes, bool write, Site site);
// An access that a copy of this thread will make, some time from now on.
void check_copy(const void* address, size_t bytes, bool write, Site site);
// The same of a copy that all lanes of a warp begin at once, each its own bytes.
void check_lane_copy(const void* address, size_t bytes, bool write, Site site);
// Let `to` know that the copies of a thread up to this time are done.
void release_copies(const Thread& thread, Time time, Known& to);
void check_volatile(const void* address, size_t bytes, bool write, const void* code);

}  // namespace simt
