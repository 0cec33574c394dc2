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

template <typename T, typename O>
static void backward(const Array* arrays, const double* numbers) {
    using C = Compute<T>;
    const Array &scale = arrays[0], &x = arrays[1], &target = arrays[2], &lse = arrays[3],
                &out = arrays[4];
    cross_entropy_backward(scale.as<const C>(), x.as<const T>(), target.as<int64_t>(),
                           lse.as<const C>(), out.as<O>(), x.shape[0], x.shape[1], out.strides[0],
                           C(numbers[0]), C(numbers[1]));
}

// scale (rows,), logits, target, lse, out; smoothing, z_loss. out: stride 1 in the last dimension;
// of the dtype of logits, or bfloat16 where they are float32.
KERNEL(cross_entropy_backward) {
    const Array &x = arrays[1], &target = arrays[2], &out = arrays[4];
    check(x, target);
    require(out.ndim == 2 && out.shape[0] == x.shape[0] && out.shape[1] == x.shape[1] &&
                (out.strides[1] == 1 || out.shape[1] == 1),
            "cross_entropy: bad shapes");
    if (x.dtype == Dtype::float32 && out.dtype == Dtype::bfloat16)
        return backward<float, bfloat16>(arrays, numbers);
    require(out.dtype == x.dtype, kBadDtype);
    by_dtype(x, kBadDtype,
             [&](auto kind) { backward<decltype(kind), decltype(kind)>(arrays, numbers); });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
