#include "activations.h"

namespace minitorch::MT_INSTRUCTION_SET {

template <template <typename> typename F, typename T>
static void forward(const Array* arrays) {
    map<T>(
        arrays[0].size, [](auto x) { return F<Compute<T>>().value(x); }, arrays[1].as<T>(),
        arrays[0].as<const T>());
}

template <template <typename> typename F, typename T>
static void backward(const Array* arrays) {
    map<T>(
        arrays[0].size, [](auto grad, auto x) { return grad * F<Compute<T>>().slope(x); },
        arrays[2].as<T>(), arrays[0].as<const T>(), arrays[1].as<const T>());
}

template <template <typename> typename F>
static void run(const Array* arrays, int count) {
    for (int i = 1; i < count; ++i)
        require(arrays[i].size == arrays[0].size && arrays[i].dtype == arrays[0].dtype,
                "activation: arrays that do not fit");
    const bool gradient = count == 3;
    switch (arrays[0].dtype) {
        case Dtype::float32:
            return gradient ? backward<F, float>(arrays) : forward<F, float>(arrays);
        case Dtype::float64:
            return gradient ? backward<F, double>(arrays) : forward<F, double>(arrays);
        case Dtype::bfloat16:
            return gradient ? backward<F, bfloat16>(arrays) : forward<F, bfloat16>(arrays);
        default:
            fail("activation: expected float32, float64 or bfloat16");
    }
}

// x, out, or grad, x, out: contiguous, of one size.
KERNEL(silu) {
    run<Silu>(arrays, num_arrays);
}
KERNEL(gelu_tanh) {
    run<GeluTanh>(arrays, num_arrays);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
