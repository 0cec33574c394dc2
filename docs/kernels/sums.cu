// The sum of each row of a matrix, one block to a row. `sums VARIANT` computes it in one of several ways.

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <vector>

// begin sum
template <bool wait>
__global__ void sum_rows(const float* x, float* out, int columns) {
    __shared__ float partial[64];
    const float* row = x + blockIdx.x * columns;

    float mine = 0;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) mine += row[i];
    partial[threadIdx.x] = mine;

    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (wait || half == blockDim.x / 2) __syncthreads();
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}
// end sum

// begin past
__global__ void sum_past_the_end(const float* x, float* out, int columns) {
    float sum = 0;
    for (int i = 0; i <= columns; ++i) sum += x[blockIdx.x * columns + i];
    out[blockIdx.x] = sum;
}
// end past

// begin keep
__global__ void keep(const float* x, float* out, int columns, int* kept) {
    out[atomicAdd(kept, 1)] = x[threadIdx.x * columns];
}
// end keep

int main(int argc, char** argv) {
    const int rows = 3, columns = 100;
    std::vector<float> host(rows * columns);
    for (int i = 0; i < rows * columns; ++i) host[i] = i / columns + 1;
    float *x, *out;
    cudaMalloc(&x, host.size() * sizeof(float));
    cudaMalloc(&out, rows * sizeof(float));
    cudaMemcpy(x, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice);
    const char* variant = argc > 1 ? argv[1] : "right";
    if (!std::strcmp(variant, "right")) sum_rows<true><<<rows, 64>>>(x, out, columns);
    if (!std::strcmp(variant, "one-barrier")) sum_rows<false><<<rows, 64>>>(x, out, columns);
    if (!std::strcmp(variant, "past-the-end")) sum_past_the_end<<<rows, 1>>>(x, out, columns);
    if (!std::strcmp(variant, "keep")) {
        int* kept;
        cudaMalloc(&kept, sizeof(int));
        cudaMemset(kept, 0, sizeof(int));
        keep<<<1, rows>>>(x, out, columns, kept);
    }
    cudaMemcpy(host.data(), out, rows * sizeof(float), cudaMemcpyDeviceToHost);
    std::printf("%g %g %g\n", host[0], host[1], host[2]);
}
