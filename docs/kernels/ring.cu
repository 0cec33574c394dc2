// One warp copies, another one adds up: `ring STAGES` sums 8 tiles of 32 numbers through a ring.

#include "../../csrc/cuda/ptx.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

// begin ring
template <int stages>
__global__ void ring(const float* x, float* out, int tiles) {
    __shared__ __align__(16) float tile[stages][32];
    __shared__ uint64_t full[stages], empty[stages];
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; ++i) {
            ptx::mbarrier_init(&full[i], 1);
            ptx::mbarrier_init(&empty[i], 1);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < tiles; ++i) {
        const int slot = i % stages;
        const unsigned parity = i / stages % 2;
        if (threadIdx.x == 32) {  // of the warp that copies, one thread
            ptx::mbarrier_wait(&empty[slot], parity ^ 1);
            ptx::mbarrier_arrive_expect(&full[slot], sizeof(tile[slot]));
            ptx::bulk_load(tile[slot], x + 32 * i, sizeof(tile[slot]), &full[slot]);
        } else if (threadIdx.x < 32) {
            ptx::mbarrier_wait(&full[slot], parity);
            sum += tile[slot][threadIdx.x];
            __syncwarp();
            if (threadIdx.x == 0) ptx::mbarrier_arrive(&empty[slot]);
        }
    }
    if (threadIdx.x < 32) out[threadIdx.x] = sum;
}
// end ring

int main(int, char** argv) {
    constexpr int tiles = 8;
    std::vector<float> host(32 * tiles, 1.0f);
    float *x, *out;
    cudaMalloc(&x, 128 * tiles);
    cudaMalloc(&out, 128);
    cudaMemcpy(x, host.data(), 128 * tiles, cudaMemcpyHostToDevice);
    if (std::atoi(argv[1]) == 1) ring<1><<<1, 64>>>(x, out, tiles);
    if (std::atoi(argv[1]) == 2) ring<2><<<1, 64>>>(x, out, tiles);
    if (std::atoi(argv[1]) == 4) ring<4><<<1, 64>>>(x, out, tiles);
    cudaMemcpy(host.data(), out, 128, cudaMemcpyDeviceToHost);
    std::printf("%g\n", host[5]);
}
