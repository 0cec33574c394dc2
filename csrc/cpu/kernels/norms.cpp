#include "norms.h"

namespace minitorch::MT_INSTRUCTION_SET {

// f is called with an object of the storage type.
template <typename F>
static void by_dtype(const Array& x, F f) {
    switch (x.dtype) {
        case Dtype::float32:
            return f(float{});
        case Dtype::float64:
            return f(double{});
        case Dtype::bfloat16:
            return f(bfloat16{});
        default:
            fail("norm: expected float32, float64 or bfloat16");
    }
}

template <bool centred>
static void forward(const Array* arrays, const double* numbers) {
    const Array &x = arrays[0], &weight = arrays[1], &bias = arrays[2], &out = arrays[3];
    const long columns = x.dim(-1), rows = columns ? x.size / columns : 0;
    require(x.ndim == 2 && out.size == x.size && arrays[5].size == rows, "norm: bad shapes");
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        norm<T, centred>(x.as<T>(), weight.as<T>(), bias.as<T>(), out.as<T>(),
                         arrays[4].as<Compute<T>>(), arrays[5].as<Compute<T>>(), rows, columns,
                         static_cast<Compute<T>>(numbers[0]));
    });
}

template <bool centred>
static void backward(const Array* arrays) {
    const Array &grad = arrays[0], &x = arrays[1], &weight = arrays[2], &dx = arrays[5];
    const long columns = x.dim(-1), rows = columns ? x.size / columns : 0;
    require(x.ndim == 2 && grad.size == x.size && dx.size == x.size && arrays[4].size == rows &&
                arrays[6].size == columns,
            "norm: bad shapes");
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        norm_backward<T, centred>(grad.as<T>(), x.as<T>(), weight.as<T>(), arrays[3].as<C>(),
                                  arrays[4].as<C>(), dx.as<T>(), arrays[6].as<C>(),
                                  arrays[7].as<C>(), rows, columns);
    });
}

// x (rows, columns), weight, bias or None, out, mean (rows,) or None, rstd (rows,); eps.
KERNEL(layer_norm) {
    forward<true>(arrays, numbers);
}
KERNEL(rms_norm) {
    forward<false>(arrays, numbers);
}

// grad, x, weight or None, mean or None, rstd, dx, dweight, dbias or None.
KERNEL(layer_norm_backward) {
    backward<true>(arrays);
}
KERNEL(rms_norm_backward) {
    backward<false>(arrays);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
