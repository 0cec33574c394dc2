// Products of 8-bit floats with a scale for each block, by a warpgroup: what scaled_mm_wgmma.cu and
// experts_wgmma.cu share.
//
//     out[m, n] = Σ over blocks b of 128 steps of k:  left[m, b] right[n / 128, b] Σ_k a[m, k] b[n, k]
//
// In the gradient of a weight both operands change from one end to the other: there each column has
// scales of its own, right[n, b].
//
// Tensor cores keep about 14 bits of a sum of such products. So sums of one block alone are left to
// them. Then they are scaled, and added in float32 by the threads, who hold both: with 64 x 128 sums to a
// warpgroup, 64 and 64 of a thread's registers. A tile of 128 bytes is 128 steps: a stage of the ring is a
// block, and a tile of 128 columns has one right scale.
//
// Source: DeepSeek-V3, 2024 (arXiv 2412.19437), section 3.3.2; DeepGEMM, 2025.

#pragma once

#include "warpgroups.h"

namespace minitorch {

using Number = __nv_fp8_e4m3;
using ScaledPlan = Plan<Number, true, true, 128, 128, 6, 1>;
constexpr int kScaledBlock = kDepth<Number>;
static_assert(kScaledBlock == ScaledPlan::columns, "a tile has one right scale");

struct Scales {
    Matrix<const float> left, right;
};

// Those of a thread's columns, from `column` on: one of all 128, or of each its own.
template <bool by_column>
struct RightScales {
    float of[by_column ? ScaledPlan::columns / 4 : 1];

    __device__ RightScales(const Scales& scales, int column, long end, int block) {
        if constexpr (by_column) {
            column += Sums<ScaledPlan::columns>::column();
            ptx::make_again(column);
#pragma unroll
            for (int i = 0; i < ScaledPlan::columns / 4; ++i)
                of[i] = scales.right(min(long(column + i / 2 * 8 + i % 2), end - 1), block);
        } else {
            of[0] = scales.right(column / kScaledBlock, block);
        }
    }
    // That of sum e.
    __device__ float operator[](int e) const { return of[by_column ? e / 4 * 2 + e % 2 : 0]; }
};

// A warpgroup's 64 rows from `row` on, of which those before `end` have scales; so do columns before
// `right_end`, where each has its own. `first_block`: of the scales.
template <bool by_column = false>
__device__ void accumulate_scaled(Sums<ScaledPlan::columns>& sums, Ring<ScaledPlan>& ring,
                                  int consumer, int row, int column, long end, int steps,
                                  const Scales& scales, long right_end = 0, int first_block = 0) {
    using P = ScaledPlan;
    Sums<P::columns> product;
    sums.clear();
    const long first = row + sums.row();
    for (int k = 0, block = first_block; k < steps; k += kScaledBlock, ++block, ring.advance()) {
        const RightScales<by_column> right(scales, column, right_end, block);
        const float left[2] = {scales.left(min(first, end - 1), block),
                               scales.left(min(first + 8, end - 1), block)};
        ptx::mbarrier_wait(&ring.full[ring.slot], ring.parity);
        product.template add_product<Number, P::A, P::B>(ring.a(), consumer, ring.b(), false);
        ptx::wgmma_wait<0>(product.x);
        ring.release(ring.slot);
#pragma unroll
        for (int e = 0; e < P::columns / 2; ++e)
            sums.x[e] += left[e / 2 % 2] * right[e] * product.x[e];
    }
}

}  // namespace minitorch
