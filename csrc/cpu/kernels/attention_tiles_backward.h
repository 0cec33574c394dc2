// Attention's gradients of bfloat16 in tile registers: attention_backward.h with other products. As in
// attention_tiles.h blocks lie turned, keys down and queries across.
//
//     Sᵀ = K Qᵀ, dPᵀ = V dOᵀ          A: K and V by keys     B: Q and dO by queries
//     dV += Pᵀ dO, dK += dSᵀ Q         A: Pᵀ and dSᵀ          B: dO and Q by dimensions
//     dQᵀ += Kᵀ dSᵀ                    A: Kᵀ by dimensions    B: dSᵀ, in pairs of keys
//
// P and dS are rounded to bfloat16. What these lack of the gradients, the scale, is multiplied in at the
// end.

#pragma once

#include "attention_backward.h"
#include "attention_tiles.h"

namespace minitorch::MT_INSTRUCTION_SET {

// Panels of queries and of keys in a block.
constexpr long kBlockQueries = 4, kBlockKeys = 4;

// One head of keys: panels of 32 of its rows, and of 32 of its dimensions.
struct TiledKeyHead {
    const float *keys, *values, *keys_turned;

    static long panels(const Scores<float>& s) { return ceil_div(s.time_k, kTileRows); }
    static long size(const Scores<float>& s) {
        const long steps = ceil_div(s.dim, kTileDepth);
        return panels(s) * (2 * steps + ceil_div(s.value_dim, kTileDepth)) * kTileStep;
    }
    static TiledKeyHead pack(const Scores<float>& s, Head<const bfloat16> k,
                             Head<const bfloat16> v, float* to) {
        const long size = panels(s) * ceil_div(s.dim, kTileDepth) * kTileStep;
        pack_tile_rows(k, s.time_k, s.dim, to);
        pack_tile_rows(k.transposed(), s.dim, s.time_k, to + size);
        pack_tile_rows(v, s.time_k, s.value_dim, to + 2 * size);
        return {to, to + 2 * size, to + size};
    }
};

// One head of queries, in the same way, and a number of each query.
struct TiledQueryHead {
    const float *queries, *grads, *queries_turned, *grads_turned;
    const float* delta;                  // rowsum(dO O)
    const float *normalisers, *rests;
    const float* shifts;                 // (normaliser + rest) to the base 2
    const bool* far;                     // of a panel: whether a normaliser is two numbers

    static long panels(const Scores<float>& s) { return ceil_div(s.time_q, kTileRows); }
    static long size(const Scores<float>& s) {
        const long steps = ceil_div(s.dim, kTileDepth), more = ceil_div(s.value_dim, kTileDepth);
        return panels(s) * (2 * (steps + more) * kTileStep + 5 * kTileRows) + more * kTileStep +
               kTileRows * kTileRows;
    }
    static TiledQueryHead pack(const Scores<float>& s, const BackwardHead<bfloat16>& one,
                               Head<const bfloat16> k, float* to) {
        const long count = panels(s), rows = count * kTileRows;
        const long steps = ceil_div(s.dim, kTileDepth), more = ceil_div(s.value_dim, kTileDepth);
        float *queries = to, *queries_turned = queries + count * steps * kTileStep;
        float *grads = queries_turned + count * steps * kTileStep;
        float *grads_turned = grads + count * more * kTileStep;
        float *delta = grads_turned + count * more * kTileStep;
        float *normalisers = delta + rows, *rests = normalisers + rows, *shifts = rests + rows;
        bool* far = reinterpret_cast<bool*>(shifts + rows);
        float *outs = shifts + 2 * rows, *products = outs + more * kTileStep;
        pack_tile_columns(one.q, s.time_q, s.dim, queries);
        pack_tile_columns(one.grad, s.time_q, s.value_dim, grads);
        pack_tile_columns(one.q.transposed(), s.dim, s.time_q, queries_turned);
        pack_tile_columns(one.grad.transposed(), s.value_dim, s.time_q, grads_turned);
        for (long panel = 0; panel < count; ++panel) {
            const long first = panel * kTileRows;
            const long some = s.time_q - first < kTileRows ? s.time_q - first : kTileRows;
            far[panel] = false;
            for (long t = first; t < first + kTileRows; ++t) {
                const Normaliser<float> whole =
                    t < s.time_q ? normaliser<bfloat16>(s, t, one.q.at(t, 0), k, one.lse[t])
                                 : Normaliser<float>{kInfinity<float>, 0};
                normalisers[t] = whole.head, rests[t] = whole.rest;
                shifts[t] = whole.head * kLog2E<float> + whole.rest;
                far[panel] |= whole.rest != 0;
            }
            // Added up as dO Vᵀ is: of a query that sees one key, the difference is 0.
            pack_tile_rows({one.out.at(first, 0), one.out.row, one.out.column}, some, s.value_dim,
                           outs);
            multiply_panels<true>(kTileRows, kTileRows, more, outs, grads + panel * more * kTileStep,
                                  products, kTileRows, false);
            for (long t = 0; t < kTileRows; ++t) delta[first + t] = products[t * kTileRows + t];
        }
        return {queries, grads, queries_turned, grads_turned, delta, normalisers, rests, shifts, far};
    }
};

// Of a panel of queries and one of keys: the operands that P and dS are, each a step of a panel.
struct TiledGradients {
    float *weights, *dscores;  // of A
    float* pairs;              // dscores, of B
};

// From Q Kᵀ and dO Vᵀ (keys, queries) of the panels of queries and keys at `query` and `key`.
inline void gradient_of_tile(const Scores<float>& s, const TiledQueryHead& head, long query,
                             long key, float* scores, float* products, float* room,
                             TiledGradients to) {
    using V = Vector<float>;
    constexpr long columns = kTileRows, lanes = Lanes<float>::count;
    const long count = s.time_q - query < columns ? s.time_q - query : columns;
    const long last = query + count - 1;
    const bool whole = s.sees(query, key) && s.sees(query, key + columns - 1) &&
                       s.sees(last, key) && s.sees(last, key + columns - 1);
    const Sight<float> sight[2] = {{s, query}, {s, query + lanes}};
    const auto put = [&](long i, const V(&w)[2][2], const V(&d)[2][2]) __attribute__((always_inline)) {
#pragma GCC unroll 2
        for (long r = 0; r < 2; ++r) {
            const auto row = [=](float* x) { return reinterpret_cast<bfloat16*>(x + (i + r) * columns / 2); };
            store_two(row(to.weights), w[r][0], w[r][1]);
            store_two(row(to.dscores), d[r][0], d[r][1]);
        }
#pragma GCC unroll 2
        for (long h = 0; h < 2; ++h)
            store(to.pairs + i * columns / 2 + h * lanes, rounded_pairs(d[0][h], d[1][h]));
    };
    const auto each = [&](const auto& change) __attribute__((always_inline)) {
        for (long i = 0; i < columns; i += 2) {
            V w[2][2], d[2][2];
#pragma GCC unroll 2
            for (long r = 0; r < 2; ++r)
#pragma GCC unroll 2
                for (long h = 0; h < 2; ++h) {
                    const long at = (i + r) * columns + h * lanes;
                    const V delta = load(head.delta + query + h * lanes);
                    const V slope = load(products + at) - delta;
                    change(load(scores + at), i + r, h, at, slope, w[r][h], d[r][h]);
                }
            put(i, w, d);
        }
    };
    const bool plain = s.softcap == 0 && !s.bias.data && !s.dbias.data && !head.far[query / columns];
    const float factor = s.factor(), factor2 = factor * kLog2E<float>;
    if (plain) {
        const auto exponent = [&](V x, long h) __attribute__((always_inline)) {
            return x * factor2 - load(head.shifts + query + h * lanes);
        };
        if (whole)
            return each([&](V x, long, long h, long, V slope, V& w, V& d) __attribute__((always_inline)) {
                w = short_exp2(exponent(x, h));
                d = w * slope;
            });
        return each([&](V x, long i, long h, long, V slope, V& w, V& d) __attribute__((always_inline)) {
            const auto seen = sight[h].sees(key + i);
            w = short_exp2(seen ? exponent(x, h) : broadcast(-kInfinity<float>));
            d = seen ? w * slope : V{};
        });
    }
    const long keys = s.time_k - key < columns ? s.time_k - key : columns;
    if (s.bias.data)
        pack_panel<float, float, columns>({s.bias.at(query, key), s.bias.row, s.bias.column}, count,
                                          keys, room);
    each([&](V x, long i, long h, long at, V slope, V& w, V& d) {
        const auto seen = sight[h].sees(key + i);
        V score = x * factor, steep = broadcast(1.f);
        if (s.softcap != 0) {
            const V t = tanh<float>(score);
            score = s.softcap * t;
            steep -= t * t;
        }
        if (s.bias.data && i < keys) score += load(room + at);
        w = weight<float>(score, load(head.normalisers + query + h * lanes),
                          load(head.rests + query + h * lanes));
        w = seen ? w : V{};
        d = seen ? w * slope : V{};
        if (s.dbias.data) store(products + at, d);
        d *= steep;
    });
    if (!s.dbias.data) return;
    pack_panel<float, float, columns>({products, columns, 1}, columns, columns, room);
    for (long j = 0; j < count; ++j)
        for (long h = 0; h < keys; h += lanes)
            add_row(s.dbias, query + j, key + h, keys - h < lanes ? keys - h : lanes,
                    load(room + j * columns + h));
}

// What all of one head of queries adds to dK and dV (keys, dim), and dQᵀ, a panel of queries after the
// other.
inline void backward_in_tiles(const Scores<float>& s, const TiledQueryHead& head,
                              const TiledKeyHead& keys, float* dkeys, float* dvalues, float* dq,
                              float* work) {
    constexpr long columns = kTileRows, square = columns * columns;
    const long steps = ceil_div(s.dim, kTileDepth), more = ceil_div(s.value_dim, kTileDepth);
    const long key_panels = keys.panels(s), query_panels = head.panels(s);
    const long dim = steps * kTileDepth, value_dim = more * kTileDepth;
    constexpr long all = kBlockQueries * kBlockKeys * kTileStep;
    float *scores = work, *products = scores + square, *room = products + square;
    float *weights = room + square, *dscores = weights + all, *pairs = dscores + all;
    const auto sees = [&](long q, long k) {
        const long query = q * columns, end = query + columns, key = k * columns;
        return s.first_key(query) < key + columns &&
               s.end_of_keys((end < s.time_q ? end : s.time_q) - 1) > key;
    };
    for (long k0 = 0; k0 < key_panels; k0 += kBlockKeys)
        for (long q0 = 0; q0 < query_panels; q0 += kBlockQueries) {
            const long nk = key_panels - k0 < kBlockKeys ? key_panels - k0 : kBlockKeys;
            const long nq = query_panels - q0 < kBlockQueries ? query_panels - q0 : kBlockQueries;
            // Of each panel of keys the panels of queries that see it, and the other way round.
            struct Range {
                long begin = -1, end = 0;
                void take(long i) {
                    begin = begin < 0 ? i : begin;
                    end = i + 1;
                }
                bool empty() const { return begin < 0; }
            } queries_of[kBlockKeys], keys_of[kBlockQueries];
            for (long q = 0; q < nq; ++q)
                for (long k = 0; k < nk; ++k) {
                    if (!sees(q0 + q, k0 + k)) continue;
                    queries_of[k].take(q), keys_of[q].take(k);
                    multiply_panels<true>(columns, columns, steps,
                                          keys.keys + (k0 + k) * steps * kTileStep,
                                          head.queries + (q0 + q) * steps * kTileStep, scores,
                                          columns, false);
                    multiply_panels<true>(columns, columns, more,
                                          keys.values + (k0 + k) * more * kTileStep,
                                          head.grads + (q0 + q) * more * kTileStep, products,
                                          columns, false);
                    gradient_of_tile(s, head, (q0 + q) * columns, (k0 + k) * columns, scores,
                                     products, room,
                                     {weights + (k * kBlockQueries + q) * kTileStep,
                                      dscores + (k * kBlockQueries + q) * kTileStep,
                                      pairs + (q * kBlockKeys + k) * kTileStep});
                }
            for (long k = 0; k < nk; ++k) {
                const Range range = queries_of[k];
                if (range.empty()) continue;
                const auto add = [&](const float* a, const float* turned, long width, float* to) {
                    for (long d = 0; d < width; d += columns)
                        multiply_panels(
                            columns, width - d, range.end - range.begin,
                            a + (k * kBlockQueries + range.begin) * kTileStep,
                            turned + (d / columns * query_panels + q0 + range.begin) * kTileStep,
                            to + (k0 + k) * columns * width + d, width, true);
                };
                add(weights, head.grads_turned, value_dim, dvalues);
                add(dscores, head.queries_turned, dim, dkeys);
            }
            for (long q = 0; q < nq; ++q) {
                const Range range = keys_of[q];
                if (range.empty()) continue;
                for (long d = 0; d < dim; d += columns)
                    multiply_panels<true>(
                        s.dim - d, columns, range.end - range.begin,
                        keys.keys_turned + (d / columns * key_panels + k0 + range.begin) * kTileStep,
                        pairs + (q * kBlockKeys + range.begin) * kTileStep,
                        dq + ((q0 + q) * dim + d) * columns, columns, true);
            }
        }
}

// All gradients of one head of keys and the `group` heads of queries that read from it; `head(i)`
// gives the i-th. The thread holds TileRegisters.
template <typename Heads>
void backward_group_in_tiles(Scores<float> s, Head<const bfloat16> k, Head<const bfloat16> v,
                             Head<bfloat16> dk, Head<bfloat16> dv, long group, Heads head) {
    constexpr long columns = kTileRows, square = columns * columns;
    const long dim = round_up(s.dim, kTileDepth), value_dim = round_up(s.value_dim, kTileDepth);
    const long keys = round_up(s.time_k, columns), queries = round_up(s.time_q, columns);
    float* keys_sum = scratch<float>(0, keys * (dim + value_dim) + queries * dim);
    float* values_sum = keys_sum + keys * dim;
    float* dq = values_sum + keys * value_dim;
    float* query_head = scratch<float>(1, TiledQueryHead::size(s));
    float* key_head = scratch<float>(2, TiledKeyHead::size(s));
    float* work = scratch<float>(3, 3 * square + 3 * kBlockQueries * kBlockKeys * kTileStep);

    const TiledKeyHead packed_keys = TiledKeyHead::pack(s, k, v, key_head);
    __builtin_memset(keys_sum, 0, sizeof(float) * keys * (dim + value_dim));
    for (long g = 0; g < group; ++g) {
        const BackwardHead<bfloat16> one = head(g);
        s.sink = one.sink, s.bias = one.bias, s.dbias = one.dbias;
        const TiledQueryHead packed = TiledQueryHead::pack(s, one, k, query_head);
        __builtin_memset(dq, 0, sizeof(float) * queries * dim);
        backward_in_tiles(s, packed, packed_keys, keys_sum, values_sum, dq, work);
        for (long t = 0; t < s.time_q; t += columns)
            for (long d = 0; d < s.dim; d += columns) {
                const long part = s.dim - d < columns ? s.dim - d : columns;
                pack_panel<float, float, columns>({dq + (t / columns * dim + d) * columns, columns, 1},
                                                  part, columns, work);
                write_rows<bfloat16, float>(work, columns,
                                            s.time_q - t < columns ? s.time_q - t : columns, part,
                                            {one.dq.at(t, d), one.dq.row, one.dq.column}, s.scale);
            }
        if (one.dsink) *one.dsink = sink_gradient(s, packed);
    }
    write_rows<bfloat16, float>(keys_sum, dim, s.time_k, s.dim, dk, s.scale);
    write_rows<bfloat16, float>(values_sum, value_dim, s.time_k, s.value_dim, dv);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
