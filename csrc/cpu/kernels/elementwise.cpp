// Arithmetic and elementary functions on large arrays of one shape, in pieces for all threads.

#include "activations.h"
#include "dispatch.h"

namespace minitorch::MT_INSTRUCTION_SET {

template <typename T>
static void add_arrays(const Array* arrays) {
    map<T>(
        arrays[2].size, [](auto a, auto b) { return a + b; }, arrays[2].as<T>(),
        arrays[0].as<const T>(), arrays[1].as<const T>());
}

KERNEL(add) {  // a, b, out: contiguous, of one shape and dtype; out may be a or b
    const Array& out = arrays[2];
    require(num_arrays == 3 && arrays[0].size == out.size && arrays[1].size == out.size &&
                arrays[0].dtype == out.dtype && arrays[1].dtype == out.dtype,
            "add: arrays that do not fit");
    by_dtype(out, "add: expected float32, float64 or bfloat16",
             [&](auto kind) { add_arrays<decltype(kind)>(arrays); });
}

template <typename F>
static void apply(const Array* arrays, F f) {
    const Array &x = arrays[0], &out = arrays[1];
    require(out.size == x.size && out.dtype == x.dtype, "elementwise: arrays that do not fit");
    by_dtype(x, "elementwise: expected float32, float64 or bfloat16", [&](auto kind) {
        using T = decltype(kind);
        map<T>(
            x.size, [f](auto values) { return f(Compute<T>{}, values); }, out.as<T>(),
            x.as<const T>());
    });
}

// x, out: contiguous, of one size and dtype.
KERNEL(exp) {
    apply(arrays, [](auto kind, auto x) { return exp<decltype(kind)>(x); });
}
KERNEL(log) {
    apply(arrays, [](auto kind, auto x) { return log<decltype(kind)>(x); });
}
KERNEL(tanh) {
    apply(arrays, [](auto kind, auto x) { return tanh<decltype(kind)>(x); });
}
KERNEL(sigmoid) {
    apply(arrays, [](auto kind, auto x) { return sigmoid<decltype(kind)>(x); });
}
KERNEL(erf) {
    apply(arrays, [](auto kind, auto x) { return erf<decltype(kind)>(x); });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
