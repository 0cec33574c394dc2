// Three ranks, a grid each, add up what they have, twice. `ranks VARIANT` does it rightly or in one of
// several wrong ways.

#include "../../csrc/cuda/ptx.h"

#include <cstdio>
#include <cstring>
#include <vector>

constexpr int kRanks = 3, kCount = 32;

enum Fault { none, no_release, no_acquire, one_buffer };

// Of each rank: a buffer in two halves, and a flag for each rank that may tell it something.
struct Spaces {
    float* buffers;
    uint32_t* flags;
    __device__ float* half(int rank, int which) const {
        return buffers + (2 * rank + which) * kCount;
    }
    __device__ uint32_t* flag(int at, int from) const { return flags + at * kRanks + from; }
};

// begin meet
template <Fault fault>
__device__ void meet(const Spaces& spaces, int rank, uint32_t step) {
    const int other = threadIdx.x;
    __syncthreads();
    if (other < kRanks) {
        volatile uint32_t* theirs = spaces.flag(other, rank);
        volatile uint32_t* mine = spaces.flag(rank, other);
        if (fault == no_release)
            *theirs = step;
        else
            ptx::store_release(spaces.flag(other, rank), step);
        if (fault == no_acquire)
            while (*mine < step) {}
        else
            while (ptx::load_acquire(spaces.flag(rank, other)) < step) {}
    }
    __syncthreads();
}
// end meet

// begin sum
template <Fault fault>
__global__ void sum_of_ranks(Spaces spaces, int rank, const float* x, float* out) {
    const int i = threadIdx.x;
    for (int step = 1; step <= 2; ++step) {
        const int which = fault == one_buffer ? 0 : step % 2;
        spaces.half(rank, which)[i] = step * x[rank * kCount + i];
        meet<fault>(spaces, rank, step);
        float sum = 0;
        for (int q = 0; q < kRanks; ++q) sum += spaces.half(q, which)[i];
        out[rank * kCount + i] = sum;
    }
}
// end sum

template <Fault fault>
void run(const Spaces& spaces, const float* x, float* out) {
    const Together ranks;
    for (int rank = 0; rank < kRanks; ++rank)
        launch(sum_of_ranks<fault>, 1, kCount, 0, 0, spaces, rank, x, out);
}

int main(int argc, char** argv) {
    std::vector<float> host(kRanks * kCount);
    for (int i = 0; i < kRanks * kCount; ++i) host[i] = i / kCount + 1;
    const size_t bytes = host.size() * sizeof(float);
    Spaces spaces;
    float *x, *out;
    cudaMalloc(&x, bytes);
    cudaMalloc(&out, bytes);
    cudaMalloc(&spaces.buffers, 2 * bytes);
    cudaMalloc(&spaces.flags, kRanks * kRanks * sizeof(uint32_t));
    cudaMemcpy(x, host.data(), bytes, cudaMemcpyHostToDevice);
    cudaMemset(spaces.flags, 0, kRanks * kRanks * sizeof(uint32_t));
    const char* variant = argc > 1 ? argv[1] : "right";
    if (!std::strcmp(variant, "right")) run<none>(spaces, x, out);
    if (!std::strcmp(variant, "no-release")) run<no_release>(spaces, x, out);
    if (!std::strcmp(variant, "no-acquire")) run<no_acquire>(spaces, x, out);
    if (!std::strcmp(variant, "one-buffer")) run<one_buffer>(spaces, x, out);
    cudaMemcpy(host.data(), out, bytes, cudaMemcpyDeviceToHost);
    for (int rank = 0; rank < kRanks; ++rank) std::printf("%g ", host[rank * kCount]);
    std::printf("\n");
}
