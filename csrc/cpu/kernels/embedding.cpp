#include "embedding.h"

#include "dispatch.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "embedding: expected float32, float64 or bfloat16";

// table (size, columns) and rows (any number, columns) of it, with an index for each of these.
static void check(const Array& table, const Array& index, const Array& rows) {
    require(table.ndim == 2 && rows.ndim == 2 && rows.shape[1] == table.shape[1] &&
                index.dtype == Dtype::int64 && index.size == rows.shape[0] &&
                rows.dtype == table.dtype,
            "embedding: arrays that do not fit");
    for (long i = 0; i < index.size; ++i)
        require(0 <= index.as<int64_t>()[i] && index.as<int64_t>()[i] < table.shape[0],
                "embedding: an index out of range");
}

KERNEL(embedding) {  // table, index, out: contiguous
    const Array &table = arrays[0], &index = arrays[1], &out = arrays[2];
    check(table, index, out);
    by_dtype(table, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        gather_rows(table.as<const T>(), index.as<int64_t>(), out.as<T>(), out.shape[0],
                    out.shape[1]);
    });
}

KERNEL(embedding_backward) {  // grad, index, out: contiguous; accumulate: add to what is in out
    const Array &grad = arrays[0], &index = arrays[1], &out = arrays[2];
    check(out, index, grad);
    by_dtype(out, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        scatter_add_rows(grad.as<const T>(), index.as<int64_t>(), out.as<T>(), grad.shape[0],
                         out.shape[0], out.shape[1], numbers[0] != 0);
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
