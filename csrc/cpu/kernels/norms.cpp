#include "norms.h"

#include "dispatch.h"
#include "functions.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "norm: expected float32, float64 or bfloat16";

template <bool centred>
static void forward(const Array* arrays, const double* numbers) {
    const Array &x = arrays[0], &residual = arrays[1], &out = arrays[4], &sum = arrays[5];
    const long columns = x.dim(-1), rows = columns ? x.size / columns : 0;
    require(x.ndim == 2 && out.size == x.size && arrays[7].size == rows &&
                (!residual || (residual.size == x.size && sum.size == x.size)),
            "norm: bad shapes");
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const auto run = [&]<typename W>(const W* weight, const W* bias) {
            norm<T, centred>(x.as<T>(), residual.as<T>(), weight, bias, out.as<T>(), sum.as<T>(),
                             arrays[6].as<C>(), arrays[7].as<C>(), rows, columns, C(numbers[0]));
        };
        const Array &weight = arrays[2], &bias = arrays[3];
        const bool as_x = weight ? weight.dtype == x.dtype : bias && bias.dtype == x.dtype;
        require(!weight || !bias || weight.dtype == bias.dtype, "norm: weight and bias differ");
        as_x ? run(weight.as<const T>(), bias.as<const T>())
             : run(weight.as<const C>(), bias.as<const C>());
    });
}

template <bool centred>
static void backward(const Array* arrays) {
    const Array &grad = arrays[0], &x = arrays[1], &dsum = arrays[5], &dx = arrays[6];
    const long columns = x.dim(-1), rows = columns ? x.size / columns : 0;
    require(x.ndim == 2 && grad.size == x.size && dx.size == x.size && arrays[4].size == rows &&
                arrays[7].size == columns && (!dsum || dsum.size == x.size),
            "norm: bad shapes");
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        norm_backward<T, centred>(grad.as<T>(), x.as<T>(), arrays[2].as<C>(), arrays[3].as<C>(),
                                  arrays[4].as<C>(), dsum.as<T>(), dx.as<T>(), arrays[7].as<C>(),
                                  arrays[8].as<C>(), rows, columns);
    });
}

// x (rows, columns), residual or None, weight, bias or None, out, sum or None, mean (rows,) or None,
// rstd (rows,); eps. Weights are of x's type or of the compute type, statistics of the latter.
KERNEL(layer_norm) {
    forward<true>(arrays, numbers);
}
KERNEL(rms_norm) {
    forward<false>(arrays, numbers);
}

// x, gate, out (rows, columns), weight (columns,) or None, rstd (rows,): out = s(gate) x rstd weight, s
// the logistic function; eps. All of one type.
KERNEL(gated_rms_norm) {
    const Array &x = arrays[0], &gate = arrays[1], &weight = arrays[2], &out = arrays[3];
    const long columns = x.dim(-1), rows = columns ? x.size / columns : 0;
    require(num_arrays == 5 && x.ndim == 2 && gate.size == x.size && out.size == x.size &&
                gate.dtype == x.dtype && arrays[4].size == rows &&
                (!weight || (weight.size == columns && weight.dtype == x.dtype)),
            "gated_rms_norm: bad shapes");
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        parallel_ranges(rows, rows_per_piece(4 * columns), [&](long begin, long end) {
            const T* scale = weight.as<T>();
            for (long row = begin; row < end; ++row) {
                const T *from = x.as<T>() + row * columns, *by = gate.as<T>() + row * columns;
                T mean, rstd;
                statistics<T, false>(from, columns, T(numbers[0]), mean, rstd);
                arrays[4].as<T>()[row] = rstd;
                for_each_vector<T>(columns, [&](long, auto get, auto put) {
                    const Vector<T> y = get(from) * rstd * sigmoid<T>(get(by));
                    put(out.as<T>() + row * columns, scale ? y * get(scale) : y);
                });
            }
        });
    });
}

// grad, x, gate, weight or None, rstd; dx, dgate, dweight. dx first holds the gradient of the norm.
KERNEL(gated_rms_norm_backward) {
    const Array &grad = arrays[0], &x = arrays[1], &gate = arrays[2], &weight = arrays[3];
    const Array &rstd = arrays[4], &dx = arrays[5], &dgate = arrays[6], &dweight = arrays[7];
    const long columns = x.dim(-1), rows = columns ? x.size / columns : 0;
    require(num_arrays == 8 && x.ndim == 2 && grad.size == x.size && gate.size == x.size &&
                dx.size == x.size && dgate.size == x.size && rstd.size == rows &&
                dweight.size == columns && grad.dtype == x.dtype && gate.dtype == x.dtype &&
                (!weight || (weight.size == columns && weight.dtype == x.dtype)),
            "gated_rms_norm: bad shapes");
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const T* scale = weight.as<T>();
        parallel_ranges(rows, rows_per_piece(4 * columns), [&](long begin, long end) {
            for (long row = begin; row < end; ++row) {
                const long at = row * columns;
                const T deviation = rstd.as<T>()[row];
                for_each_vector<T>(columns, [&](long, auto get, auto put) {
                    const Vector<T> s = sigmoid<T>(get(gate.as<T>() + at));
                    const Vector<T> g = get(grad.as<T>() + at) * s;
                    const Vector<T> y = get(x.as<T>() + at) * deviation * (T(1) - s) * g;
                    put(dgate.as<T>() + at, scale ? y * get(scale) : y);
                    put(dx.as<T>() + at, g);
                });
            }
        });
        norm_backward<T, false>(dx.as<T>(), x.as<T>(), scale, nullptr, rstd.as<T>(), nullptr,
                                dx.as<T>(), dweight.as<T>(), nullptr, rows, columns);
    });
}

// grad, x, weight or None, mean or None, rstd, dsum or None, dx, dweight, dbias or None.
KERNEL(layer_norm_backward) {
    backward<true>(arrays);
}
KERNEL(rms_norm_backward) {
    backward<false>(arrays);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
