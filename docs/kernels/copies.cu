// The sum of four tiles, each fetched while the last one is added up. `copies VARIANT` computes it in
// one of several ways.

#include <cstdio>
#include <cstring>
#include <vector>

#include "../../csrc/cuda/ptx.h"

// begin sum
template <int keep>
__global__ void sum_tiles(const float* x, float* out, int tiles) {
    __shared__ float tile[2][32];
    const auto fetch = [&](int i) {
        if (i < tiles) ptx::cp_async<4>(&tile[i % 2][threadIdx.x], x + 32 * i + threadIdx.x);
        ptx::cp_async_commit();
    };

    float sum = 0;
    fetch(0);
    for (int i = 0; i < tiles; ++i) {
        fetch(i + 1);
        ptx::cp_async_wait<keep>();  // at most so many groups are still under way
        __syncwarp();
        sum += tile[i % 2][threadIdx.x ^ 1];
        __syncwarp();
    }
    out[threadIdx.x] = sum;
}
// end sum

int main(int argc, char** argv) {
    const int tiles = 4;
    std::vector<float> host(32 * tiles, 1.0f);
    float *x, *out;
    cudaMalloc(&x, host.size() * sizeof(float));
    cudaMalloc(&out, 32 * sizeof(float));
    cudaMemcpy(x, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice);
    const bool late = argc > 1 && !std::strcmp(argv[1], "late");
    launch(late ? sum_tiles<2> : sum_tiles<1>, 1, 32, 0, nullptr, x, out, tiles);
    cudaMemcpy(host.data(), out, 32 * sizeof(float), cudaMemcpyDeviceToHost);
    std::printf("%g\n", host[0]);
}
