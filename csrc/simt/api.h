// What kernels call of the emulator, and their host code: declarations alone, so that nothing of
// the emulator is compiled with a kernel, and watched with it.

#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime.h"
#include "types.h"

namespace simt {

constexpr unsigned kWarp = 32;

// A line of a kernel's source: as the default of a parameter, that of the call.
struct Site {
    const char* file;
    int line;
    Site(const char* file = __builtin_FILE(), int line = __builtin_LINE())
        : file(file), line(line) {}
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

// Called by the lanes of a warp in mask: the last one to come runs compute(arguments, mask) for
// all.
void collective(const char* name, unsigned mask, void* arguments,
                void (*compute)(void** arguments, unsigned mask), Site site);
void report_absent_lane(unsigned lane, Site site);

// Let others run while this thread looks again and again for a change.
void spin(const char* what, Site site);

// Flags between threads of any grids: what a thread knew when it stored a number is known to those
// who have loaded it. A load looks once, after others have had their turn.
void store_release(uint32_t* flag, uint32_t value, Site site);
uint32_t load_acquire(const uint32_t* flag, Site site);

// The block's array of this name; `key` is the same for all threads that ask.
void* shared_array(const void* key, const char* name, size_t bytes, size_t alignment, Site site);
void* dynamic_shared();

// cp.async: this thread's copy into shared memory, of which the last bytes - source_bytes are
// zeros. It lands when the thread waits for all its groups but the latest `keep`.
void copy_async(void* to, const void* from, size_t bytes, size_t source_bytes, Site site);
void commit_copies();
void wait_for_copies(unsigned keep);

// mbarrier: a phase ends when `count` threads have arrived and all expected bytes have landed.
void mbarrier_init(void* barrier, unsigned count, Site site);
// Those that this thread has made are from now on known to copies.
void mbarrier_fence();
void mbarrier_arrive(void* barrier, unsigned expected_bytes, Site site);
void mbarrier_wait(const void* barrier, unsigned parity, Site site);

// The tensor memory accelerator. A map says how a tensor of up to five dimensions, the innermost
// first, lies in global memory, and which box of it one copy moves.
struct alignas(64) TensorMap {
    void* base;
    unsigned rank, element_bytes;
    unsigned size[5], box[5];
    uint64_t stride[5];  // in bytes; stride[0] is element_bytes
    unsigned swizzle;    // 0, 32, 64 or 128 bytes
};
void tensor_load(void* to, const TensorMap& map, const int* at, void* barrier, unsigned cta_mask,
                 Site site);
void tensor_store(const TensorMap& map, const int* at, const void* from, Site site);
void bulk_load(void* to, const void* from, unsigned bytes, void* barrier, Site site);
void bulk_store(void* to, const void* from, unsigned bytes, Site site);
void commit_stores();
void wait_for_stores(unsigned keep);
// What threads have written becomes visible to copies that read shared memory.
void proxy_fence();

// Clusters.
unsigned cluster_rank();
void* in_block(void* address, unsigned rank);
void cluster_arrive(Site site);
void cluster_wait(Site site);
void sync_grid(Site site);

// Tensor cores, through registers. Fragments as PTX has them.
enum class Kind { f16, bf16, tf32, e4m3 };
void mma_16x8(Kind kind, float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site);
void load_matrices(uint32_t* registers, unsigned count, bool transposed, const void* row,
                   Site site);
void store_matrices(const uint32_t* registers, unsigned count, bool transposed, void* row,
                    Site site);

// Products of a warpgroup, 64 x `columns` x 16, or 32 of 8 bits, which are done when the thread waits for them. A
// and B lie in shared memory, as 64 bits describe it; or A in registers, as in mma_16x8. Those
// of 8 bits follow each other along k, in shared memory.
struct Wgmma {
    Kind kind;
    unsigned columns;
    bool a_transposed, b_transposed;  // rows (of A) or columns (of B) follow each other in memory
    bool accumulate;
};
void wgmma(const Wgmma& how, float* d, const uint32_t* a_registers, uint64_t a, uint64_t b,
           Site site);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned keep);
// An address in shared memory as instructions take it: how far into it.
uint32_t shared_address(const void* pointer);

// A function's name without its namespace and parameters, as "sum_rows<float>"; lives for ever.
const char* name_of(const void* function);

extern bool checking;
extern bool counting;
void check_atomic(const void* address, size_t bytes, Site site);

// A launch. entry(arguments) runs the kernel; drop(arguments) when no thread will any more.
struct Launch {
    dim3 grid, block;
    size_t dynamic_bytes = 0;
    const char* name = "?";  // of the kernel
    dim3 cluster = 1;
    bool cooperative = false;
    const void* stream = nullptr;
    void (*entry)(const void* arguments) = nullptr;
    void (*drop)(const void* arguments) = nullptr;
    const void* arguments = nullptr;
};

// Inside of a Together the grid runs later, with the others.
cudaError_t run(const Launch& launch);

// The grids launched while one of these lives run at once, when it ends, or when the outermost does.
// Those of one stream run one after another, unless it is the null stream.
class Together {
public:
    Together();
    ~Together();
};

}  // namespace simt
