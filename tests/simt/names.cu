// Variables that a program names as CUDA names its own: in blocks, in lists, as parameters.

#include <cstdio>

__global__ void number(int* out, int n) {
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        out[i] = int(blockIdx.x) * 100 + threadIdx.x;
}

void run(int* out, const dim3& gridDim, dim3 blockDim) {  // not the kernel's blockDim
    number<<<gridDim, blockDim>>>(out, gridDim.x * blockDim.x);
}

int threads(dim3 blockDim) { return blockDim.x * blockDim.y; }

int main() {
    int *out, host[6];
    cudaMalloc(&out, sizeof host);
    {
        dim3 gridDim(2), blockDim(3);
        run(out, gridDim, blockDim);
        std::printf("%d\n", threads(blockDim));
    }
    cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost);
    for (int threadIdx : host) std::printf("%d\n", threadIdx);
    int blockIdx = 7, sum = blockIdx + blockIdx;
    std::printf("%d\n", sum);
    cudaFree(out);
}
