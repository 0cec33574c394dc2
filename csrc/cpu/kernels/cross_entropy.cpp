#include "cross_entropy.h"

#include "dispatch.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "cross_entropy: expected float32, float64 or bfloat16";

// Refuses a target that is no class and not `ignored`; returns how many rows count.
static long check(const Array& logits, const Array& target, int64_t ignored) {
    require(logits.ndim == 2 && target.ndim == 1 && target.strides[0] == 1 &&
                target.dtype == Dtype::int64 && target.size == logits.shape[0],
            "cross_entropy: bad shapes");
    long kept = 0;
    bool good = true;
    for (long row = 0; row < target.size; ++row) {
        const int64_t t = target.as<int64_t>()[row];
        kept += t != ignored;
        good &= t == ignored || (t >= 0 && t < logits.shape[1]);
    }
    require(good, "cross_entropy: a target that is no class");
    return kept;
}

// logits (rows, classes), target, loss, lse (rows,), total (1,) or None, the latter three of the
// compute type; smoothing, z_loss, the target of rows that do not count, whether total is the mean of
// the others' losses or all their sum.
KERNEL(cross_entropy) {
    const Array &x = arrays[0], &target = arrays[1], &loss = arrays[2], &lse = arrays[3],
                &total = arrays[4];
    const auto ignored = static_cast<int64_t>(numbers[2]);
    const long kept = check(x, target, ignored);
    require(loss.size == target.size && lse.size == target.size, "cross_entropy: bad shapes");
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        cross_entropy(x.as<const T>(), target.as<int64_t>(), ignored, loss.as<C>(), lse.as<C>(),
                      x.shape[0], x.shape[1], C(numbers[0]), C(numbers[1]));
        if (!total) return;
        double sum = 0;
        for (long row = 0; row < loss.size; ++row) sum += loss.as<C>()[row];
        *total.as<C>() = static_cast<C>(numbers[3] ? sum / static_cast<double>(kept) : sum);
    });
}

template <typename T, typename O>
static void backward(const Array* arrays, const double* numbers, long kept) {
    using C = Compute<T>;
    const Array &scale = arrays[0], &x = arrays[1], &target = arrays[2], &lse = arrays[3],
                &out = arrays[4];
    const C count = static_cast<C>(numbers[3] && kept ? kept : 1);
    cross_entropy_backward(scale.as<const C>(), scale.size > 1, count, x.as<const T>(),
                           target.as<int64_t>(), static_cast<int64_t>(numbers[2]),
                           lse.as<const C>(), out.as<O>(), x.shape[0], x.shape[1], out.strides[0],
                           C(numbers[0]), C(numbers[1]));
}

// scale (1,) or (rows,), logits, target, lse, out; the numbers of the forward. out: stride 1 in the
// last dimension; of the dtype of logits, or bfloat16 where they are float32.
KERNEL(cross_entropy_backward) {
    const Array &scale = arrays[0], &x = arrays[1], &target = arrays[2], &out = arrays[4];
    const long kept = check(x, target, static_cast<int64_t>(numbers[2]));
    require(out.ndim == 2 && out.shape[0] == x.shape[0] && out.shape[1] == x.shape[1] &&
                (out.strides[1] == 1 || out.shape[1] == 1) &&
                (scale.size == 1 || scale.size == target.size) && arrays[3].size == target.size,
            "cross_entropy: bad shapes");
    if (x.dtype == Dtype::float32 && out.dtype == Dtype::bfloat16)
        return backward<float, bfloat16>(arrays, numbers, kept);
    require(out.dtype == x.dtype, kBadDtype);
    by_dtype(x, kBadDtype,
             [&](auto kind) { backward<decltype(kind), decltype(kind)>(arrays, numbers, kept); });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
