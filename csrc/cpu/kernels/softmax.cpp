#include "softmax.h"

namespace minitorch::MT_INSTRUCTION_SET {

template <typename T>
static void softmax_rows(const Array& x, const Array& out, double scale) {
    const long columns = x.dim(-1);
    const long rows = columns ? x.size / columns : 0;
    parallel_ranges(rows, rows_per_piece(columns), [&](long begin, long end) {
        softmax(x.as<T>() + begin * columns, out.as<T>() + begin * columns, end - begin, columns,
                static_cast<T>(scale));
    });
}

KERNEL(softmax) {  // x, out: (..., columns), contiguous; scale
    const auto& x = arrays[0];
    const auto& out = arrays[1];
    require(num_arrays == 2 && x.ndim && x.size == out.size && x.dtype == out.dtype,
            "softmax: x needs a dimension, and out the size and dtype of x");
    if (x.dtype == Dtype::float32)
        softmax_rows<float>(x, out, numbers[0]);
    else if (x.dtype == Dtype::float64)
        softmax_rows<double>(x, out, numbers[0]);
    else
        fail("softmax: expected float32 or float64");
}

template <typename T>
static void softmax_backward_rows(const Array* arrays, double scale) {
    const Array &grad = arrays[0], &out = arrays[1], &dx = arrays[2];
    const long columns = dx.dim(-1);
    const long rows = columns ? dx.size / columns : 0;
    parallel_ranges(rows, rows_per_piece(columns), [&](long begin, long end) {
        const long first = begin * columns;
        softmax_backward(grad.as<T>() + first, out.as<T>() + first, dx.as<T>() + first,
                         end - begin, columns, static_cast<T>(scale));
    });
}

KERNEL(softmax_backward) {  // grad, out, dx: (..., columns), contiguous; scale
    const Array& dx = arrays[2];
    require(num_arrays == 3 && dx.ndim && arrays[0].size == dx.size && arrays[1].size == dx.size &&
                arrays[0].dtype == dx.dtype && arrays[1].dtype == dx.dtype,
            "softmax_backward: arrays that do not fit");
    if (dx.dtype == Dtype::float32)
        softmax_backward_rows<float>(arrays, numbers[0]);
    else if (dx.dtype == Dtype::float64)
        softmax_backward_rows<double>(arrays, numbers[0]);
    else
        fail("softmax_backward: expected float32 or float64");
}

}  // namespace minitorch::MT_INSTRUCTION_SET
