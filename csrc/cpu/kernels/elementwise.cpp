// Arithmetic on large arrays of one shape, in pieces for all threads. Memory is what limits it.

#include "activations.h"

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
    if (out.dtype == Dtype::float32)
        add_arrays<float>(arrays);
    else if (out.dtype == Dtype::float64)
        add_arrays<double>(arrays);
    else if (out.dtype == Dtype::bfloat16)
        add_arrays<bfloat16>(arrays);
    else
        fail("add: expected float32, float64 or bfloat16");
}

}  // namespace minitorch::MT_INSTRUCTION_SET
