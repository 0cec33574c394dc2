// Two warps with products to begin and softmaxes to take: `pingpong TURNS` prints who did what, in the
// order in which it was done, with turns (1) or without (0).

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cuda/ptx.h"

constexpr int kTiles = 6;

__device__ void note(int* clock, int* events, int what) {
    if (threadIdx.x % 32 == 0) events[atomicAdd(clock, 1)] = what;
    __syncwarp();
}

// begin pingpong
template <bool turns>
__global__ void pingpong(int* clock, int* events) {
    const int warp = threadIdx.x / 32, turn = 1 + warp, turn_of_other = 2 - warp;
    if (turns && warp == 1) ptx::bar_arrive(turn_of_other, 64);  // the other one begins
    for (int n = 0; n < kTiles; ++n) {
        if (turns) ptx::bar_sync(turn, 64);
        note(clock, events, 2 * warp);  // begins its products
        if (turns && (warp == 0 || n + 1 < kTiles)) ptx::bar_arrive(turn_of_other, 64);
        note(clock, events, 2 * warp + 1);  // takes the softmax
    }
}
// end pingpong

int main(int, char** argv) {
    std::vector<int> events(4 * kTiles);
    int *clock, *noted;
    cudaMalloc(&clock, sizeof(int));
    cudaMalloc(&noted, events.size() * sizeof(int));
    cudaMemset(clock, 0, sizeof(int));
    if (std::atoi(argv[1]))
        pingpong<true><<<1, 64>>>(clock, noted);
    else
        pingpong<false><<<1, 64>>>(clock, noted);
    cudaMemcpy(events.data(), noted, events.size() * sizeof(int), cudaMemcpyDeviceToHost);
    for (const int event : events) std::printf("%d ", event);
}
