// Which lane of a warp holds which number of a matrix: written as lists of numbers, a line each.

#include "../../csrc/cuda/ptx.h"

#include <cstdio>
#include <vector>

// The numbers of a 16 x 16 matrix, 0 to 255, as they come out of ldmatrix: four registers of two.
// begin load
__global__ void load(uint32_t* as_is, uint32_t* turned) {
    __shared__ __align__(16) uint16_t tile[16][16];
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) tile[i / 16][i % 16] = i;
    __syncwarp();
    uint32_t a[4], b[4];
    ptx::ldmatrix_x4(a, &tile[lane % 16][lane / 16 * 8]);
    ptx::ldmatrix_x4_trans(b, &tile[lane % 16][lane / 16 * 8]);
    for (int i = 0; i < 4; ++i) {
        as_is[4 * lane + i] = a[i];
        turned[4 * lane + i] = b[i];
    }
}
// end load

// The identity times a matrix of 16 x 8 numbers, 0 to 127: that matrix, as sums are held.
// begin multiply
__global__ void multiply(float* sums) {
    __shared__ __align__(16) __nv_bfloat16 one[16][16], numbers[8][16];  // the second by columns
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) one[i / 16][i % 16] = float(i / 16 == i % 16);
    for (int i = lane; i < 128; i += 32) numbers[i % 8][i / 8] = float(i);
    __syncwarp();
    uint32_t a[4], b[2];
    float d[4] = {};
    ptx::ldmatrix_x4(a, &one[lane % 16][lane / 16 * 8]);
    ptx::ldmatrix_x2(b, &numbers[lane % 8][lane / 8 % 2 * 8]);
    ptx::mma_bf16(d, a, b, d);
    for (int i = 0; i < 4; ++i) sums[4 * lane + i] = d[i];
}
// end multiply

int main() {
    uint32_t *as_is, *turned;
    float* sums;
    cudaMalloc(&as_is, 512);
    cudaMalloc(&turned, 512);
    cudaMalloc(&sums, 512);
    load<<<1, 32>>>(as_is, turned);
    multiply<<<1, 32>>>(sums);
    std::vector<uint16_t> halves(256);
    for (const uint32_t* registers : {as_is, turned}) {
        cudaMemcpy(halves.data(), registers, 512, cudaMemcpyDeviceToHost);
        for (uint16_t number : halves) std::printf("%d ", number);
        std::printf("\n");
    }
    std::vector<float> floats(128);
    cudaMemcpy(floats.data(), sums, 512, cudaMemcpyDeviceToHost);
    for (float number : floats) std::printf("%d ", int(number));
    std::printf("\n");
}
