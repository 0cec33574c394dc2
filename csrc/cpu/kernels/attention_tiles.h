// Attention of bfloat16 in tile registers (tile_registers.h), forward. It is that of attention.h, and
// what becomes of a block of scores is the same; the products are made of other panels:
//
//     Sᵀ (keys, queries) = K Qᵀ             A: panels of keys        B: 32 queries
//     Oᵀ (dim, queries) += Vᵀ Pᵀ            A: panels of dimensions  B: Pᵀ, in pairs of keys
//
// P is rounded to bfloat16, which the processor multiplies; its sums are those of float.

#pragma once

#include "attention.h"
#include "panels.h"

namespace minitorch::MT_INSTRUCTION_SET {

// Where a block of queries is as wide as a panel.
constexpr bool kTiledAttention = kTileRegisters && kColumns<float> == kTileRows;
constexpr long kTileKeys = 256;  // keys in a block

template <typename T>
struct TiledKeys {
    Packed<T> keys, values;

    static long size(const Scores<float>& s) {
        return Packed<T>::room(s.time_k, s.dim) + Packed<T>::room(s.value_dim, s.time_k);
    }
    static void pack(const Scores<float>& s, Head<const T> k, Head<const T> v, float* to) {
        Packed<T>::template pack<false>(k, s.time_k, s.dim, to);
        Packed<T>::template pack<false>(v.transposed(), s.value_dim, s.time_k, to);
    }
    static TiledKeys at(const Scores<float>& s, const float* packed) {
        return {{packed, Packed<T>::panel(s.dim)},
                {packed + Packed<T>::room(s.time_k, s.dim), Packed<T>::panel(s.time_k)}};
    }
};

// 2^x, for x that is not above 0 by more than rounding errors, within 1.1e-4: rounding to bfloat16 alone
// changes a number by up to 3.9e-3. With n = floor(x) it is 2^n p(x - n), p the cubic of the smallest
// relative error among those with p(0) = 1 and p(1) = 2.
[[gnu::always_inline]] inline Vector<float> short_exp2(Vector<float> x) {
#if MT_VECTOR_BYTES == 64
    const auto r = (Vector<float>)_mm512_maskz_reduce_ps(0xffff, (__m512)x, _MM_FROUND_TO_NEG_INF);
    Vector<float> p = broadcast(0.07826803f);
    for (float c : {0.2263076f, 0.69542438f, 1.f}) p = p * r + c;
    const auto some = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126), _CMP_NLT_UQ);
    return (Vector<float>)_mm512_maskz_scalef_ps(some, (__m512)p, (__m512)x);
#else
    return exp2_nonpositive<float>(x);
#endif
}

// Makes weights, in pairs of keys, of the scores / factor of a block (keys, queries), the largest of
// which are `here`. Zeros fill them
// up to a whole step.
inline void take_pairs(OnlineSoftmax<float>& softmax, const Vector<float>* here, float* block,
                       long keys, float factor, float* weights, Vector<float>* shrink) {
    constexpr long columns = kColumns<float>, lanes = Lanes<float>::count;
    // The product with the factor is not rounded below, but it is in the largest score: their difference
    // is small beside 1 while they are not larger than this.
    constexpr float exact = 0x1p12f;
    Vector<float> shift[2], added[2] = {};
    softmax.raise(here, factor, shift, shrink);
    const auto large = [&](Vector<float> x) { return bits_of<float>((x > exact) | (x < -exact)); };
    if (factor != 1 && (large(shift[0]) || large(shift[1]))) {
        for (long i = 0; i < keys * columns; i += lanes)
            store(block + i, load(block + i) * factor);
        factor = 1;
    }
    const auto weigh = [&](long i, long h) __attribute__((always_inline)) {
        const Vector<float> p =
            short_exp2(load(block + i * columns + h * lanes) * factor - shift[h]);
        added[h] += p;
        return p;
    };
    long i = 0;
    for (; i + 2 <= keys; i += 2, weights += columns)
#pragma GCC unroll 2
        for (long h = 0; h < 2; ++h) {
            const Vector<float> first = weigh(i, h);
            store(weights + h * lanes, rounded_pairs(first, weigh(i + 1, h)));
        }
    if (i < keys) {
        for (long h = 0; h < 2; ++h)
            store(weights + h * lanes, rounded_pairs(weigh(i, h), Vector<float>{}));
        i += 2, weights += columns;
    }
    __builtin_memset(weights, 0, sizeof(float) * (round_up(i, kTileDepth) - i) / 2 * columns);
    softmax.add(added, shrink);
}

// A step of a panel of A with the first `depth` numbers of its rows, and zeros.
inline const float* cut_step(const float* from, long depth, float* to) {
    constexpr long row = kTileDepth / 2;
    __builtin_memset(to, 0, sizeof(float) * kTileStep);
    for (long r = 0; r < kTileRows; ++r)
        __builtin_memcpy(to + r * row, from + r * row, sizeof(bfloat16) * depth);
    return to;
}

// out and lse of the queries [first, first + count), count at most kTileRows. The thread holds
// TileRegisters.
inline void attend(const Scores<float>& s, Head<const bfloat16> q, TiledKeys<bfloat16> packed,
                   long first, long count, Head<bfloat16> out, float* lse) {
    constexpr long columns = kTileRows, lanes = Lanes<float>::count;
    const long steps = ceil_div(s.dim, kTileDepth);
    const long out_rows = round_up(s.value_dim, kTileRows);
    float* query = scratch<float>(
        0, steps * kTileStep + (out_rows + 2 * kTileKeys + kTileKeys / 2) * columns + kTileStep);
    float* sums = query + steps * kTileStep;       // Oᵀ: (value_dim, queries)
    float* block = sums + out_rows * columns;      // Sᵀ: (keys, queries)
    float* weights = block + kTileKeys * columns;  // Pᵀ: (pairs of keys, queries)
    float* bias = weights + kTileKeys / 2 * columns;
    float* edge = bias + kTileKeys * columns;
    pack_tile_columns({q.at(first, 0), q.row, q.column}, count, s.dim, query);
    const float factor = s.softcap != 0 ? s.factor() : s.factor() * kLog2E<float>;
    const bool changes = s.softcap != 0 || s.bias.data || !(factor > 0);
    const Sight<float> sight[2] = {{s, first}, {s, first + lanes}};
    OnlineSoftmax<float> softmax(s);

    const long begin = s.first_key(first) / kTileRows * kTileRows;
    const long end = s.end_of_keys(first + count - 1);
    for (long key = begin; key < end; key += kTileKeys) {
        const long keys = end - key < kTileKeys ? end - key : kTileKeys;
        // The largest are found panel by panel, while those are near, which was measured to take a
        // twentieth of the whole less; but where scores are yet to change, afterwards.
        const bool ready = !changes && s.first_key(first + count - 1) <= key &&
                           s.end_of_keys(first) >= key + keys;
        Vector<float> here[2] = {broadcast(-kInfinity<float>), broadcast(-kInfinity<float>)};
        for (long i = 0; i < keys; i += kTileRows) {
            multiply_panels<true>(keys - i, columns, steps,
                                  packed.keys.at((key + i) / kTileRows), query,
                                  block + i * columns, columns, false);
            if (ready && i > 0) softmax.largest(block + (i - kTileRows) * columns, kTileRows, here);
        }
        if (!ready)
            change_scores(s, sight, first, count, key, keys, changes ? factor : 1, block, bias);
        const long seen = ready ? (keys - 1) / kTileRows * kTileRows : 0;
        softmax.largest(block + seen * columns, keys - seen, here);
        Vector<float> shrink[2];
        take_pairs(softmax, here, block, keys, changes ? 1 : factor, weights, shrink);
        const auto shrinks = [&](long h) { return bits_of<float>(shrink[h] != 1); };
        if (key > begin && (shrinks(0) || shrinks(1)))
            for (long i = 0; i < s.value_dim; ++i)
                for (long h = 0; h < 2; ++h) {
                    float* at = sums + i * columns + h * lanes;
                    store(at, load(at) * shrink[h]);
                }
        // Values that no query of the block sees may be no numbers, and are not multiplied by 0.
        const long rest = key + keys < s.time_k ? keys % kTileDepth : 0;
        const long whole = ceil_div(keys - rest, kTileDepth);
        for (long i = 0; i < s.value_dim; i += kTileRows) {
            const float* values = packed.values.at(i / kTileRows, key / kTileDepth);
            const auto add = [&](long steps, const float* a, const float* b, bool more) {
                multiply_panels<true>(s.value_dim - i, columns, steps, a, b, sums + i * columns,
                                      columns, more);
            };
            if (whole) add(whole, values, weights, key > begin);
            if (rest)
                add(1, cut_step(values + whole * kTileStep, rest, edge),
                    weights + whole * kTileStep, key > begin || whole);
        }
    }
    if (begin >= end) __builtin_memset(sums, 0, sizeof(float) * s.value_dim * columns);
    write_queries<bfloat16, float>(sums, softmax, s.value_dim, count, block,
                                   {out.at(first, 0), out.row, out.column});
    write_normalisers(softmax, count, lse + first);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
