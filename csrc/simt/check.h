// The check build's eyes: every access to memory, compared with all that came before it.
//
// The compiler reports accesses: a kernel compiled with -fsanitize=thread calls a function before
// each, and hooks.cpp is what it calls, not the compiler's own library. A file compiled without it
// is not watched, and as fast as it can be.
//
// Two accesses of one place race if one of them writes and nothing orders them (clocks.h). Source:
// FastTrack, Flanagan and Freund 2009.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "api.h"
#include "clocks.h"

namespace simt {

struct Block;

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

// Memory of the device: accesses anywhere else are out of bounds. `written`: whether it holds
// values.
void register_memory(const void* begin, size_t bytes, const std::string& name, bool written);
void forget_memory(const void* begin);
void mark_written(const void* begin, size_t bytes);

// A launch begins: what came before it is ordered before it.
void check_launch();
void check_access(const void* address, size_t bytes, bool write, const void* code);
void check_access(const void* address, size_t bytes, bool write, Site site);
// An access that a copy of this thread will make, some time from now on.
void check_copy(const void* address, size_t bytes, bool write, Site site);
// The same of a copy that all lanes of a warp begin at once, each its own bytes.
void check_lane_copy(const void* address, size_t bytes, bool write, Site site);
// A flag that is stored with all that the thread knows, and loaded so.
void check_release(const uint32_t* flag, Site site);
void check_acquire(const uint32_t* flag, Site site);
// What a thread does to a barrier in memory: ordered by the barrier's making alone.
void check_mbarrier(const void* address, Site site);
// A thread ends, and with the last one its block's shared memory.
void check_end(Thread& thread);
// All threads of a block have ended: a warpgroup's four warps have begun the same products.
void check_warpgroups(const Block& block);
// The thread's own variables: those that products of its warpgroup use are not its to touch.
void check_registers(Thread& thread, const void* address, size_t bytes, bool write,
                     const void* code);
void check_volatile(const void* address, size_t bytes, bool write, const void* code);

}  // namespace simt
