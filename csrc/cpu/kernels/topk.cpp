#include "topk.h"

#include "../threads.h"
#include "dispatch.h"

namespace minitorch::MT_INSTRUCTION_SET {

KERNEL(topk) {  // x (rows, columns), indices (rows, k) int64: contiguous; whether the largest
    const Array &x = arrays[0], &indices = arrays[1];
    require(x.ndim == 2 && indices.ndim == 2 && indices.dtype == Dtype::int64 &&
                x.shape[0] == indices.shape[0] && 0 < indices.shape[1] &&
                indices.shape[1] <= x.shape[1],
            "topk: arrays that do not fit");
    const long columns = x.shape[1], k = indices.shape[1];
    by_dtype(x, "topk: expected float32, float64 or bfloat16", [&](auto kind) {
        using T = decltype(kind);
        parallel_ranges(x.shape[0], rows_per_piece(2 * columns), [&](long begin, long end) {
            for (long r = begin; r < end; ++r) {
                const T* row = x.as<T>() + r * columns;
                int64_t* to = indices.as<int64_t>() + r * k;
                if (numbers[0] != 0)
                    best<T, true>(row, columns, k, to);
                else
                    best<T, false>(row, columns, k, to);
            }
        });
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
