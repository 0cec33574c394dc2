// Arithmetic, conversions and elementary functions on large arrays of one shape, in pieces for all
// threads.

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

KERNEL(cast) {  // x, out: contiguous, of one size; one of float32, the other of bfloat16
    const Array &x = arrays[0], &out = arrays[1];
    require(out.size == x.size, "cast: arrays that do not fit");
    const auto same = [](Vector<float> values) { return values; };
    if (x.dtype == Dtype::float32 && out.dtype == Dtype::bfloat16)
        map(x.size, same, out.as<bfloat16>(), x.as<const float>());
    else if (x.dtype == Dtype::bfloat16 && out.dtype == Dtype::float32)
        map(x.size, same, out.as<float>(), x.as<const bfloat16>());
    else
        fail("cast: expected float32 and bfloat16");
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
