// Matrix products of groups of rows, one after another or side by side.

#include "dispatch.h"
#include "groups.h"
#include "matmul.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "grouped product: expected float32, float64 or bfloat16";

// one(group, begin, end) for every group. Small products run one to a thread, large ones on all.
template <typename F>
static void for_groups(const Array& ends, long work_per_row, F one) {
    const auto groups = [&](long first, long last) {
        for (long e = first; e < last; ++e) {
            const Block all = rows_of(ends, e);
            one(e, all.begin, all.end);
        }
    };
    const long most = largest_group(ends);
    if (2.0 * most * work_per_row < 4e6)
        parallel_ranges(ends.size, rows_per_piece(most * work_per_row / 16 + 1),
                        [&](long first, long last) { groups(first, last); });
    else
        groups(0, ends.size);
}

// x (rows, k), weight (groups, k, n), ends (groups,), out (rows, n) contiguous:
// out[r] = x[r] weight[e] for the rows of each group.
KERNEL(grouped_mm) {
    const Array &x = arrays[0], &weight = arrays[1], &ends = arrays[2], &out = arrays[3];
    if (!out.size) return;  // NumPy gives empty arrays strides of its own
    require(num_arrays == 4 && x.ndim == 2 && weight.ndim == 3 && out.ndim == 2 &&
                x.dtype == weight.dtype && x.dtype == out.dtype && x.dim(-1) == weight.dim(-2) &&
                x.dim(-2) == out.dim(-2) && weight.dim(-1) == out.dim(-1) &&
                weight.shape[0] == ends.size && (out.stride(-1) == 1 || out.dim(-1) <= 1),
            "grouped_mm: arrays that do not fit");
    check_ends(ends, x.dim(-2));
    const long n = weight.dim(-1), k = weight.dim(-2);
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        for_groups(ends, n * k, [&](long e, long begin, long end) {
            if (begin == end) return;
            product<T, T>(
                end - begin, n, k,
                Matrix<const T>{x.as<const T>() + begin * x.stride(-2), x.stride(-2), x.stride(-1)},
                Matrix<const T>{weight.as<const T>() + e * weight.strides[0], weight.stride(-2),
                                weight.stride(-1)},
                Matrix<T>{out.as<T>() + begin * out.stride(-2), out.stride(-2), 1}, {}, nullptr);
        });
    });
}

// x (rows, m), y (rows, n), ends (groups,), out (groups, m, n) contiguous:
// out[e] = Σ x[r]ᵀ y[r] over the rows of each group, 0 for an empty one.
KERNEL(grouped_outer) {
    const Array &x = arrays[0], &y = arrays[1], &ends = arrays[2], &out = arrays[3];
    if (!out.size) return;
    require(num_arrays == 4 && x.ndim == 2 && y.ndim == 2 && out.ndim == 3 && x.dtype == y.dtype &&
                x.dtype == out.dtype && x.dim(-2) == y.dim(-2) && x.dim(-1) == out.dim(-2) &&
                y.dim(-1) == out.dim(-1) && out.shape[0] == ends.size &&
                (out.stride(-1) == 1 || out.dim(-1) <= 1),
            "grouped_outer: arrays that do not fit");
    check_ends(ends, x.dim(-2));
    const long m = out.dim(-2), n = out.dim(-1);
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        for_groups(ends, m * n, [&](long e, long begin, long end) {
            T* result = out.as<T>() + e * out.strides[0];
            if (begin == end) {
                __builtin_memset(result, 0, sizeof(T) * m * n);
                return;
            }
            product<T, T>(
                m, n, end - begin,
                Matrix<const T>{x.as<const T>() + begin * x.stride(-2), x.stride(-1), x.stride(-2)},
                Matrix<const T>{y.as<const T>() + begin * y.stride(-2), y.stride(-2), y.stride(-1)},
                Matrix<T>{result, out.stride(-2), 1}, {}, nullptr);
        });
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
