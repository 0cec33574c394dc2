// Attention's gradients in tile registers, of bfloat16 and, in pieces, of float: attention_backward.h with
// other products. As in attention_tiles.h blocks lie turned, keys down and queries across.
//
//     Sᵀ = K Qᵀ, dPᵀ = V dOᵀ          A: K and V by keys     B: Q and dO by queries
//     dV += Pᵀ dO, dK += dSᵀ Q         A: Pᵀ and dSᵀ          B: dO and Q by dimensions
//     dQᵀ += Kᵀ dSᵀ                    A: Kᵀ by dimensions    B: dSᵀ, in pairs of keys
//
// P and dS are rounded to bfloat16, or cut. What these lack of the gradients, the scale, is multiplied in
// at the end.

#pragma once

#include "attention_backward.h"
#include "attention_tiles.h"
#include "panels.h"

namespace minitorch::MT_INSTRUCTION_SET {

// Panels of queries and of keys in a block.
constexpr long kBlockQueries = 4, kBlockKeys = 4;

// One head of keys, in panels of 32 of them and of 32 dimensions.
template <typename T>
struct TiledKeyHead {
    Packed<T> keys, values, keys_turned;

    static long size(const Scores<float>& s) {
        return Packed<T>::room(s.time_k, s.dim) + Packed<T>::room(s.dim, s.time_k) +
               Packed<T>::room(s.time_k, s.value_dim);
    }
    static TiledKeyHead pack(const Scores<float>& s, Head<const T> k, Head<const T> v, float* to) {
        const auto pack = [&](Head<const T> from, long count, long depth) {
            return Packed<T>::template pack<false>(from, count, depth, to);
        };
        return {pack(k, s.time_k, s.dim), pack(v, s.time_k, s.value_dim),
                pack(k.transposed(), s.dim, s.time_k)};
    }
};

// One head of queries, in the same way, and a number of each query.
template <typename T>
struct TiledQueryHead {
    Packed<T> queries, grads, queries_turned, grads_turned;
    const float* delta;                  // rowsum(dO O)
    const float *normalisers, *rests;
    const float* shifts;                 // (normaliser + rest) to the base 2
    const bool* far;                     // of a panel: whether a normaliser is two numbers

    static long size(const Scores<float>& s) {
        const auto both = [&](long dim) {
            return Packed<T>::room(s.time_q, dim) + Packed<T>::room(dim, s.time_q);
        };
        return both(s.dim) + both(s.value_dim) + 5 * round_up(s.time_q, kTileRows) +
               Packed<T>::panel(s.value_dim) + kTileRows * kTileRows;
    }
    static TiledQueryHead pack(const Scores<float>& s, const BackwardHead<T>& one, Head<const T> k,
                               float* to) {
        const auto pack = [&](Head<const T> from, long count, long depth) {
            return Packed<T>::template pack<true>(from, count, depth, to);
        };
        const Packed<T> queries = pack(one.q, s.time_q, s.dim);
        const Packed<T> grads = pack(one.grad, s.time_q, s.value_dim);
        const Packed<T> queries_turned = pack(one.q.transposed(), s.dim, s.time_q);
        const Packed<T> grads_turned = pack(one.grad.transposed(), s.value_dim, s.time_q);
        const long rows = round_up(s.time_q, kTileRows);
        float *delta = to, *normalisers = delta + rows, *rests = normalisers + rows;
        float* shifts = rests + rows;
        bool* far = reinterpret_cast<bool*>(shifts + rows);
        float *outs = shifts + 2 * rows, *products = outs + Packed<T>::panel(s.value_dim);
        for (long first = 0; first < s.time_q; first += kTileRows) {
            const long panel = first / kTileRows;
            const long some = s.time_q - first < kTileRows ? s.time_q - first : kTileRows;
            far[panel] = false;
            for (long t = first; t < first + kTileRows; ++t) {
                const Normaliser<float> whole =
                    t < s.time_q ? normaliser<T>(s, t, one.q.at(t, 0), k, one.lse[t])
                                 : Normaliser<float>{kInfinity<float>, 0};
                normalisers[t] = whole.head, rests[t] = whole.rest;
                shifts[t] = whole.head * kLog2E<float> + whole.rest;
                far[panel] |= whole.rest != 0;
            }
            // Added up as dO Vᵀ is: of a query that sees one key, the difference is 0.
            Panels<T>::template pack<false>({one.out.at(first, 0), one.out.row, one.out.column}, some,
                                            s.value_dim, outs);
            Panels<T>::set(kTileRows, kTileRows, ceil_div(s.value_dim, kTileDepth), outs,
                           grads.at(panel), products);
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

// 2^x as exactly as the products that follow want it, for x that is not above 0 by more than rounding
// errors.
template <typename T>
Vector<float> exp2_of(Vector<float> x) {
    if constexpr (__is_same(T, bfloat16)) return short_exp2(x);
    return exp2_nonpositive<float>(x);
}

// From Q Kᵀ and dO Vᵀ (keys, queries) of the panels of queries and keys at `query` and `key`.
template <typename T>
void gradient_of_tile(const Scores<float>& s, const TiledQueryHead<T>& head, long query, long key,
                      float* scores, float* products, float* room, TiledGradients to) {
    using V = Vector<float>;
    constexpr long columns = kTileRows, lanes = Lanes<float>::count;
    const long count = s.time_q - query < columns ? s.time_q - query : columns;
    const long last = query + count - 1;
    const bool whole = s.sees(query, key) && s.sees(query, key + columns - 1) &&
                       s.sees(last, key) && s.sees(last, key + columns - 1);
    const Sight<float> sight[2] = {{s, query}, {s, query + lanes}};
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
            Panels<T>::put(w, i, to.weights);
            Panels<T>::put(d, i, to.dscores, to.pairs);
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
                w = exp2_of<T>(exponent(x, h));
                d = w * slope;
            });
        return each([&](V x, long i, long h, long, V slope, V& w, V& d) __attribute__((always_inline)) {
            const auto seen = sight[h].sees(key + i);
            w = exp2_of<T>(seen ? exponent(x, h) : broadcast(-kInfinity<float>));
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
template <typename T>
void backward_in_tiles(const Scores<float>& s, const TiledQueryHead<T>& head,
                       const TiledKeyHead<T>& keys, float* dkeys, float* dvalues, float* dq,
                       float* work) {
    using P = Panels<T>;
    constexpr long columns = kTileRows, square = columns * columns;
    constexpr long all = kBlockQueries * kBlockKeys * P::kStep;
    const long steps = ceil_div(s.dim, kTileDepth), more = ceil_div(s.value_dim, kTileDepth);
    const long key_panels = ceil_div(s.time_k, columns), query_panels = ceil_div(s.time_q, columns);
    const long dim = steps * kTileDepth, value_dim = more * kTileDepth;
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
                long size() const { return end - begin; }
            } queries_of[kBlockKeys], keys_of[kBlockQueries];
            for (long q = 0; q < nq; ++q)
                for (long k = 0; k < nk; ++k) {
                    if (!sees(q0 + q, k0 + k)) continue;
                    queries_of[k].take(q), keys_of[q].take(k);
                    P::set(columns, columns, steps, keys.keys.at(k0 + k), head.queries.at(q0 + q),
                           scores);
                    P::set(columns, columns, more, keys.values.at(k0 + k), head.grads.at(q0 + q),
                           products);
                    gradient_of_tile(s, head, (q0 + q) * columns, (k0 + k) * columns, scores,
                                     products, room,
                                     {weights + (k * kBlockQueries + q) * P::kStep,
                                      dscores + (k * kBlockQueries + q) * P::kStep,
                                      pairs + (q * kBlockKeys + k) * P::kStep});
                }
            for (long k = 0; k < nk; ++k) {
                const Range range = queries_of[k];
                if (range.empty()) continue;
                const auto add = [&](const float* a, const Packed<T>& b, long width, float* to) {
                    for (long d = 0; d < width; d += columns)
                        P::add(columns, width - d, range.size(),
                               a + (k * kBlockQueries + range.begin) * P::kStep,
                               b.at(d / columns, q0 + range.begin),
                               to + (k0 + k) * columns * width + d, width);
                };
                add(weights, head.grads_turned, value_dim, dvalues);
                add(dscores, head.queries_turned, dim, dkeys);
            }
            for (long q = 0; q < nq; ++q) {
                const Range range = keys_of[q];
                if (range.empty()) continue;
                for (long d = 0; d < dim; d += columns)
                    P::add(s.dim - d, columns, range.size(),
                           keys.keys_turned.at(d / columns, k0 + range.begin),
                           pairs + (q * kBlockKeys + range.begin) * P::kStep,
                           dq + ((q0 + q) * dim + d) * columns, columns);
            }
        }
}

// Whether all products of a group's gradients can be made in tile registers: those of float, if what
// they are made of fits in pieces. P is at most 1.
template <typename Heads>
bool fit_in_tiles(const Scores<float>&, Head<const bfloat16>, Head<const bfloat16>, long, Heads) {
    return true;
}
template <typename Heads>
bool fit_in_tiles(const Scores<float>& s, Head<const float> k, Head<const float> v, long group,
                  Heads head) {
    const auto magnitude = [](long rows, long width, Head<const float> x, Magnitude& to) {
        for (long t = 0; t < rows; ++t)
            for_each_vector<float>(width, [&](long, auto get, auto) { to.add(get(x.at(t, 0))); });
    };
    Magnitude keys, values, queries, grads, outs;
    magnitude(s.time_k, s.dim, k, keys);
    magnitude(s.time_k, s.value_dim, v, values);
    for (long g = 0; g < group; ++g) {
        const BackwardHead<float> one = head(g);
        magnitude(s.time_q, s.dim, one.q, queries);
        magnitude(s.time_q, s.value_dim, one.grad, grads);
        magnitude(s.time_q, s.value_dim, one.out, outs);
    }
    const float key = keys.largest(), query = queries.largest(), grad = grads.largest();
    const float value = values.largest() + outs.largest();
    const float dscore = static_cast<float>(s.value_dim) * grad * value;  // and no more
    return scores_fit_in_pieces(query, key) && fits_in_pieces(grad, value) &&
           fits_in_pieces(grad, 1) && fits_in_pieces(dscore, query) && fits_in_pieces(dscore, key);
}

// All gradients of one head of keys and the `group` heads of queries that read from it; `head(i)`
// gives the i-th. The thread holds TileRegisters.
template <typename T, typename Heads>
void backward_group_in_tiles(Scores<float> s, Head<const T> k, Head<const T> v, Head<T> dk,
                             Head<T> dv, long group, Heads head) {
    constexpr long columns = kTileRows, square = columns * columns;
    const long dim = round_up(s.dim, kTileDepth), value_dim = round_up(s.value_dim, kTileDepth);
    const long keys = round_up(s.time_k, columns), queries = round_up(s.time_q, columns);
    float* keys_sum = scratch<float>(0, keys * (dim + value_dim) + queries * dim);
    float* values_sum = keys_sum + keys * dim;
    float* dq = values_sum + keys * value_dim;
    float* query_head = scratch<float>(1, TiledQueryHead<T>::size(s));
    float* key_head = scratch<float>(2, TiledKeyHead<T>::size(s));
    float* work = scratch<float>(3, 3 * square + 3 * kBlockQueries * kBlockKeys * Panels<T>::kStep);

    const auto packed_keys = TiledKeyHead<T>::pack(s, k, v, key_head);
    __builtin_memset(keys_sum, 0, sizeof(float) * keys * (dim + value_dim));
    for (long g = 0; g < group; ++g) {
        const BackwardHead<T> one = head(g);
        s.sink = one.sink, s.bias = one.bias, s.dbias = one.dbias;
        const auto packed = TiledQueryHead<T>::pack(s, one, k, query_head);
        __builtin_memset(dq, 0, sizeof(float) * queries * dim);
        backward_in_tiles(s, packed, packed_keys, keys_sum, values_sum, dq, work);
        for (long t = 0; t < s.time_q; t += columns)
            for (long d = 0; d < s.dim; d += columns) {
                const long part = s.dim - d < columns ? s.dim - d : columns;
                pack_panel<float, float, columns>({dq + (t / columns * dim + d) * columns, columns, 1},
                                                  part, columns, work);
                write_rows<T, float>(work, columns, s.time_q - t < columns ? s.time_q - t : columns,
                                     part, {one.dq.at(t, d), one.dq.row, one.dq.column}, s.scale);
            }
        if (one.dsink) *one.dsink = sink_gradient(s, packed);
    }
    write_rows<T, float>(keys_sum, dim, s.time_k, s.dim, dk, s.scale);
    write_rows<T, float>(values_sum, value_dim, s.time_k, s.value_dim, dv);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
