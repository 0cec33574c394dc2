#include "cross_entropy.h"

namespace minitorch::MT_INSTRUCTION_SET {

static void check(const Array& logits, const Array& target) {
    require(logits.ndim == 2 && target.dtype == Dtype::int64 && target.size == logits.shape[0],
            "cross_entropy: bad shapes");
    for (long row = 0; row < target.size; ++row)
        require(target.as<int64_t>()[row] < logits.shape[1], "cross_entropy: a target too large");
}

KERNEL(cross_entropy) {  // logits (rows, classes), target, loss, lse (rows,); smoothing
    const Array &x = arrays[0], &target = arrays[1], &loss = arrays[2], &lse = arrays[3];
    check(x, target);
    if (x.dtype == Dtype::float32)
        cross_entropy(x.as<float>(), target.as<int64_t>(), loss.as<float>(), lse.as<float>(),
                      x.shape[0], x.shape[1], static_cast<float>(numbers[0]));
    else
        cross_entropy(x.as<double>(), target.as<int64_t>(), loss.as<double>(), lse.as<double>(),
                      x.shape[0], x.shape[1], numbers[0]);
}

KERNEL(cross_entropy_backward) {  // scale (rows,), logits, target, lse, out; smoothing
    const Array &scale = arrays[0], &x = arrays[1], &target = arrays[2], &lse = arrays[3],
                &out = arrays[4];
    check(x, target);
    if (x.dtype == Dtype::float32)
        cross_entropy_backward(scale.as<float>(), x.as<float>(), target.as<int64_t>(),
                               lse.as<float>(), out.as<float>(), x.shape[0], x.shape[1],
                               static_cast<float>(numbers[0]));
    else
        cross_entropy_backward(scale.as<double>(), x.as<double>(), target.as<int64_t>(),
                               lse.as<double>(), out.as<double>(), x.shape[0], x.shape[1],
                               numbers[0]);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
