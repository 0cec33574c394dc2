// What kernels call of the emulator, and their host code: declarations alone, so that nothing of the
// emulator is compiled with a kernel, and watched with it.

#pragma once

#include <cstddef>

#include "types.h"

namespace simt {

constexpr unsigned kWarp = 32;

// A line of a kernel's source: as the default of a parameter, that of the call.
struct Site {
    const char* file;
    int line;
    Site(const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
};

uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();
unsigned lane();

// Wait at, or only arrive at, barrier `id` of the block; `expected` threads, 0 for all.
void barrier(unsigned id, unsigned expected, bool waits, Site site);
// Wait at barrier 0; returns how many threads came with true.
int count_at_barrier(bool predicate, Site site);
void sync_warp(unsigned mask, Site site);
void fence(bool device_wide);

// Called by the lanes of a warp in mask: the last one to come runs compute(arguments, mask) for all.
void collective(const char* name, unsigned mask, void* arguments,
                void (*compute)(void** arguments, unsigned mask), Site site);
void report_absent_lane(unsigned lane, Site site);

// Let others run while this thread looks again and again for a change.
void spin(const char* what, Site site);

// The block's array of this name; `key` is the same for all threads that ask.
void* shared_array(const void* key, const char* name, size_t bytes, size_t alignment, Site site);
void* dynamic_shared();

extern bool checking;
void check_atomic(const void* address, size_t bytes, Site site);

// A launch. entry(arguments) runs the kernel; drop(arguments) when no thread will any more.
struct Launch {
    dim3 grid, block;
    size_t dynamic_bytes = 0;
    void (*entry)(const void* arguments);
    const void* arguments;
    void (*drop)(const void* arguments);
    dim3 cluster{1, 1, 1};
    bool cooperative = false;
};

// Returns a cudaError_t. Inside of a Together the grid runs later, with the others.
int run(const Launch& launch);

// The grids launched while one of these lives run at once, when it ends.
class Together {
public:
    Together();
    ~Together();
};

}  // namespace simt
