// Rows of a table by their numbers, and the transpose of that: rows of a gradient, each added to
// the row of the table that it came from.
//
// The transpose meets the same row many times. Indices are sorted; one block has all rows of one
// index, side by side in the sorted order, and adds them in an order that is always the same. Up to
// some ten thousand indices are sorted by counting for each how many come before it: quadratic, but
// one launch, which waits for nothing and so can be part of a CUDA graph.
//
// Source: PyTorch's embedding_dense_backward.

#include "rows.h"

namespace minitorch {

// NaN where an index is no row.
template <typename T, int n>
__global__ void embedding_kernel(const T* weight, const int64_t* index, T* out, long count,
                                 long rows, long features) {
    const long threads = long(gridDim.x) * blockDim.x, steps = features / n;
    for (long i = long(blockIdx.x) * blockDim.x + threadIdx.x; i < count * steps; i += threads) {
        const long at = i / steps, column = i % steps * n, row = index[at];
        Few<T, n> v;
        if (row >= 0 && row < rows)
            v = load<n>(weight + row * features + column);
        else
            for (int j = 0; j < n; ++j) v[j] = T(float(NAN));
        store(out + at * features + column, v);
    }
}

// A thread to an index: its place is the number of those that are smaller, or equal and before it. A
// tile that lies before the block's own counts with its equals, one behind it without.
__global__ void embedding_order_kernel(const int64_t* index, int64_t* sorted, int64_t* order,
                                       long count) {
    constexpr int size = 256;
    SHARED(int64_t, tile, [size]);
    const long own = long(blockIdx.x) * size, i = own + threadIdx.x;
    const int64_t row = i < count ? index[i] : 0;
    long place = 0;
    for (long start = 0; start < count; start += size) {
        __syncthreads();  // the tile before may still be read
        if (start + threadIdx.x < count) tile[threadIdx.x] = index[start + threadIdx.x];
        __syncthreads();
        const int here = int(min(long(size), count - start));
        const int equals = start < own ? here : start == own ? threadIdx.x : 0;
        for (int j = 0; j < here; ++j) place += tile[j] < row + (j < equals);
    }
    if (i >= count) return;
    sorted[place] = row;
    order[place] = i;
}

// Blocks of 32 x 8: n columns to a thread, the rows of an index interleaved over the eight warps.
// sorted: the indices in rising order; order: where each was. out must be filled, with zeros
// perhaps.
template <typename T, int n>
__global__ void embedding_backward_kernel(const T* grad, const int64_t* sorted,
                                          const int64_t* order, T* out, long count, long rows,
                                          long features) {
    using C = Compute<T>;
    SHARED(C, sums, [8][32 * n + 1]);
    const long first = blockIdx.x, row = sorted[first];
    if (row < 0 || row >= rows || (first > 0 && sorted[first - 1] == row)) return;
    const long column = (long(blockIdx.y) * 32 + threadIdx.x) * n;
    const bool inside = column < features;
    Few<C, n> total{};
    for (long i = first + threadIdx.y; i < count && sorted[i] == row; i += 8)
        if (inside) {
            const Few<T, n> g = load<n>(grad + order[i] * features + column);
            for (int j = 0; j < n; ++j) total[j] += C(g[j]);
        }
    for (int j = 0; j < n; ++j) sums[threadIdx.y][j * 32 + threadIdx.x] = total[j];
    __syncthreads();
    if (threadIdx.y > 0 || !inside) return;
    const Few<T, n> before = load<n>(out + row * features + column);
    Few<T, n> to;
    for (int j = 0; j < n; ++j) {
        C sum = C(before[j]);
        for (int part = 0; part < 8; ++part) sum += sums[part][j * 32 + threadIdx.x];
        to[j] = T(sum);
    }
    store(out + row * features + column, to);
}

DEVICE_KERNEL(embedding) {  // weight (rows, features), index (count), int64, out (count, features)
    const Array &weight = arrays[0], &index = arrays[1], &out = arrays[2];
    by_dtype(weight, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(weight.shape[1], {weight.data, out.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(embedding_kernel<T, n>, blocks_of_256(out.size / n), 256, 0, stream,
                   weight.as<const T>(), index.as<const int64_t>(), out.as<T>(), index.size,
                   weight.shape[0], weight.shape[1]);
        });
    });
}

// index, sorted, order: (count), int64.
DEVICE_KERNEL(embedding_order) {
    launch(embedding_order_kernel, ceil_div(arrays[0].size, 256), 256, 0, stream,
           arrays[0].as<const int64_t>(), arrays[1].as<int64_t>(), arrays[2].as<int64_t>(),
           arrays[0].size);
}

// grad (count, features), sorted and order (count), int64, out (rows, features), which is added to.
DEVICE_KERNEL(embedding_backward) {
    const Array &grad = arrays[0], &sorted = arrays[1], &order = arrays[2], &out = arrays[3];
    by_dtype(grad, [&](auto kind) {
        using T = decltype(kind);
        const long features = grad.shape[1];
        by_width<T>(features, {grad.data, out.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            const dim3 grid(unsigned(grad.shape[0]), ceil_div(features, 32 * n));
            launch(embedding_backward_kernel<T, n>, grid, dim3(32, 8), 0, stream,
                   grad.as<const T>(), sorted.as<const int64_t>(), order.as<const int64_t>(),
                   out.as<T>(), grad.shape[0], out.shape[0], features);
        });
    });
}

}  // namespace minitorch
