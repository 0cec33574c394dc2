// The matrix product of matmul_wgmma.cu of numbers of 8 bits, sm_90a: the last step of its ladder. Tensor
// cores multiply e4m3 twice as fast as 16 bits, and memory moves half the bytes. But its three bits of a
// fraction reach from 2^-9 to 448 only, so that numbers come with scales (quantize.cu):
//
//     out[m, n] = Σ over blocks b of 128 steps of k:  left[m, b] right[n / 128, b] Σ_k a[m, k] b[n, k]
//
// Tensor cores keep about 14 bits of a sum of such products. So sums of one block alone are left to
// them. Then they are scaled, and added in float32 by the threads, who hold both: with 64 x 128 sums to a
// warpgroup, 64 and 64 of a thread's registers. Meanwhile the other warpgroup multiplies. A tile of
// 128 bytes is 128 steps: a stage of the ring is a block, and a tile of 128 columns has one right
// scale.
//
// Numbers of 8 bits are multiplied along k only: both operands lie in memory like that.
//
// Registers of a thread: 168, which is the share of each of 384. No spills.
//
// Source: DeepSeek-V3, 2024 (arXiv 2412.19437), section 3.3.2; DeepGEMM, 2025.

#include "persistent.h"

namespace minitorch {

namespace {

using Number = __nv_fp8_e4m3;
using P = Plan<Number, true, true, 128, 128, 6, 1>;
constexpr int kBlock = kDepth<Number>;
static_assert(kBlock == P::columns, "a tile has one right scale");

struct Scales {
    Matrix<const float> left, right;
};

// A warpgroup's 64 rows from `row` on.
__device__ void accumulate_scaled(Sums<P::columns>& sums, Ring<P>& ring, int consumer, int row,
                                  int column, long rows, int steps, const Scales& scales) {
    Sums<P::columns> product;
    sums.clear();
    const long first = row + sums.row();
    for (int k = 0, block = 0; k < steps; k += kBlock, ++block, ring.advance()) {
        const float right = scales.right(column / kBlock, block);
        const float both[2] = {scales.left(min(first, rows - 1), block) * right,
                               scales.left(min(first + 8, rows - 1), block) * right};
        ptx::mbarrier_wait(&ring.full[ring.slot], ring.parity);
        product.template add_product<Number, P::A, P::B>(ring.a(), consumer, ring.b(), false);
        ptx::wgmma_wait<0>(product.x);
        ring.release(ring.slot);
#pragma unroll
        for (int e = 0; e < P::columns / 2; ++e) sums.x[e] += both[e / 2 % 2] * product.x[e];
    }
}

template <typename O>
__global__ void __launch_bounds__(P::threads, 1)
    scaled(const __grid_constant__ Maps maps, Batch<Number, O> batch, Order order, Scales scales) {
    const long rows = batch.first.m;
    const int steps = int(batch.first.k);
    make_tiles<P>(maps, batch, order,
                  [&](auto& sums, auto& ring, int consumer, int row, int column) {
                      accumulate_scaled(sums, ring, consumer, row, column, rows, steps, scales);
                  });
}

template <typename O>
void start(const Array* arrays, const double* numbers, cudaStream_t stream) {
    const Scales scales{matrix_of<const float>(arrays[6]), matrix_of<const float>(arrays[7])};
    launch_persistent<P>(scaled<O>, arrays, batch_of<Number, O>(arrays, numbers), 16, true, stream,
                         scales);
}

}  // namespace

// As batch_of, of one product: a (m, k) and b (k, n) of uint8 that are the bits of e4m3, along k, lines
// at multiples of 16 bytes; out of 16 bits or float32. left (m, blocks) and right (blocks of n, blocks)
// of float32.
DEVICE_KERNEL(scaled_mm_wgmma) {
    if (arrays[2].dtype == Dtype::float32) return start<float>(arrays, numbers, stream);
    by_half(arrays[2], [&](auto kind) { start<decltype(kind)>(arrays, numbers, stream); });
}

}  // namespace minitorch
