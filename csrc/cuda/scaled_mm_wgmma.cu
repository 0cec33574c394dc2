// The matrix product of matmul_wgmma.cu of numbers of 8 bits, sm_90a: the last step of its ladder. Tensor
// cores multiply e4m3 twice as fast as 16 bits, and memory moves half the bytes. But its three bits of a
// fraction reach from 2^-9 to 448 only, so that numbers come with scales (quantize.cu),
// as scaled.h says. While a warpgroup's threads scale, the other one multiplies.
//
// Numbers of 8 bits are multiplied along k only: both operands lie in memory like that.
//
// Registers of a thread: 168, which is the share of each of 384. No spills.

#include "persistent.h"
#include "scaled.h"

namespace minitorch {

namespace {

using P = ScaledPlan;

template <typename O, bool by_column>
__global__ void __launch_bounds__(P::threads, 1)
    scaled(const __grid_constant__ Maps maps, Batch<Number, O> batch, Order order, Scales scales) {
    const long rows = batch.first.m, columns = batch.first.n;
    const int steps = int(batch.first.k);
    make_tiles<P>(maps, order, steps,
                  [&](auto& sums, auto& ring, int consumer, const Place& at) {
                      accumulate_scaled<by_column>(sums, ring, consumer, at.row, at.column, rows,
                                                   steps, scales, columns);
                      write_tile(batch, sums, maps, at);
                  });
}

template <typename O>
void start(const Array* arrays, const double* numbers, cudaStream_t stream) {
    const Scales scales{matrix_of<const float>(arrays[6]), matrix_of<const float>(arrays[7])};
    const Batch<Number, O> batch = batch_of<Number, O>(arrays, numbers);
    by_flag(arrays[7].shape[0] == batch.first.n, [&](auto by_column) {
        launch_persistent<P>(scaled<O, by_column.value>, maps_of<P::A, P::B>(arrays, batch, true),
                             batch, 16, stream, scales);
    });
}

}  // namespace

// As batch_of, of one product: a (m, k) and b (k, n) of uint8 that are the bits of e4m3, along k, lines
// at multiples of 16 bytes; out of 16 bits or float32. left (m, blocks) and right (blocks of n, blocks),
// or (n, blocks), of float32.
DEVICE_KERNEL(scaled_mm_wgmma) {
    if (arrays[2].dtype == Dtype::float32) return start<float>(arrays, numbers, stream);
    by_half(arrays[2], [&](auto kind) { start<decltype(kind)>(arrays, numbers, stream); });
}

}  // namespace minitorch
