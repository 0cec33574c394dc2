// Small kernels that are wrong, each in one way, and their correct twins.
//
// `zoo NAME wrong` and `zoo NAME right` run one of them. The line that a report must name bears the
// kind of the finding: // finds race. A constant, `wrong`, is all that tells the twins apart.

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

constexpr int kThreads = 64;

template <bool wrong>
__global__ void missing_barrier(const float* in, float* out) {
    __shared__ float tile[kThreads];
    tile[threadIdx.x] = in[threadIdx.x];  // finds race
    if (!wrong) __syncthreads();
    out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];  // finds race uninitialised
}

// The second barrier of a loop over tiles: without it the next tile overwrites what others read.
template <bool wrong>
__global__ void missing_second_barrier(const float* in, float* out) {
    __shared__ float tile[kThreads];
    float sum = 0;
    for (int step = 0; step < 4; ++step) {
        tile[threadIdx.x] = in[threadIdx.x] * step;  // finds race
        __syncthreads();
        sum += tile[(threadIdx.x + 1) % kThreads];  // finds race
        if (!wrong) __syncthreads();
    }
    out[threadIdx.x] = sum;
}

template <bool wrong>
__global__ void off_by_one(const float* in, float* out) {
    const int last = kThreads - 1;
    const int i = threadIdx.x;
    out[i] = in[i];
    if (wrong || i < last) out[i + 1 - 1] = in[i + 1];  // finds out of bounds
}

template <bool wrong>
__global__ void past_the_tile(const float* in, float* out) {
    __shared__ float other[kThreads];
    __shared__ float tile[kThreads];
    other[threadIdx.x] = 0;
    tile[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    const int next = threadIdx.x + 1;
    out[threadIdx.x] = tile[wrong ? next : next % kThreads] + other[threadIdx.x];  // finds out of bounds
}

template <bool wrong>
__global__ void too_little_dynamic(const float* in, float* out) {
    extern __shared__ float buffer[];
    const int i = threadIdx.x + (wrong ? 1 : 0);
    buffer[i] = in[threadIdx.x];  // finds out of bounds
    out[threadIdx.x] = buffer[i];
}

template <bool wrong>
__global__ void uninitialised(const float* in, float* out) {
    __shared__ float tile[2 * kThreads];
    tile[threadIdx.x] = in[threadIdx.x];
    if (!wrong) tile[threadIdx.x + kThreads] = 0;
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x] + tile[2 * kThreads - 1 - threadIdx.x];  // finds uninitialised
}

template <bool wrong>
__global__ void misaligned(const float* in, float* out) {
    if (threadIdx.x >= 8) return;
    const float* from = in + 4 * threadIdx.x + (wrong ? 1 : 0);
    const float4 four = *reinterpret_cast<const float4*>(from);  // finds misaligned
    out[threadIdx.x] = four.x + four.w;
}

template <bool wrong>
__global__ void barrier_in_a_branch(const float* in, float* out) {
    __shared__ float tile[kThreads];
    tile[threadIdx.x] = in[threadIdx.x];
    if (wrong && threadIdx.x % 2) {
        __syncthreads();  // finds divergent barrier
        out[threadIdx.x] = tile[0];
    } else {
        __syncthreads();  // finds divergent barrier
        out[threadIdx.x] = tile[1];
    }
}

template <>
__global__ void barrier_in_a_branch<false>(const float* in, float* out) {
    __shared__ float tile[kThreads];
    tile[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x % 2 ? 0 : 1];
}

template <bool wrong>
__global__ void return_before_a_barrier(const float* in, float* out) {
    __shared__ float tile[kThreads];
    if (wrong && threadIdx.x >= 48) return;
    tile[threadIdx.x] = in[threadIdx.x];
    __syncthreads();  // finds divergent barrier
    out[threadIdx.x] = tile[(threadIdx.x + 1) % 48];
}

// A full mask, and lanes that never come.
template <bool wrong>
__global__ void mask_of_absent_lanes(const float* in, float* out) {
    float x = in[threadIdx.x];
    if (threadIdx.x % 32 < 16) {
        const unsigned mask = wrong ? 0xFFFFFFFF : 0xFFFF;
        for (int by = 8; by > 0; by /= 2) x += __shfl_xor_sync(mask, x, by);  // finds deadlock
    }
    out[threadIdx.x] = x;
}

template <bool wrong>
__global__ void value_of_an_absent_lane(const float* in, float* out) {
    float x = in[threadIdx.x];
    if (threadIdx.x % 32 < 16) x = __shfl_sync(0xFFFF, x, wrong ? 16 : 15);  // finds wrong mask
    out[threadIdx.x] = x;
}

// The last steps of a reduction, by one warp: its threads are not in step by themselves.
template <bool wrong>
__global__ void warp_in_step(const float* in, float* out) {
    __shared__ float tile[kThreads];
    tile[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 32) {
        for (int by = 32; by > 0; by /= 2) {
            const float other = tile[threadIdx.x + by];  // finds race
            if (!wrong) __syncwarp();
            tile[threadIdx.x] += other;  // finds race
            if (!wrong) __syncwarp();
        }
        if (threadIdx.x == 0) out[0] = tile[0];
    }
}

template <bool wrong>
__global__ void blocks_write_one_place(const float* in, float* out) {
    if (threadIdx.x) return;
    if (wrong)
        out[0] += in[blockIdx.x];  // finds race
    else
        atomicAdd(out, in[blockIdx.x]);
}

// The last block to come adds up what all have left: they must have made it visible before.
template <bool wrong>
__global__ void missing_fence(const float* in, float* out, float* partial, unsigned* tickets) {
    if (threadIdx.x) return;
    partial[blockIdx.x] = in[blockIdx.x];  // finds race
    if (!wrong) __threadfence();
    if (atomicInc(tickets, gridDim.x - 1) == gridDim.x - 1) {
        __threadfence();
        float sum = 0;
        for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];  // finds race
        *out = sum;
    }
}

template <bool wrong>
__global__ void read_beside_atomics(const float* in, float* out) {
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, in[threadIdx.x]);  // finds race
    if (!wrong) __syncthreads();
    out[threadIdx.x] = total;  // finds race
}

template <bool wrong>
__global__ void flag_that_nobody_sets(const float* in, float* out) {
    __shared__ int flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    if (threadIdx.x == 0) {
        if (!wrong) atomicExch(&flag, 1);
    } else {
        while (atomicAdd(&flag, 0) == 0) {}  // finds deadlock
    }
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool wrong>
__global__ void lock(const float* in, float* out, float*, unsigned* mutex) {
    if (threadIdx.x) return;
    while (atomicCAS(mutex, 0, 1)) {}
    if (!wrong) __threadfence();
    *out += in[blockIdx.x];  // finds race
    if (!wrong) __threadfence();
    atomicExch(mutex, 0);
}

template <bool wrong>
__global__ void memory_that_was_freed(const float* in, float* out) {
    out[threadIdx.x] = in[threadIdx.x];  // finds out of bounds
}

struct Arrays {
    float *in, *out, *partial;
    unsigned* counter;
};

template <bool wrong>
void run(const std::string& name, const Arrays& a) {
    float *in = a.in, *out = a.out;
#define CASE(kernel) if (name == #kernel) kernel<wrong><<<1, kThreads>>>(in, out)
    CASE(missing_barrier);
    CASE(missing_second_barrier);
    CASE(off_by_one);
    CASE(past_the_tile);
    CASE(uninitialised);
    CASE(misaligned);
    CASE(barrier_in_a_branch);
    CASE(return_before_a_barrier);
    CASE(mask_of_absent_lanes);
    CASE(value_of_an_absent_lane);
    CASE(warp_in_step);
    CASE(read_beside_atomics);
    CASE(flag_that_nobody_sets);
#undef CASE
    if (name == "too_little_dynamic")
        too_little_dynamic<wrong><<<1, kThreads, kThreads * sizeof(float)>>>(in, out);
    if (name == "blocks_write_one_place") blocks_write_one_place<wrong><<<8, 32>>>(in, out);
    if (name == "missing_fence") missing_fence<wrong><<<8, 32>>>(in, out, a.partial, a.counter);
    if (name == "lock") lock<wrong><<<8, 32>>>(in, out, a.partial, a.counter);
    if (name == "memory_that_was_freed") {
        if (wrong) cudaFree(out);
        memory_that_was_freed<wrong><<<1, kThreads>>>(in, out);
    }
}

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    std::vector<float> host(kThreads, 1.0f);
    Arrays a{};
    cudaMalloc(&a.in, kThreads * sizeof(float));
    cudaMalloc(&a.out, kThreads * sizeof(float));
    cudaMalloc(&a.partial, kThreads * sizeof(float));
    cudaMalloc(&a.counter, sizeof(unsigned));
    cudaMemcpy(a.in, host.data(), kThreads * sizeof(float), cudaMemcpyHostToDevice);
    cudaMemset(a.out, 0, kThreads * sizeof(float));
    cudaMemset(a.counter, 0, sizeof(unsigned));
    if (std::strcmp(argv[2], "wrong") == 0)
        run<true>(argv[1], a);
    else
        run<false>(argv[1], a);
}
