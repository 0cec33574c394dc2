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

}  // namespace minitorch::MT_INSTRUCTION_SET
