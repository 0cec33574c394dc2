// Sums and maxima of a warp and of a block, in registers and, between warps, shared memory.

#pragma once

#include "../simt/simt.h"

namespace minitorch {

struct Plus {
    template <typename C>
    __device__ C operator()(C a, C b) const { return a + b; }
};
struct Larger {
    template <typename C>
    __device__ C operator()(C a, C b) const { return a > b ? a : b; }
};

// Of the 32 lanes; all have the result.
template <typename Combine, typename C>
__device__ C reduce_warp(C x) {
    for (int flip = 16; flip > 0; flip /= 2)
        x = Combine()(x, __shfl_xor_sync(0xFFFFFFFF, x, flip));
    return x;
}

// Of all threads of a block, a multiple of 32; all have the result. Safe to call again and again.
template <typename Combine, typename C>
__device__ C reduce_block(C x, C neutral) {
    SHARED(C, partial, [32]);
    x = reduce_warp<Combine>(x);
    if (blockDim.x <= 32) return x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    __syncthreads();  // what an earlier call left may still be read
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return reduce_warp<Combine>(lane < warps ? partial[lane] : neutral);
}

}  // namespace minitorch
