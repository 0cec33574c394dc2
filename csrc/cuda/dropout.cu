// Dropout whose mask is never stored: element i is kept if the i-th number of a counter-based
// generator, a function of (key, counter) alone, is at least p.
//
// A thread has one block of the generator (philox.h), and with it eight neighbouring elements, each
// of whose numbers is the upper 24 of its 32 bits divided by 2^24, as in NumPy's random(float32).

#include "philox.h"

namespace minitorch {

// threshold: the least of the 24-bit numbers that is kept. out may be x.
template <typename T, bool aligned>
__global__ void dropout_kernel(const T* x, T* out, long count, Philox random, uint32_t threshold,
                               Compute<T> factor) {
    using C = Compute<T>;
    const long threads = long(gridDim.x) * blockDim.x;
    for (long k = long(blockIdx.x) * blockDim.x + threadIdx.x; k * 8 < count; k += threads) {
        const Few<uint32_t, 8> numbers = random.block(uint64_t(k));
        const auto keep = [&](T value, int j) {
            return T(C(value) * (numbers[j] >> 8 >= threshold ? factor : C(0)));
        };
        if (aligned && k * 8 + 8 <= count) {
            Few<T, 8> v = load<8>(x + k * 8);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = keep(v[j], j);
            store(out + k * 8, v);
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (k * 8 + j < count) out[k * 8 + j] = keep(x[k * 8 + j], j);
        }
    }
}

// x, out: contiguous; what is added to the offset, or None; p, then key and counter, words of 32 bits, the lower half of each 64 first.
DEVICE_KERNEL(dropout) {
    const Array &x = arrays[0], &out = arrays[1];
    const double p = numbers[0];
    const double scaled = static_cast<double>(static_cast<float>(p)) * (1 << 24);
    auto threshold = static_cast<uint32_t>(scaled);
    if (threshold < scaled) ++threshold;
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        const bool aligned = is_aligned<T>(x.data) && is_aligned<T>(out.data);
        launch(aligned ? dropout_kernel<T, true> : dropout_kernel<T, false>,
               blocks_of_256(ceil_div(x.size, 8)), 256, 0, stream, x.as<const T>(), out.as<T>(),
               x.size, Philox(numbers + 1, arrays[2].as<const double>()), threshold, Compute<T>(p < 1 ? 1 / (1 - p) : 1));
    });
}

}  // namespace minitorch
