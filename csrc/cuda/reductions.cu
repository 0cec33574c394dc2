// The sum of every row. A long row is given several blocks, whose sums are added in a second
// launch.
//
// Sums are made in an order that the shape alone decides.

#include "reduce.h"
#include "rows.h"

namespace minitorch {

// Of columns `length` * blockIdx.y to `length` more.
template <typename T, typename O, int n>
__global__ void row_sum_kernel(const T* x, O* out, long columns, long length) {
    using C = Compute<T>;
    const T* row = x + long(blockIdx.x) * columns;
    const long begin = blockIdx.y * length, end = min(columns, begin + length);
    C total = 0;
    for (long i = begin + threadIdx.x * n; i < end; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(row + i);
        for (int j = 0; j < n; ++j) total += C(v[j]);
    }
    total = reduce_block<Plus>(total, C(0));
    if (threadIdx.x == 0) out[long(blockIdx.x) * gridDim.y + blockIdx.y] = O(total);
}

// x (rows, columns), contiguous; out (rows); space (rows, pieces) in what sums are made in, or
// None: one piece.
DEVICE_KERNEL(row_sum) {
    const Array &x = arrays[0], &out = arrays[1], &space = arrays[2];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const unsigned rows = unsigned(x.shape[0]);
        const long columns = x.shape[1], pieces = space ? space.shape[1] : 1;
        by_width<T>(columns, {x.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            const long length = long(ceil_div(columns, pieces * n)) * n;
            const unsigned threads = row_threads(length / n);
            if (pieces == 1)
                launch(row_sum_kernel<T, T, n>, rows, threads, 0, stream, x.as<const T>(),
                       out.as<T>(), columns, length);
            else
                launch(row_sum_kernel<T, C, n>, dim3(rows, unsigned(pieces)), threads, 0, stream,
                       x.as<const T>(), space.as<C>(), columns, length);
        });
        if (pieces > 1)
            launch(row_sum_kernel<C, T, 1>, rows, row_threads(pieces), 0, stream,
                   space.as<const C>(), out.as<T>(), pieces, pieces);
    });
}

}  // namespace minitorch
