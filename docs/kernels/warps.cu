// Kernels to be looked at: `warps VARIANT` runs one of them on a block's worth of numbers.

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <vector>

// begin block sum
__global__ void block_sum(const float* x, float* out) {
    __shared__ float partial[2];
    float sum = x[threadIdx.x];
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, by);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) *out = partial[0] + partial[1];
}
// end block sum

// begin copy
__global__ void copy(const float* x, float* out, int first, int stride) {
    out[threadIdx.x] = x[first + stride * threadIdx.x];
}
// end copy

// begin naive
__global__ void transpose_naive(const float* x, float* out) {
    const int row = threadIdx.y, column = threadIdx.x;
    out[32 * column + row] = x[32 * row + column];
}
// end naive

// begin shared
template <int width>
__global__ void transpose_shared(const float* x, float* out) {
    __shared__ float tile[32][width];
    const int row = threadIdx.y, column = threadIdx.x;
    tile[row][column] = x[32 * row + column];
    __syncthreads();
    out[32 * row + column] = tile[column][row];
}
// end shared

int main(int argc, char** argv) {
    std::vector<float> host(1024);
    for (int i = 0; i < 1024; ++i) host[i] = i;
    float *x, *out;
    cudaMalloc(&x, 4096);
    cudaMalloc(&out, 4096);
    cudaMemcpy(x, host.data(), 4096, cudaMemcpyHostToDevice);
    const char* variant = argv[1];
    const dim3 square(32, 32);
    if (!std::strcmp(variant, "sum")) block_sum<<<1, 64>>>(x, out);
    if (!std::strcmp(variant, "neighbours")) copy<<<1, 32>>>(x, out, 0, 1);
    if (!std::strcmp(variant, "one further")) copy<<<1, 32>>>(x, out, 1, 1);
    if (!std::strcmp(variant, "every second")) copy<<<1, 32>>>(x, out, 0, 2);
    if (!std::strcmp(variant, "every eighth")) copy<<<1, 32>>>(x, out, 0, 8);
    if (!std::strcmp(variant, "all the same")) copy<<<1, 32>>>(x, out, 9, 0);
    if (!std::strcmp(variant, "naive")) transpose_naive<<<1, square>>>(x, out);
    if (!std::strcmp(variant, "shared")) transpose_shared<32><<<1, square>>>(x, out);
    if (!std::strcmp(variant, "padded")) transpose_shared<33><<<1, square>>>(x, out);
    cudaMemcpy(host.data(), out, 4096, cudaMemcpyDeviceToHost);
    std::printf("%g %g\n", host[0], host[1]);
}
