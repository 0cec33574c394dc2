#include "norms.h"

#include "dispatch.h"

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

// grad, x, weight or None, mean or None, rstd, dsum or None, dx, dweight, dbias or None.
KERNEL(layer_norm_backward) {
    backward<true>(arrays);
}
KERNEL(rms_norm_backward) {
    backward<false>(arrays);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
