// Results that depend on the order of threads though no two accesses race, and twins that do not.
//
// `order NAME` prints what one of them computes, with the schedule of the environment.

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <vector>

// Each thread takes the next free place: which one, nobody knows.
__global__ void first_come(int* out, int* next) {
    out[atomicAdd(next, 1)] = threadIdx.x + blockDim.x * blockIdx.x;
}
__global__ void own_place(int* out, int* next) {
    const int i = threadIdx.x + blockDim.x * blockIdx.x;
    atomicAdd(next, 1);
    out[i] = i;
}

// (1e8 - 1e8) + 1 is 1, and (1e8 + 1) - 1e8 is 0 in float.
__global__ void rounded_sum(int* out, int* next) {
    float* sum = reinterpret_cast<float*>(out);
    if (threadIdx.x < 3) atomicAdd(sum, threadIdx.x == 0 ? 1e8f : threadIdx.x == 1 ? -1e8f : 1.0f);
}
__global__ void whole_sum(int* out, int* next) {
    atomicAdd(out, threadIdx.x == 0 ? 100 : 1);
}

// Blocks, not threads.
__global__ void last_block(int* out, int* next) {
    if (threadIdx.x == 0) atomicExch(out, int(blockIdx.x));
}

int main(int argc, char** argv) {
    int *out, *next;
    cudaMalloc(&out, 128 * sizeof(int));
    cudaMalloc(&next, sizeof(int));
    cudaMemset(out, 0, 128 * sizeof(int));
    cudaMemset(next, 0, sizeof(int));
#define CASE(kernel, blocks, threads) \
    if (!std::strcmp(argv[1], #kernel)) kernel<<<blocks, threads>>>(out, next)
    CASE(first_come, 1, 64);
    CASE(own_place, 2, 64);
    CASE(rounded_sum, 1, 32);
    CASE(whole_sum, 2, 64);
    CASE(last_block, 4, 32);
#undef CASE
    for (int i = 0; i < 128; ++i) std::printf("%d ", out[i]);
}
