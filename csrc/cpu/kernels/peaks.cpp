// What the processor can do at most: loops that do nothing but multiply and add in registers, or
// nothing but read, or copy, memory. Every benchmark is held against them.

#include "../array.h"
#include "../threads.h"
#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

// `rounds` times 12 independent chains of acc = acc * x + y: enough to hide the latency of an FMA,
// and few enough for 16 registers.
template <typename T>
static T multiply_add(long rounds, T x, T y) {
    constexpr int kChains = 12;
    Vector<T> acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = broadcast<T>(T(i + 2));  // 1 would never change
    const Vector<T> factor = broadcast<T>(x), term = broadcast<T>(y);
#pragma GCC unroll 4
    for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < kChains; ++i) acc[i] = acc[i] * factor + term;
    }
    Vector<T> sum{};
    for (int i = 0; i < kChains; ++i) sum += acc[i];
    return sum_of_lanes<T>(sum);
}

// Every thread does 2 * 12 * lanes * rounds operations, with half as many lanes for float64. out
// receives the sums, so that no compiler leaves them out.
KERNEL(peak_arithmetic) {  // out: (threads,) float32 or float64; rounds
    const auto& out = arrays[0];
    const long rounds = static_cast<long>(numbers[0]);
    parallel_for(out.size, [&](long i) {
        if (out.dtype == Dtype::float64)
            out.as<double>()[i] = multiply_add<double>(rounds, 0.999, 0.001);
        else
            out.as<float>()[i] = multiply_add<float>(rounds, 0.999f, 0.001f);
    });
}

// Each thread sums a part of x of its own, `passes` times, from eight places at once, an eighth of
// the part each: the processor fetches ahead for every one of them, and more comes than from one
// place.
KERNEL(peak_read) {  // x: (n,) float32; out: (threads,) float32; passes
    const auto& x = arrays[0];
    const auto& out = arrays[1];
    constexpr long kPlaces = 8, lanes = Lanes<float>::count;
    const long part = x.size / out.size, apart = part / kPlaces;
    const long passes = static_cast<long>(numbers[0]);
    parallel_for(out.size, [&](long piece) {
        const float* from = x.as<float>() + piece * part;
        Vector<float> sums[kPlaces] = {};
        for (long pass = 0; pass < passes; ++pass)
            for (long i = 0; i + lanes <= apart; i += lanes)
#pragma GCC unroll 8
                for (long j = 0; j < kPlaces; ++j) sums[j] += load(from + j * apart + i);
        Vector<float> sum{};
        for (const Vector<float>& one : sums) sum += one;
        out.as<float>()[piece] = sum_of_lanes<float>(sum);
    });
}

// How many floats an operation of this instruction set takes at once.
KERNEL(lanes) {  // out: (1,) float64
    arrays[0].as<double>()[0] = Lanes<float>::count;
}

}  // namespace minitorch::MT_INSTRUCTION_SET
