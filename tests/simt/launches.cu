// Launches that cannot be, each by its error; then one by CUDA's own words, of two clusters.

#include <cstdio>

#include "../../csrc/cuda/ptx.h"

__global__ void ranks(unsigned* out) {
    if (threadIdx.x == 0) out[blockIdx.x] = 10 * ptx::cluster_rank() + blockIdx.x;
}

int main() {
    unsigned* out;
    cudaMalloc(&out, 4 * sizeof(unsigned));
    const auto attempt = [&](const LaunchOptions& options, int blocks, int threads, size_t bytes) {
        launch(options, ranks, blocks, threads, bytes, 0, out);
        std::printf("%s\n", cudaGetErrorString(cudaGetLastError()));
    };
    attempt({.cluster = 2}, 3, 32, 0);
    attempt({.cluster = 16}, 16, 32, 0);
    attempt({}, 1, 2048, 0);
    attempt({}, 1, 32, 228 * 1024);
    attempt({.cooperative = true}, 1024, 1024, 0);
    {
        const Together both;
        launch(ranks, 16, 1024, 0, 0, out);
        launch(ranks, 16, 1024, 0, 0, out);
    }
    std::printf("%s\n", cudaGetErrorString(cudaGetLastError()));

    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {2, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(4);
    config.blockDim = dim3(32);
    config.attrs = &attribute;
    config.numAttrs = 1;
    std::printf("%s\n", cudaGetErrorString(cudaLaunchKernelEx(&config, ranks, out)));
    unsigned host[4];
    cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost);
    for (const unsigned rank : host) std::printf("%u\n", rank);
}
