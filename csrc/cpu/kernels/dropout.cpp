#include "dropout.h"

#include "dispatch.h"

namespace minitorch::MT_INSTRUCTION_SET {

KERNEL(dropout) {  // x, out: contiguous, out may be x; random (6,), int64: key, counter; p
    const Array &x = arrays[0], &out = arrays[1], &random = arrays[2];
    require(out.size == x.size && out.dtype == x.dtype && random.dtype == Dtype::int64 &&
                random.size == 6,
            "dropout: arrays that do not fit");
    const auto* words = random.as<const uint64_t>();
    const Philox philox{{words[0], words[1]}, {words[2], words[3], words[4], words[5]}};
    const double p = numbers[0];
    const double scaled = static_cast<double>(static_cast<float>(p)) * (1 << 24);
    auto threshold = static_cast<uint32_t>(scaled);
    if (threshold < scaled) ++threshold;
    by_dtype(x, "dropout: expected float32, float64 or bfloat16", [&](auto kind) {
        using T = decltype(kind);
        dropout(x.as<const T>(), out.as<T>(), x.size, philox, threshold,
                static_cast<Compute<T>>(p < 1 ? 1 / (1 - p) : 1));
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
