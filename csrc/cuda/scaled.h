// Products of 8-bit floats with a scale for each block, by a warpgroup: what scaled_mm_wgmma.cu and
// experts_wgmma.cu share.
//
//     out[m, n] = Σ over blocks b of 128 steps of k:  left[m, b] right[n / 128, b] Σ_k a[m, k] b[n, k]
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

// A warpgroup's 64 rows from `row` on, of which those before `end` have scales.
__device__ inline void accumulate_scaled(Sums<ScaledPlan::columns>& sums, Ring<ScaledPlan>& ring,
                                         int consumer, int row, int column, long end, int steps,
                                         const Scales& scales) {
    using P = ScaledPlan;
    Sums<P::columns> product;
    sums.clear();
    const long first = row + sums.row();
    for (int k = 0, block = 0; k < steps; k += kScaledBlock, ++block, ring.advance()) {
        const float right = scales.right(column / kScaledBlock, block);
        const float both[2] = {scales.left(min(first, end - 1), block) * right,
                               scales.left(min(first + 8, end - 1), block) * right};
        ptx::mbarrier_wait(&ring.full[ring.slot], ring.parity);
        product.template add_product<Number, P::A, P::B>(ring.a(), consumer, ring.b(), false);
        ptx::wgmma_wait<0>(product.x);
        ring.release(ring.slot);
#pragma unroll
        for (int e = 0; e < P::columns / 2; ++e) sums.x[e] += both[e / 2 % 2] * product.x[e];
    }
}

}  // namespace minitorch
