#include "softmax.h"

#include "dispatch.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "softmax: expected float32, float64 or bfloat16";

static void check(const Array* arrays, int count, const Array& whole) {
    require(whole.ndim == 3, "softmax: expected (outer, columns, inner)");
    for (int i = 0; i < count; ++i)
        require(arrays[i].dtype == whole.dtype &&
                    (arrays[i].size == whole.size || (whole.shape[2] == 1 && arrays[i].size == whole.shape[0])),
                "softmax: arrays that do not fit");
}

// rows(first element, rows) where inner is 1, strided(first element, begin, end) where it is not.
template <typename Rows, typename Strided>
static void by_layout(const Array& x, Rows rows, Strided strided) {
    const long outer = x.shape[0], columns = x.shape[1], inner = x.shape[2];
    if (inner == 1) {
        parallel_ranges(outer, rows_per_piece(columns),
                        [&](long begin, long end) { rows(begin, end - begin, columns); });
        return;
    }
    constexpr long kWidth = 64;
    const long groups = (inner + kWidth - 1) / kWidth;
    parallel_ranges(outer * groups, rows_per_piece(columns * kWidth), [&](long from, long to) {
        for (long piece = from; piece < to; ++piece) {
            const long begin = piece % groups * kWidth;
            strided(piece / groups * columns * inner, columns, inner, begin,
                    begin + kWidth < inner ? begin + kWidth : inner);
        }
    });
}

template <bool logarithm>
static void forward(const Array* arrays, int count, double factor) {
    const Array &x = arrays[0], &out = arrays[1];
    check(arrays, count, x);
    require(out.size == x.size, "softmax: arrays that do not fit");
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const T* from = x.as<T>();
        T* to = out.as<T>();
        const auto scale = static_cast<Compute<T>>(factor);
        by_layout(
            x,
            [=](long row, long rows, long columns) {
                if constexpr (logarithm)
                    log_softmax_rows(from + row * columns, to + row * columns, rows, columns, scale);
                else
                    softmax_rows(from + row * columns, to + row * columns, rows, columns, scale);
            },
            [=](long first, long columns, long inner, long begin, long end) {
                softmax_strided<T, logarithm>(from + first, to + first, columns, inner, begin, end,
                                              scale);
            });
    });
}

template <bool logarithm>
static void backward(const Array* arrays, int count, double factor) {
    const Array& x = arrays[2];
    check(arrays, count, x);
    require(arrays[0].size == x.size && arrays[1].size == x.size, "softmax: arrays that do not fit");
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const T *grad = arrays[0].as<T>(), *out = arrays[1].as<T>();
        T* dx = x.as<T>();
        const auto scale = static_cast<Compute<T>>(factor);
        by_layout(
            x,
            [=](long row, long rows, long columns) {
                const long first = row * columns;
                if constexpr (logarithm)
                    log_softmax_backward_rows(grad + first, out + first, dx + first, rows, columns);
                else
                    softmax_backward_rows(grad + first, out + first, dx + first, rows, columns,
                                          scale);
            },
            [=](long first, long columns, long inner, long begin, long end) {
                softmax_backward_strided<T, logarithm>(grad + first, out + first, dx + first,
                                                       columns, inner, begin, end, scale);
            });
    });
}

// x, out: (outer, columns, inner), contiguous; scale.
KERNEL(softmax) {
    forward<false>(arrays, num_arrays, numbers[0]);
}
KERNEL(log_softmax) {
    forward<true>(arrays, num_arrays, 1);
}

// grad, out, dx: (outer, columns, inner), contiguous; scale.
KERNEL(softmax_backward) {
    backward<false>(arrays, num_arrays, numbers[0]);
}
KERNEL(log_softmax_backward) {
    backward<true>(arrays, num_arrays, 1);
}

KERNEL(logsumexp) {  // x (rows, columns, 1), out (rows,)
    const Array &x = arrays[0], &out = arrays[1];
    check(arrays, num_arrays, x);
    require(x.shape[2] == 1 && out.size == x.shape[0], "logsumexp: arrays that do not fit");
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const long columns = x.shape[1];
        parallel_ranges(x.shape[0], rows_per_piece(columns), [&](long begin, long end) {
            logsumexp_rows(x.as<T>() + begin * columns, out.as<T>() + begin, end - begin, columns,
                           Compute<T>(1));
        });
    });
}

KERNEL(logsumexp_backward) {  // grad (rows,), x (rows, columns, 1), out (rows,), dx
    const Array &grad = arrays[0], &x = arrays[1], &out = arrays[2], &dx = arrays[3];
    check(arrays, num_arrays, x);
    require(x.shape[2] == 1 && grad.size == x.shape[0] && out.size == grad.size && dx.size == x.size,
            "logsumexp: arrays that do not fit");
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const long columns = x.shape[1];
        parallel_ranges(x.shape[0], rows_per_piece(columns), [&](long begin, long end) {
            const long first = begin * columns;
            logsumexp_backward_rows(grad.as<T>() + begin, x.as<T>() + first, out.as<T>() + begin,
                                    dx.as<T>() + first, end - begin, columns);
        });
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
