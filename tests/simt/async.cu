// Small kernels about what a GPU does while its threads go on, each wrong in one way, and their correct
// twins: copies, barriers in memory, clusters, grids that wait for each other. As zoo.cu.

#include "../../csrc/cuda/wgmma.h"

#include <cstring>
#include <string>
#include <vector>

constexpr int kThreads = 64;
constexpr unsigned kBytes = kThreads * sizeof(float);

template <bool wrong>
__global__ void copy_without_wait(const float* in, float* out) {
    __shared__ float tile[kThreads];
    ptx::cp_async<4>(&tile[threadIdx.x], in + threadIdx.x);
    ptx::cp_async_commit();
    if (!wrong) ptx::cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x ^ 1];  // finds race
}

// A wait for what has not been committed waits for nothing.
template <bool wrong>
__global__ void copy_without_commit(const float* in, float* out) {
    __shared__ float tile[kThreads];
    ptx::cp_async<4>(&tile[threadIdx.x], in + threadIdx.x);
    if (!wrong) ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x ^ 1];  // finds race
}

template <bool wrong>
__global__ void wait_for_the_older_copy(const float* in, float* out) {
    __shared__ float tile[2][kThreads];
    for (int i = 0; i < 2; ++i) {
        ptx::cp_async<4>(&tile[i][threadIdx.x], in + threadIdx.x);
        ptx::cp_async_commit();
    }
    if (wrong)
        ptx::cp_async_wait<1>();
    else
        ptx::cp_async_wait<0>();
    out[threadIdx.x] = tile[0][threadIdx.x] + tile[1][threadIdx.x];  // finds race
}

// Of 16 bytes those that exist, and zeros: from a multiple of 16 on all the same.
template <bool wrong>
__global__ void copy_of_a_part(const float* in, float* out) {
    __shared__ __align__(16) float tile[kThreads][4];
    ptx::cp_async<16>(tile[threadIdx.x], in + (wrong ? 1 : 4), 6);  // finds misaligned
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    out[threadIdx.x] = tile[threadIdx.x][2];
}

// The thread that copies has waited; the others have not waited for it.
template <bool wrong>
__global__ void wait_of_another_thread(const float* in, float* out) {
    __shared__ float tile[kThreads];
    ptx::cp_async<4>(&tile[threadIdx.x], in + threadIdx.x);  // finds race
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    if (!wrong) __syncthreads();
    out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];  // finds race uninitialised
}

template <bool wrong>
__global__ void copy_over_what_is_read(const float* in, float* out) {
    __shared__ float tile[kThreads];
    float sum = 0;
    for (int step = 0; step < 2; ++step) {
        ptx::cp_async<4>(&tile[threadIdx.x], in + threadIdx.x);  // finds race
        ptx::cp_async_commit();
        ptx::cp_async_wait<0>();
        __syncthreads();
        sum += tile[threadIdx.x ^ 1];  // finds race
        if (!wrong) __syncthreads();
    }
    out[threadIdx.x] = sum;
}

// One thread has a copy made for all; they wait at a barrier in memory.
__device__ inline void begin(uint64_t* barrier, unsigned arrivals) {
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, arrivals);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
}

template <bool wrong>
__global__ void wrong_parity(const float* in, float* out) {
    __shared__ __align__(16) float tile[kThreads];
    __shared__ uint64_t barrier;
    begin(&barrier, 1);
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect(&barrier, kBytes);
        ptx::bulk_load(tile, in, kBytes, &barrier);  // finds race
    }
    ptx::mbarrier_wait(&barrier, wrong ? 1 : 0);
    out[threadIdx.x] = tile[threadIdx.x];  // finds race uninitialised
}

template <bool wrong>
__global__ void bytes_not_expected(const float* in, float* out) {
    __shared__ __align__(16) float tile[kThreads];
    __shared__ uint64_t barrier;
    begin(&barrier, 1);
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect(&barrier, wrong ? 0 : kBytes);
        ptx::bulk_load(tile, in, kBytes, &barrier);
    }
    ptx::mbarrier_wait(&barrier, 0);
    out[threadIdx.x] = tile[threadIdx.x];  // finds race
}

template <bool wrong>
__global__ void more_bytes_expected(const float* in, float* out) {
    __shared__ __align__(16) float tile[kThreads];
    __shared__ uint64_t barrier;
    begin(&barrier, 1);
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect(&barrier, wrong ? kBytes + 16 : kBytes);
        ptx::bulk_load(tile, in, kBytes, &barrier);
    }
    ptx::mbarrier_wait(&barrier, 0);  // finds deadlock
    out[threadIdx.x] = tile[threadIdx.x];
}

template <bool wrong>
__global__ void arrival_of_a_copy_and_again(const float* in, float* out) {
    __shared__ __align__(16) float tile[kThreads];
    __shared__ uint64_t barrier;
    begin(&barrier, 1);
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect(&barrier, kBytes);
        ptx::bulk_load(tile, in, kBytes, &barrier);
        if (wrong) ptx::mbarrier_arrive(&barrier);  // finds double arrival
    }
    ptx::mbarrier_wait(&barrier, 0);
    out[threadIdx.x] = tile[threadIdx.x];
}

// Thread 0 arrives for itself and, too early, for another one.
template <bool wrong>
__global__ void arrival_for_another(const float* in, float* out) {
    __shared__ float tile[kThreads];
    __shared__ uint64_t barrier;
    begin(&barrier, kThreads);
    tile[threadIdx.x] = in[threadIdx.x];  // finds race
    ptx::mbarrier_arrive(&barrier);
    if (wrong && threadIdx.x == 0) ptx::mbarrier_arrive(&barrier);
    ptx::mbarrier_wait(&barrier, 0);
    float sum = 0;
    for (int i = 0; i < kThreads; ++i) sum += tile[i];  // finds race uninitialised
    out[threadIdx.x] = sum;
}

template <bool wrong>
__global__ void barrier_in_the_making(const float* in, float* out) {
    __shared__ uint64_t barrier;
    if (threadIdx.x == 0) ptx::mbarrier_init(&barrier, kThreads);  // finds race wrong barrier
    if (!wrong) __syncthreads();
    ptx::mbarrier_arrive(&barrier);  // finds race wrong barrier
    ptx::mbarrier_wait(&barrier, 0);  // finds race wrong barrier deadlock
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool wrong>
__global__ void barrier_that_copies_do_not_know(const float* in, float* out) {
    __shared__ __align__(16) float tile[kThreads];
    __shared__ uint64_t barrier;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&barrier, 1);
        if (!wrong) ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect(&barrier, kBytes);
        ptx::bulk_load(tile, in, kBytes, &barrier);  // finds missing fence
    }
    __syncthreads();
    ptx::mbarrier_wait(&barrier, 0);
    out[threadIdx.x] = tile[threadIdx.x];
}

// Copies from shared memory do not see what threads have written there before a fence.
template <bool wrong>
__global__ void store_without_fence(const float* in, float* out) {
    __shared__ __align__(16) float tile[kThreads];
    tile[threadIdx.x] = in[threadIdx.x];
    if (!wrong) ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::bulk_store(out, tile, kBytes);  // finds missing fence
        ptx::bulk_commit();
        ptx::bulk_wait<0>();
    }
}

template <bool wrong>
__global__ void write_over_what_is_stored(const float* in, float* out) {
    __shared__ __align__(16) float tile[kThreads];
    tile[threadIdx.x] = in[threadIdx.x];
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::bulk_store(out, tile, kBytes);
        ptx::bulk_commit();
        if (!wrong) ptx::bulk_wait<0>();
    }
    __syncthreads();
    tile[threadIdx.x] = 0;  // finds race
}

// Half of the threads make, the other half use: they meet at a barrier with a number.
template <bool wrong>
__global__ void half_of_a_named_barrier(const float* in, float* out) {
    __shared__ float tile[32];
    if (threadIdx.x < 32) {
        tile[threadIdx.x] = in[threadIdx.x];  // finds race
        ptx::bar_arrive(1, 64);  // finds wrong barrier
    } else {
        ptx::bar_sync(1, wrong ? 32 : 64);  // finds wrong barrier
        out[threadIdx.x] = tile[threadIdx.x - 32];  // finds race uninitialised
    }
}

template <bool wrong>
__global__ void masks_that_differ(const float* in, float* out) {
    const unsigned mask = wrong && threadIdx.x % 32 >= 16 ? 0xFFFFFFF0 : 0xFFFFFFFF;
    out[threadIdx.x] = __shfl_xor_sync(mask, in[threadIdx.x], 1);  // finds wrong mask deadlock
}

// A warp's matrix operation that half of it does not come to.
template <bool wrong>
__global__ void half_of_a_warp_multiplies(const float* in, float* out) {
    float d[4] = {};
    const float c[4] = {};
    const uint32_t a[4] = {}, b[2] = {};
    if (!wrong || threadIdx.x % 32 < 16) ptx::mma_bf16(d, a, b, c);  // finds deadlock
    out[threadIdx.x] = in[threadIdx.x] + d[0];
}

// A product of a warpgroup, 64 x 8 x 16, of a and b without a swizzle.
struct Operands {
    uint64_t a[256], b[32];  // of 16-bit numbers
};
__device__ inline void fill(Operands& operands, bool fenced) {
    for (int i = threadIdx.x; i < 288; i += 128) reinterpret_cast<uint64_t*>(&operands)[i] = 0;
    if (fenced) ptx::fence_proxy_async();
    __syncthreads();
}
__device__ inline uint64_t describe(const void* tile) {
    return ptx::matrix_descriptor(tile, 128, 256, ptx::Swizzle::none);
}
#define MULTIPLY(d) ptx::wgmma<__half>(d, describe(operands.a), describe(operands.b), true)

template <bool wrong>
__global__ void product_without_wait(const float* in, float* out) {
    __shared__ Operands operands;
    fill(operands, true);
    float d[4] = {};
    ptx::wgmma_fence();
    MULTIPLY(d);
    ptx::wgmma_commit();
    if (!wrong) ptx::wgmma_wait<0>(d);
    out[threadIdx.x] = in[threadIdx.x % kThreads] + d[0];  // finds race
}

template <bool wrong>
__global__ void product_without_commit(const float* in, float* out) {
    __shared__ Operands operands;
    fill(operands, true);
    float d[4] = {};
    ptx::wgmma_fence();
    MULTIPLY(d);
    if (!wrong) ptx::wgmma_commit();
    ptx::wgmma_wait<0>(d);
    out[threadIdx.x] = in[threadIdx.x % kThreads] + d[0];  // finds race
}

template <bool wrong>
__global__ void product_without_fence(const float* in, float* out) {
    __shared__ Operands operands;
    fill(operands, true);
    float d[4] = {};
    if (!wrong) ptx::wgmma_fence();
    MULTIPLY(d);  // finds missing fence
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(d);
    out[threadIdx.x] = in[threadIdx.x % kThreads] + d[0];
}

// The fourth warp has nothing to do, and leaves: the GPU's other three would wait for it.
template <bool wrong>
__global__ void product_of_three_warps(const float* in, float* out) {
    __shared__ Operands operands;
    fill(operands, true);
    float d[4] = {};
    if (!wrong || threadIdx.x < 96) {
        ptx::wgmma_fence();
        MULTIPLY(d);  // finds absent warp
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>(d);
    }
    out[threadIdx.x] = in[threadIdx.x % kThreads] + d[0];
}

template <bool wrong>
__global__ void sums_scaled_without_fence(const float* in, float* out) {
    __shared__ Operands operands;
    fill(operands, true);
    float d[4] = {};
    ptx::wgmma_fence();
    for (int step = 0; step < 2; ++step) {
        MULTIPLY(d);  // finds missing fence
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>(d);
        for (float& sum : d) sum *= in[0];
        if (!wrong) ptx::wgmma_fence();
    }
    out[threadIdx.x] = d[0];
}

template <bool wrong>
__global__ void operand_that_products_do_not_see(const float* in, float* out) {
    __shared__ Operands operands;
    fill(operands, !wrong);
    float d[4] = {};
    ptx::wgmma_fence();
    MULTIPLY(d);  // finds missing fence
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>(d);
    out[threadIdx.x] = in[threadIdx.x % kThreads] + d[0];
}

template <bool wrong>
__global__ void operand_overwritten(const float* in, float* out) {
    __shared__ Operands operands;
    fill(operands, true);
    float d[4] = {};
    ptx::wgmma_fence();
    MULTIPLY(d);  // finds race missing fence
    ptx::wgmma_commit();
    if (!wrong) {
        ptx::wgmma_wait<0>(d);
        __syncthreads();
    }
    if (threadIdx.x < 32) operands.b[threadIdx.x] = 1;  // finds race
    if (wrong) ptx::wgmma_wait<0>(d);
    out[threadIdx.x] = in[threadIdx.x % kThreads] + d[0];
}

template <bool wrong>
__global__ void read_of_a_neighbour(const float* in, float* out) {
    __shared__ float mine;
    if (threadIdx.x == 0) mine = in[blockIdx.x];  // finds race
    if (!wrong) {
        ptx::cluster_arrive();
        ptx::cluster_wait();
    }
    const float theirs = *ptx::in_block(&mine, ptx::cluster_rank() ^ 1);  // finds race uninitialised
    out[blockIdx.x * 32 + threadIdx.x] = theirs;
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

template <bool wrong>
__global__ void read_of_an_ended_neighbour(const float* in, float* out) {
    __shared__ float mine;
    if (threadIdx.x == 0) mine = in[blockIdx.x];
    ptx::cluster_arrive();
    ptx::cluster_wait();
    const float theirs = *ptx::in_block(&mine, ptx::cluster_rank() ^ 1);  // finds out of bounds
    out[blockIdx.x * 32 + threadIdx.x] = theirs;
    if (!wrong) {
        ptx::cluster_arrive();
        ptx::cluster_wait();
    }
}

// Each block fills its neighbour's slot, and says so at a barrier in the neighbour's memory.
template <bool wrong>
__global__ void arrival_next_door(const float* in, float* out) {
    __shared__ float slot[32];
    __shared__ uint64_t barrier;
    begin(&barrier, 32);
    ptx::cluster_arrive();
    ptx::cluster_wait();
    const unsigned next = ptx::cluster_rank() ^ 1;
    ptx::in_block(slot, next)[threadIdx.x] = in[threadIdx.x];  // finds race
    ptx::mbarrier_arrive_at(&barrier, wrong ? ptx::cluster_rank() : next);
    ptx::mbarrier_wait(&barrier, 0);
    out[blockIdx.x * 32 + threadIdx.x] = slot[threadIdx.x ^ 1];  // finds race uninitialised
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

template <bool wrong>
__global__ void grid_that_does_not_wait(const float* in, float* out) {
    out[blockIdx.x * 32 + threadIdx.x] = in[threadIdx.x];  // finds race
    if (!wrong) ptx::sync_grid();
    const unsigned other = (blockIdx.x + 1) % gridDim.x;
    const float theirs = out[other * 32 + threadIdx.x];  // finds race uninitialised
    ptx::sync_grid();
    out[blockIdx.x * 32 + threadIdx.x] = theirs;
}

template <bool wrong>
__global__ void block_that_leaves_the_grid(const float* in, float* out) {
    if (wrong && blockIdx.x == 1) return;
    out[blockIdx.x * 32 + threadIdx.x] = in[threadIdx.x];
    ptx::sync_grid();  // finds deadlock
}

template <bool wrong>
__global__ void grid_of_blocks_in_turns(const float* in, float* out) {
    out[blockIdx.x * 32 + threadIdx.x] = in[threadIdx.x];
    ptx::sync_grid();  // finds wrong barrier
}

// Two ranks, a grid each: they tell each other by flags that their part is there.
template <bool wrong>
__global__ void sum_of_two_ranks(const float* in, float* parts, volatile unsigned* flags, int rank,
                                 float* out) {
    if (threadIdx.x == 0) {
        parts[rank] = in[rank];  // finds race
        if (!wrong) __threadfence_system();
        flags[rank] = 1;
        while (!flags[1 - rank]) {}
        __threadfence_system();
        out[rank] = parts[0] + parts[1];  // finds race
    }
}

template <bool wrong>
void run(const std::string& name, const float* in, float* out, float* parts, unsigned* flags) {
#define CASE(kernel) if (name == #kernel) launch(kernel<wrong>, 1, kThreads, 0, 0, in, out)
    CASE(copy_without_wait);
    CASE(copy_without_commit);
    CASE(wait_for_the_older_copy);
    CASE(copy_of_a_part);
    CASE(wait_of_another_thread);
    CASE(copy_over_what_is_read);
    CASE(wrong_parity);
    CASE(bytes_not_expected);
    CASE(more_bytes_expected);
    CASE(arrival_of_a_copy_and_again);
    CASE(arrival_for_another);
    CASE(barrier_in_the_making);
    CASE(barrier_that_copies_do_not_know);
    CASE(store_without_fence);
    CASE(write_over_what_is_stored);
    CASE(half_of_a_named_barrier);
    CASE(masks_that_differ);
    CASE(half_of_a_warp_multiplies);
#undef CASE
#define CASE(kernel) if (name == #kernel) launch(kernel<wrong>, 1, 128, 0, 0, in, out)
    CASE(product_without_wait);
    CASE(product_without_commit);
    CASE(product_without_fence);
    CASE(product_of_three_warps);
    CASE(sums_scaled_without_fence);
    CASE(operand_that_products_do_not_see);
    CASE(operand_overwritten);
#undef CASE
#define CASE(kernel) if (name == #kernel) launch({.cluster = 2}, kernel<wrong>, 4, 32, 0, 0, in, out)
    CASE(read_of_a_neighbour);
    CASE(read_of_an_ended_neighbour);
    CASE(arrival_next_door);
#undef CASE
    const LaunchOptions all{.cooperative = true};
    if (name == "grid_that_does_not_wait")
        launch(all, grid_that_does_not_wait<wrong>, 4, 32, 0, 0, in, out);
    if (name == "block_that_leaves_the_grid")
        launch(all, block_that_leaves_the_grid<wrong>, 4, 32, 0, 0, in, out);
    if (name == "grid_of_blocks_in_turns")
        launch({.cooperative = !wrong}, grid_of_blocks_in_turns<wrong>, 4, 32, 0, 0, in, out);
    if (name == "sum_of_two_ranks") {
        const Together ranks;
        for (int rank = 0; rank < 2; ++rank)
            launch(sum_of_two_ranks<wrong>, 1, 32, 0, 0, in, parts, flags, rank, out);
    }
}

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    const std::vector<float> host(2 * kThreads, 1.0f);
    float *in, *out, *parts;
    unsigned* flags;
    cudaMalloc(&in, kBytes);
    cudaMalloc(&out, 2 * kBytes);
    cudaMalloc(&parts, kBytes);
    cudaMalloc(&flags, 2 * sizeof(unsigned));
    cudaMemcpy(in, host.data(), kBytes, cudaMemcpyHostToDevice);
    cudaMemset(flags, 0, 2 * sizeof(unsigned));
    if (std::strcmp(argv[2], "wrong") == 0)
        run<true>(argv[1], in, out, parts, flags);
    else
        run<false>(argv[1], in, out, parts, flags);
}
