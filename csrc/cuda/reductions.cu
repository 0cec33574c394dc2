// The sum, and the largest number with its place, of every row; a block to a row, which is read
// once.
//
// Sums are made in an order that only the row's length decides. The largest is the first of equal
// ones, and NaN where there is a NaN, the first of these: as in NumPy.

#include "reduce.h"
#include "rows.h"

namespace minitorch {

template <typename C>
struct Best {
    C value;
    int index;  // -1: nothing yet

    __device__ void meet(C other, int at) {
        const bool nan = value != value, other_nan = other != other;
        const bool same = nan == other_nan && (nan || value == other);
        const bool above = other_nan > nan || (other_nan == nan && other > value);
        if (at >= 0 && (index < 0 || above || (same && at < index))) *this = {other, at};
    }
    __device__ void reduce_warp() {
        for (int flip = 16; flip > 0; flip /= 2) {
            const C other = __shfl_xor_sync(0xFFFFFFFF, value, flip);
            meet(other, __shfl_xor_sync(0xFFFFFFFF, index, flip));
        }
    }
};

template <typename T, int n>
__global__ void row_sum_kernel(const T* x, T* out, int columns) {
    using C = Compute<T>;
    const T* row = x + long(blockIdx.x) * columns;
    C total = 0;
    for (int i = threadIdx.x * n; i < columns; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(row + i);
        for (int j = 0; j < n; ++j) total += C(v[j]);
    }
    total = reduce_block<Plus>(total, C(0));
    if (threadIdx.x == 0) out[blockIdx.x] = T(total);
}

template <typename T, int n>
__global__ void row_max_kernel(const T* x, T* values, int64_t* indices, int columns) {
    using C = Compute<T>;
    SHARED(C, value, [32]);
    SHARED(int, index, [32]);
    const T* row = x + long(blockIdx.x) * columns;
    Best<C> best{C(0), -1};
    for (int i = threadIdx.x * n; i < columns; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(row + i);
        for (int j = 0; j < n; ++j) best.meet(C(v[j]), i + j);
    }
    best.reduce_warp();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    if (lane == 0) {
        value[warp] = best.value;
        index[warp] = best.index;
    }
    __syncthreads();
    if (warp > 0) return;
    best = {C(0), -1};
    if (lane < warps) best = {value[lane], index[lane]};
    best.reduce_warp();
    if (lane > 0) return;
    values[blockIdx.x] = T(best.value);
    indices[blockIdx.x] = best.index;
}

DEVICE_KERNEL(row_sum) {  // x (rows, columns), contiguous; out (rows)
    const Array &x = arrays[0], &out = arrays[1];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(x.shape[1], {x.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(row_sum_kernel<T, n>, unsigned(x.shape[0]), row_threads(x.shape[1] / n), 0,
                   stream, x.as<const T>(), out.as<T>(), int(x.shape[1]));
        });
    });
}

DEVICE_KERNEL(row_max) {  // x (rows, columns), contiguous; values, indices (rows), int64
    const Array &x = arrays[0], &values = arrays[1], &indices = arrays[2];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(x.shape[1], {x.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(row_max_kernel<T, n>, unsigned(x.shape[0]), row_threads(x.shape[1] / n), 0,
                   stream, x.as<const T>(), values.as<T>(), indices.as<int64_t>(), int(x.shape[1]));
        });
    });
}

}  // namespace minitorch
