// Philox 4x64-10, a generator whose numbers are a function of (key, counter) alone.
//
// Numbers come as NumPy's 32-bit draws read them: block k of four 64-bit words, at counter k + 1,
// gives eight, from the low half of each word first. Source: Salmon et al. 2011, "Parallel random
// numbers: as easy as 1, 2, 3".

#pragma once

#include "rows.h"

namespace minitorch {

struct Philox {
    uint64_t key[2], counter[4];
    const double* shift;

    // From words of 32 bits, the lower half of each 64 first. shift: one number on the device that is
    // added to the offset, the upper half of the counter, or null; a captured launch finds its own
    // offset there in each replay.
    __host__ Philox(const double* words, const double* shift) : shift(shift) {
        const auto word = [&](int i) {
            return uint64_t(words[2 * i]) | uint64_t(words[2 * i + 1]) << 32;
        };
        for (int i = 0; i < 2; ++i) key[i] = word(i);
        for (int i = 0; i < 4; ++i) counter[i] = word(2 + i);
    }

    // The eight 32-bit numbers of block k.
    __device__ Few<uint32_t, 8> block(uint64_t k) const {
        __extension__ using Wide = unsigned __int128;
        uint64_t a = counter[0] + k + 1, b = counter[1];
        const uint64_t moved = counter[2] + (shift ? uint64_t(*shift) : 0);
        uint64_t c = moved, d = counter[3] + (moved < counter[2]), k0 = key[0], k1 = key[1];
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

}  // namespace minitorch
