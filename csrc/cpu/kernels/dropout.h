// Dropout whose mask is never stored: element i is kept if the i-th number of a counter-based
// generator, a function of (key, counter) alone, is at least p.
//
// The generator is Philox 4x64-10 (Salmon et al. 2011), read as NumPy's Generator.random(float32)
// reads it: block k of four 64-bit words, at counter k + 1, gives eight numbers, from the low half of
// each word first, each of them the upper 24 of its 32 bits divided by 2^24.

#pragma once

#include "../array.h"
#include "../threads.h"
#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

struct Philox {
    uint64_t key[2], counter[4];

    // The eight 32-bit numbers of block k.
    void block(uint64_t k, uint32_t* out) const {
        __extension__ using Wide = unsigned __int128;
        uint64_t a = counter[0] + k + 1, b = counter[1];
        uint64_t c = counter[2], d = counter[3], k0 = key[0], k1 = key[1];
        for (int round = 0; round < 10; ++round) {
            const Wide first = Wide(0xD2E7470EE14C6C93u) * a, second = Wide(0xCA5A826395121157u) * c;
            a = uint64_t(second >> 64) ^ b ^ k0;
            c = uint64_t(first >> 64) ^ d ^ k1;
            b = uint64_t(second);
            d = uint64_t(first);
            k0 += 0x9E3779B97F4A7C15u;
            k1 += 0xBB67AE8584CAA73Bu;
        }
        const uint64_t words[4] = {a, b, c, d};
        __builtin_memcpy(out, words, sizeof words);  // little-endian, as all that we compile for
    }
};

// out = x / (1 - p) where kept, 0 x elsewhere; threshold: the least of the 24-bit numbers that is kept.
template <typename T>
void dropout(const T* x, T* out, long count, Philox random, uint32_t threshold, Compute<T> factor) {
    using C = Compute<T>;
    using BitVector = Vector<uint32_t>;
    constexpr long kNumbers = 1 << 10;  // a piece of them at a time, eight to a block
    parallel_ranges(count, kNumbers, [=](long begin, long end) {
        alignas(64) uint32_t numbers[kNumbers];
        for (long i = begin; i < end; i += 8) random.block(uint64_t(i / 8), numbers + (i - begin));
        if constexpr (__is_same(C, float)) {
            const auto keep = [&](long i, Vector<C> values) {
                BitVector bits;
                __builtin_memcpy(&bits, numbers + i, sizeof bits);
                return values * ((bits >> 8) >= threshold ? broadcast<C>(factor) : Vector<C>{});
            };
            for_each_vector<C>(end - begin, [&](long i, auto get, auto put) {
                put(out + begin, keep(i, get(x + begin)));
            });
        } else {
            for (long i = begin; i < end; ++i)
                out[i] = x[i] * ((numbers[i - begin] >> 8) >= threshold ? factor : C(0));
        }
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
