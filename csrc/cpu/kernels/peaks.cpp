// What the processor can do at most: loops that do nothing but multiply and add in registers, or
// nothing but read, or copy, memory. Every benchmark is held against them.

#include "../array.h"
#include "../threads.h"
#include "matmul.h"

namespace minitorch::MT_INSTRUCTION_SET {

// Operations of a round, and a number that comes out, so that no compiler leaves them out.
struct Round {
    double operations, result;
};

// `rounds` times 12 independent chains of acc = acc * x + y: enough to hide the latency of an FMA,
// and few enough for 16 registers. step(acc) is an operation on each lane of one.
constexpr int kChains = 12;
template <typename T, typename F>
static T in_chains(long rounds, const F& step) {
    Vector<T> acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = broadcast<T>(T(i + 2));  // 1 would never change
#pragma GCC unroll 4
    for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < kChains; ++i) acc[i] = step(acc[i]);
    }
    Vector<T> sum{};
    for (int i = 0; i < kChains; ++i) sum += acc[i];
    return sum_of_lanes<T>(sum);
}

template <typename T>
static Round multiply_add(long rounds) {
    const Vector<T> factor = broadcast<T>(T(0.999)), term = broadcast<T>(T(0.001));
    const T sum = in_chains<T>(rounds, [=](Vector<T> acc) { return acc * factor + term; });
    return {2.0 * kChains * Lanes<T>::count, sum};
}

#if defined(__AMX_BF16__)
// Four products at a time, as in the micro-kernel.
static Round multiply_tiles(long rounds) {
    const TileRegisters registers;
    alignas(64) float tile[256] = {};
    asm volatile("" ::: "memory");
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, tile, 64);
    _tile_loadd(5, tile, 64);
    _tile_loadd(6, tile, 64);
    _tile_loadd(7, tile, 64);
    for (long round = 0; round < rounds; ++round) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, tile, 64);
    return {4 * 2 * 16 * 16 * 32, tile[0]};
}
#endif

// As products of bfloat16 are made: in tile registers, by pairs, or as floats.
static Round multiply_bfloat16(long rounds) {
#if defined(__AMX_BF16__)
    if (tile_registers_serve()) return multiply_tiles(rounds);
#endif
    if (!kPaired<bfloat16> || !pairs_pay()) return multiply_add<float>(rounds);
    const bfloat16 number = narrow(0.01f);
    const Pair pair{number, number};
    const Vector<float> factor = broadcast(load_one(&pair));
    const float sum = in_chains<float>(
        rounds, [=](Vector<float> acc) { return add_pairs(acc, factor, factor); });
    return {4.0 * kChains * Lanes<float>::count, sum};
}

// out: (threads,) float32, float64 or bfloat16; operations: (1,) float64; rounds. Every thread does so
// many rounds, and `operations` is what one of them has.
KERNEL(peak_arithmetic) {
    const Array &out = arrays[0], &operations = arrays[1];
    const long rounds = static_cast<long>(numbers[0]);
    parallel_for(out.size, [&](long i) {
        Round round;
        if (out.dtype == Dtype::float64)
            out.as<double>()[i] = (round = multiply_add<double>(rounds)).result;
        else if (out.dtype == Dtype::float32)
            out.as<float>()[i] = static_cast<float>((round = multiply_add<float>(rounds)).result);
        else
            store_one(out.as<bfloat16>() + i,
                      static_cast<float>((round = multiply_bfloat16(rounds)).result));
        if (i == 0) operations.as<double>()[0] = round.operations;
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

}  // namespace minitorch::MT_INSTRUCTION_SET
