// An order of the numbers of a row that has no ties: by value, NaNs before or after all others, and
// of equal ones by place. What is found with it does not depend on who looked first.

#pragma once

#include <cstdint>
#include <type_traits>

#include "../simt/simt.h"

namespace minitorch {

template <typename C, bool largest = true, bool nan_first = largest>
struct Ranked {
    // As wide as the value, so that both are copied at once.
    using Index = std::conditional_t<sizeof(C) == 8, int64_t, int>;

    C value = 0;
    Index index = -1;  // nothing, which comes last

    __device__ bool before(const Ranked& other) const {
        if (index < 0 || other.index < 0) return index >= 0 && other.index < 0;
        const bool nan = value != value, other_nan = other.value != other.value;
        if (nan != other_nan) return nan == nan_first;
        if (!nan && value != other.value) return (value > other.value) == largest;
        return index < other.index;
    }
    __device__ void meet(const Ranked& other) {
        if (other.before(*this)) *this = other;
    }
    // The first of a warp's; all lanes have it.
    __device__ void reduce_warp() {
        for (int flip = 16; flip > 0; flip /= 2) {
            const C other = __shfl_xor_sync(0xFFFFFFFF, value, flip);
            meet({other, __shfl_xor_sync(0xFFFFFFFF, index, flip)});
        }
    }
    // The first of a block's, a multiple of 32 threads; all have it. Safe to call again and again.
    __device__ void reduce_block() {
        SHARED(C, values, [32]);
        SHARED(Index, indices, [32]);
        reduce_warp();
        if (blockDim.x <= 32) return;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
        __syncthreads();  // what an earlier call left may still be read
        if (lane == 0) {
            values[warp] = value;
            indices[warp] = index;
        }
        __syncthreads();
        *this = {};
        if (lane < warps) *this = {values[lane], indices[lane]};
        reduce_warp();
    }
};

}  // namespace minitorch
