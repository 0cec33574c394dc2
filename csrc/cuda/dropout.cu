// Dropout whose mask is never stored: element i is kept if the i-th number of a counter-based
// generator, a function of (key, counter) alone, is at least p.
//
// The generator is Philox 4x64-10 (Salmon et al. 2011), read as NumPy's Generator.random(float32)
// reads it: block k of four 64-bit words, at counter k + 1, gives eight numbers, from the low half
// of each word first, each of them the upper 24 of its 32 bits divided by 2^24. A thread has one
// block, and with it eight neighbouring elements.

#include "rows.h"

namespace minitorch {

struct Philox {
    uint64_t key[2], counter[4];

    // The eight 32-bit numbers of block k.
    __device__ Few<uint32_t, 8> block(uint64_t k) const {
        __extension__ using Wide = unsigned __int128;
        uint64_t a = counter[0] + k + 1, b = counter[1];
        uint64_t c = counter[2], d = counter[3], k0 = key[0], k1 = key[1];
        for (int round = 0; round < 10; ++round) {
            const Wide first = Wide(0xD2E7470EE14C6C93u) * a,
                       second = Wide(0xCA5A826395121157u) * c;
            a = uint64_t(second >> 64) ^ b ^ k0;
            c = uint64_t(first >> 64) ^ d ^ k1;
            b = uint64_t(second);
            d = uint64_t(first);
            k0 += 0x9E3779B97F4A7C15u;
            k1 += 0xBB67AE8584CAA73Bu;
        }
        return {{uint32_t(a), uint32_t(a >> 32), uint32_t(b), uint32_t(b >> 32), uint32_t(c),
                 uint32_t(c >> 32), uint32_t(d), uint32_t(d >> 32)}};
    }
};

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

// x, out: contiguous; p, then key and counter, words of 32 bits, the lower half of each 64 first.
DEVICE_KERNEL(dropout) {
    const Array &x = arrays[0], &out = arrays[1];
    const double p = numbers[0];
    const double scaled = static_cast<double>(static_cast<float>(p)) * (1 << 24);
    auto threshold = static_cast<uint32_t>(scaled);
    if (threshold < scaled) ++threshold;
    const auto word = [&](int i) {
        return uint64_t(numbers[1 + 2 * i]) | uint64_t(numbers[2 + 2 * i]) << 32;
    };
    const Philox random{{word(0), word(1)}, {word(2), word(3), word(4), word(5)}};
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        const bool aligned = is_aligned<T>(x.data) && is_aligned<T>(out.data);
        launch(aligned ? dropout_kernel<T, true> : dropout_kernel<T, false>,
               blocks_of_256(ceil_div(x.size, 8)), 256, 0, stream, x.as<const T>(), out.as<T>(),
               x.size, random, threshold, Compute<T>(p < 1 ? 1 / (1 - p) : 1));
    });
}

}  // namespace minitorch
