// Kernels of which one can say on paper what their accesses cost; what they cost is at their lines:
//
//     // costs shared 32 of 1          wavefronts, and the least there could be, of all requests
//     // costs global 5 of 4           sectors, likewise
//
// `counts NAME` runs one of them, with one warp unless it says otherwise.

#include <cuda_runtime.h>

#include <cstring>

__global__ void stride_1(const float*, float*) {
    __shared__ float x[32];
    x[threadIdx.x] = 1;  // costs shared 1 of 1
}
__global__ void stride_2(const float*, float*) {
    __shared__ float x[64];
    x[2 * threadIdx.x] = 1;  // costs shared 2 of 1
}
__global__ void stride_32(const float*, float*) {
    __shared__ float x[1024];
    x[32 * threadIdx.x] = 1;  // costs shared 32 of 1
}
__global__ void stride_33(const float*, float*) {
    __shared__ float x[1056];
    x[33 * threadIdx.x] = 1;  // costs shared 1 of 1
}
__global__ void broadcast(const float*, float* out) {
    __shared__ float x[2];
    if (threadIdx.x < 2) x[threadIdx.x] = 1;  // costs shared 1 of 1
    __syncthreads();
    float sum = x[threadIdx.x / 16];  // costs shared 1 of 1
    out[threadIdx.x] = sum;           // costs global 4 of 4
}
// Four bytes to a bank: neighbouring bytes are one word.
__global__ void bytes(const float*, float*) {
    __shared__ unsigned char x[128];
    x[threadIdx.x] = 1;  // costs shared 1 of 1
}
// By halves and quarters of the warp.
__global__ void two_at_once(const float*, float*) {
    __shared__ float2 x[32];
    x[threadIdx.x] = float2(1, 2);  // costs shared 2 of 2
}
__global__ void four_at_once(const float*, float*) {
    __shared__ float4 x[32];
    x[threadIdx.x] = float4(1, 2, 3, 4);  // costs shared 4 of 4
}
__global__ void four_at_once_apart(const float*, float*) {
    __shared__ float4 x[64];
    x[2 * threadIdx.x] = float4(1, 2, 3, 4);  // costs shared 8 of 4
}

__global__ void transpose_naive(const float* in, float* out) {  // 32 warps
    out[32 * threadIdx.x + threadIdx.y] =   // costs global 1024 of 128
        in[32 * threadIdx.y + threadIdx.x]; // costs global 128 of 128
}
__global__ void transpose_shared(const float* in, float* out) {
    __shared__ float tile[32][32];
    float x = in[32 * threadIdx.y + threadIdx.x];       // costs global 128 of 128
    tile[threadIdx.y][threadIdx.x] = x;                 // costs shared 32 of 32
    __syncthreads();
    x = tile[threadIdx.x][threadIdx.y];                 // costs shared 1024 of 32
    out[32 * threadIdx.y + threadIdx.x] = x;            // costs global 128 of 128
}
__global__ void transpose_padded(const float* in, float* out) {
    __shared__ float tile[32][33];
    float x = in[32 * threadIdx.y + threadIdx.x];       // costs global 128 of 128
    tile[threadIdx.y][threadIdx.x] = x;                 // costs shared 32 of 32
    __syncthreads();
    x = tile[threadIdx.x][threadIdx.y];                 // costs shared 32 of 32
    out[32 * threadIdx.y + threadIdx.x] = x;            // costs global 128 of 128
}

__global__ void misaligned(const float* in, float* out) {
    float x = in[threadIdx.x + 1];  // costs global 5 of 4
    out[threadIdx.x] = x;           // costs global 4 of 4
}
__global__ void every_second(const float* in, float* out) {
    float x = in[2 * threadIdx.x];  // costs global 8 of 4
    out[threadIdx.x] = x;           // costs global 4 of 4
}
__global__ void every_32nd(const float* in, float* out) {
    float x = in[32 * threadIdx.x];  // costs global 32 of 4
    out[threadIdx.x] = x;            // costs global 4 of 4
}
__global__ void all_the_same(const float* in, float* out) {
    float x = in[9];       // costs global 1 of 1
    out[threadIdx.x] = x;  // costs global 4 of 4
}
__global__ void sixteen_bytes(const float* in, float* out) {
    float4 x = reinterpret_cast<const float4*>(in)[threadIdx.x];  // costs global 16 of 16
    out[threadIdx.x] = x.x + x.w;                                 // costs global 4 of 4
}
// The lanes of half a warp, in a block that ends in the middle of its second.
__global__ void half_a_warp(const float* in, float* out) {  // 48 threads
    if (threadIdx.x < 16) out[threadIdx.x] = 1;       // costs global 2 of 2
    if (threadIdx.x >= 32) out[threadIdx.x] = 1;      // costs global 2 of 2
}
// Lanes that leave out turns of the loop meet again at its barrier: the last turn is of all lanes.
__global__ void turns_left_out(const float* in, float* out) {
    for (unsigned i = 0; i < 3; ++i) {
        if (threadIdx.x % 2 <= i) out[threadIdx.x] = i;  // costs global 12 of 10
        __syncwarp();
    }
}

int main(int argc, char** argv) {
    float *in, *out;
    cudaMalloc(&in, 8192);
    cudaMalloc(&out, 4096);
    cudaMemset(in, 0, 8192);
#define CASE(kernel, ...) if (!std::strcmp(argv[1], #kernel)) kernel<<<1, dim3(__VA_ARGS__)>>>(in, out)
    CASE(stride_1, 32);
    CASE(stride_2, 32);
    CASE(stride_32, 32);
    CASE(stride_33, 32);
    CASE(broadcast, 32);
    CASE(bytes, 32);
    CASE(two_at_once, 32);
    CASE(four_at_once, 32);
    CASE(four_at_once_apart, 32);
    CASE(transpose_naive, 32, 32);
    CASE(transpose_shared, 32, 32);
    CASE(transpose_padded, 32, 32);
    CASE(misaligned, 32);
    CASE(every_second, 32);
    CASE(every_32nd, 32);
    CASE(all_the_same, 32);
    CASE(sixteen_bytes, 32);
    CASE(half_a_warp, 48);
    CASE(turns_left_out, 32);
#undef CASE
}
