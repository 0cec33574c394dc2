#include "cross_entropy.h"

#include "dispatch.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "cross_entropy: expected float32, float64 or bfloat16";

static void check(const Array& logits, const Array& target) {
    require(logits.ndim == 2 && target.dtype == Dtype::int64 && target.size == logits.shape[0],
            "cross_entropy: bad shapes");
    for (long row = 0; row < target.size; ++row)
        require(target.as<int64_t>()[row] < logits.shape[1], "cross_entropy: a target too large");
}

// logits (rows, classes), target, loss, lse (rows,), the latter two of the compute type; smoothing,
// z_loss.
KERNEL(cross_entropy) {
    const Array &x = arrays[0], &target = arrays[1], &loss = arrays[2], &lse = arrays[3];
    check(x, target);
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        cross_entropy(x.as<const T>(), target.as<int64_t>(), loss.as<C>(), lse.as<C>(), x.shape[0],
                      x.shape[1], C(numbers[0]), C(numbers[1]));
    });
}

// scale (rows,), logits, target, lse, out; smoothing, z_loss.
KERNEL(cross_entropy_backward) {
    const Array &scale = arrays[0], &x = arrays[1], &target = arrays[2], &lse = arrays[3],
                &out = arrays[4];
    check(x, target);
    require(out.size == x.size && out.dtype == x.dtype, "cross_entropy: bad shapes");
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        cross_entropy_backward(scale.as<const C>(), x.as<const T>(), target.as<int64_t>(),
                               lse.as<const C>(), out.as<T>(), x.shape[0], x.shape[1],
                               C(numbers[0]), C(numbers[1]));
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
