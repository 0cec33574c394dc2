// Attention of float in tile registers, forward: that of attention.h, with products of panels in pieces
// (pieces.h), which lie as in attention_tiles.h. Weights are at most 1, and those that are lost since
// they are too small beside it do not matter. What is added up under one maximum goes to the sums by
// vectors, which round less often.

#pragma once

#include "attention_tiles.h"

namespace minitorch::MT_INSTRUCTION_SET {

// With fewer keys, cutting them takes longer than it saves.
constexpr long kLeastKeysInPieces = 128;

// Whether queries of this magnitude can go past the keys [begin, end), and weights past the values.
inline bool fit_in_pieces(const Scores<float>& s, const TiledKeys<float>& packed, float queries,
                          long begin, long end) {
    const long steps = ceil_div(s.dim, kTileDepth), value_steps = ceil_div(s.time_k, kTileDepth);
    bool fit = true;
    for (long key = begin; key < end; key += kTileRows)
        fit &= scores_fit_in_pieces(magnitude_of(packed.keys.at(key / kTileRows), steps), queries);
    for (long i = 0; i < s.value_dim; i += kTileRows)
        fit &= fits_in_pieces(magnitude_of(packed.values.at(i / kTileRows), value_steps), 1);
    return fit;
}

// Makes weights, in pieces, of the scores of a block (keys, queries), and zeros up to a whole step.
inline void take_pieces(OnlineSoftmax<float>& softmax, float* block, long keys, long steps,
                        float* weights, Vector<float>* shrink) {
    constexpr long columns = kTileRows, lanes = Lanes<float>::count;
    const Vector<float> nothing = broadcast(-kInfinity<float>);
    Vector<float> here[2] = {nothing, nothing}, shift[2], added[2] = {};
    for (long i = keys * columns; i < steps * kTileDepth * columns; i += lanes)
        store(block + i, nothing);
    softmax.largest(block, keys, here);
    softmax.raise(here, 1, shift, shrink);
    for (long i = 0; i < steps * kTileDepth; i += 2) {
        float* to = weights + i / kTileDepth * kPiecesStep + i % kTileDepth / 2 * columns;
        for (long h = 0; h < 2; ++h) {
            const auto weigh = [&](long row) __attribute__((always_inline)) {
                const Vector<float> p =
                    exp2_nonpositive<float>(load(block + row * columns + h * lanes) - shift[h]);
                added[h] += p;
                return p;
            };
            const Vector<float> first = weigh(i);
            store_pairs(Split(first), Split(weigh(i + 1)), to + h * lanes);
        }
    }
    softmax.add(added, shrink);
}

// out and lse of the queries [first, first + count), count at most kTileRows, unless there are numbers
// that do not fit. The thread holds TileRegisters.
inline bool attend(const Scores<float>& s, Head<const float> q, TiledKeys<float> packed,
                   long first, long count, Head<float> out, float* lse) {
    constexpr long columns = kTileRows, lanes = Lanes<float>::count;
    const long steps = ceil_div(s.dim, kTileDepth), deep = steps * kTileDepth;
    const long out_rows = round_up(s.value_dim, kTileRows);
    float* query = scratch<float>(0, steps * kPiecesStep + (deep + out_rows + 2 * kTileKeys) * columns +
                                         kTileKeys / kTileDepth * kPiecesStep);
    float* wide = query + steps * kPiecesStep;    // Qᵀ: (dim, queries)
    float* sums = wide + deep * columns;          // Oᵀ: (value_dim, queries)
    float* block = sums + out_rows * columns;     // Sᵀ: (keys, queries)
    float* bias = block + kTileKeys * columns;    // that of the block
    float* weights = bias + kTileKeys * columns;  // Pᵀ in pieces
    const float factor = s.softcap != 0 ? s.factor() : s.factor() * kLog2E<float>;
    pack_panel<float, float, columns>({q.at(first, 0), q.row, q.column}, count, s.dim, wide);
    __builtin_memset(wide + s.dim * columns, 0, sizeof(float) * (deep - s.dim) * columns);
    for (long i = 0; i < s.dim * columns; i += lanes) store(wide + i, load(wide + i) * factor);
    Magnitude magnitude;
    for (long i = 0; i < steps; ++i)
        split_columns(wide + i * kTileDepth * columns, columns, query + i * kPiecesStep, magnitude);
    const long begin = s.first_key(first) / kTileRows * kTileRows;
    const long end = s.end_of_keys(first + count - 1);
    if (!fit_in_pieces(s, packed, magnitude.largest(), begin, end)) return false;
    const Sight<float> sight[2] = {{s, first}, {s, first + lanes}};
    OnlineSoftmax<float> softmax(s);

    for (long key = begin; key < end; key += kTileKeys) {
        const long keys = end - key < kTileKeys ? end - key : kTileKeys;
        for (long i = 0; i < keys; i += kTileRows)
            multiply_pieces(keys - i, columns, steps, packed.keys.at((key + i) / kTileRows), query,
                            block + i * columns);
        change_scores(s, sight, first, count, key, keys, 1.f, block, bias);
        const long key_steps = ceil_div(keys, kTileDepth);
        Vector<float> shrink[2];
        take_pieces(softmax, block, keys, key_steps, weights, shrink);
        for (long i = 0; i < s.value_dim; i += kTileRows) {
            alignas(64) float here[kTileRows * columns];
            multiply_pieces(s.value_dim - i, columns, key_steps,
                            packed.values.at(i / kTileRows, key / kTileDepth), weights, here);
            for (long r = 0; r < kTileRows && r < s.value_dim - i; ++r)
                for (long h = 0; h < 2; ++h) {
                    const long at = r * columns + h * lanes;
                    float* sum = sums + i * columns + at;
                    store(sum, key == begin ? load(here + at) : load(here + at) + load(sum) * shrink[h]);
                }
        }
    }
    if (begin >= end) __builtin_memset(sums, 0, sizeof(float) * s.value_dim * columns);
    write_queries<float, float>(sums, softmax, s.value_dim, count, block,
                                {out.at(first, 0), out.row, out.column});
    write_normalisers(softmax, count, lse + first);
    return true;
}

}  // namespace minitorch::MT_INSTRUCTION_SET
