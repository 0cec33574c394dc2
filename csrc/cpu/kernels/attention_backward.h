// Attention's gradients, of which attention.h has the formulas. Any block of P is made again from the
// logsumexp of its rows. Queries are down and keys across, which is the panel that dV and dK want; dQ
// takes dS turned. Threads take heads of keys, with all the queries that read from them, so that each
// sum has one order.

#pragma once

#include "attention.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr long kQueries = 8 * kRows;  // queries in a block
constexpr long kNearBlocks = 4;       // of keys, that share a block of queries while it is near

// log(Σ exp(S)) of a row is head + rest ln 2. One number holds it, unless the scores are so far from 0
// that it has no digits for the sum: those of a row that is masked throughout by the least finite
// number. Then head is the largest score.
template <typename C>
struct Normaliser {
    C head, rest;
};

// head and rest: numbers, or vectors of them.
template <typename C, typename Numbers>
Vector<C> weight(Vector<C> score, Numbers head, Numbers rest) {
    const Vector<C> exponent = (score - head) * kLog2E<C> - rest;  // above 0 by rounding errors alone
    return exp2_nonpositive<C>(exponent > C(0) ? Vector<C>{} : exponent);
}

template <typename T>
Normaliser<Compute<T>> normaliser(const Scores<Compute<T>>& s, long query, const T* q,
                                  Head<const T> k, Compute<T> lse) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    constexpr C exact = sizeof(C) == sizeof(float) ? 0x1p12 : 0x1p41;  // its last digit is 2^-11
    if (!(lse > exact || lse < -exact) || lse > kLargest<C>) return {lse, 0};
    const long begin = s.first_key(query), end = s.end_of_keys(query);
    const auto scores = [&](long key) {
        C out[lanes];
        for (long i = 0; i < lanes; ++i) {
            if (key + i >= end) {
                out[i] = -kInfinity<C>;
                continue;
            }
            Vector<C> sum{};
            const T* row = k.at(key + i, 0);
            for_each_vector<C>(s.dim, [&](long, auto get, auto) { sum += get(q) * get(row); });
            out[i] = s.capped(broadcast(sum_of_lanes<C>(sum) * s.factor()))[0];
            if (s.bias.data) out[i] += *s.bias.at(query, key + i);
        }
        return load(out);
    };
    C peak = s.has_sink() ? *s.sink : -kInfinity<C>;
    for (long key = begin; key < end; key += lanes) {
        const C largest = largest_lane<C>(scores(key));
        peak = largest > peak ? largest : peak;
    }
    C total = s.has_sink() ? weight<C>(broadcast(*s.sink), peak, C(0))[0] : 0;
    for (long key = begin; key < end; key += lanes)
        total += sum_of_lanes<C>(weight<C>(scores(key), peak, C(0)));
    return {peak, log_of(total) * kLog2E<C>};
}

// One head of queries in all the layouts that backward reads.
template <typename C>
struct PackedQueries {
    const C *queries, *queries_turned, *grads, *grads_turned;
    const C* delta;  // rowsum(dO O)
    const C *normalisers, *rests;

    static long size(const Scores<C>& s) {
        const long rows = round_up(s.time_q, kRows);
        return (rows + s.time_q) * (round_up(s.dim, kRows) + round_up(s.value_dim, kRows)) +
               3 * rows + kRows * s.value_dim + 64;
    }
    template <typename T>
    static PackedQueries pack(const Scores<C>& s, Head<const T> q, Head<const T> k,
                              Head<const T> grad, Head<const T> out, const C* lse, C* to) {
        const long rows = round_up(s.time_q, kRows);
        C* queries = to;
        C* grads = queries + rows * s.dim;
        C* queries_turned = grads + rows * s.value_dim;
        C* grads_turned = queries_turned + round_up(s.dim, kRows) * s.time_q;
        C* delta = grads_turned + round_up(s.value_dim, kRows) * s.time_q;
        C *normalisers = delta + rows, *rests = normalisers + rows;
        for (long t = 0; t < s.time_q; ++t) {
            const Normaliser<C> whole = normaliser<T>(s, t, q.at(t, 0), k, lse[t]);
            normalisers[t] = whole.head, rests[t] = whole.rest;
        }
        pack_rows<T, C, kRows>(q, s.time_q, s.dim, queries);
        pack_rows<T, C, kRows>(grad, s.time_q, s.value_dim, grads);
        pack_rows<T, C, kRows>(q.transposed(), s.dim, s.time_q, queries_turned);
        pack_rows<T, C, kRows>(grad.transposed(), s.value_dim, s.time_q, grads_turned);
        // Added up in the order of the tiles: of a query that sees one key, dO V - delta is 0.
        C* outs = rests + rows;
        for (long t = 0; t < s.time_q; t += kRows, grads += kRows * s.value_dim) {
            pack_panel<T, C, kRows>({out.at(t, 0), out.row, out.column},
                                    s.time_q - t < kRows ? s.time_q - t : kRows, s.value_dim, outs);
            C sums[kRows] = {};
            for (long i = 0; i < s.value_dim * kRows; i += kRows)
                for (long r = 0; r < kRows; ++r) sums[r] += grads[i + r] * outs[i + r];
            __builtin_memcpy(delta + t, sums, sizeof sums);
        }
        return {queries, queries_turned, queries + rows * s.dim, grads_turned, delta,
                normalisers, rests};
    }
};

// The block of keys [first, first + count), count at most kColumns, in the layouts of a B, and its
// gradients.
template <typename C>
struct KeyBlock {
    long first, count;
    C *keys, *values;    // Kᵀ and Vᵀ: (dim, keys)
    C* rows;             // K: for each kColumns dimensions (keys, dimensions)
    C *dkeys, *dvalues;  // dKᵀ and dVᵀ: (dim, keys)

    static long size(const Scores<C>& s) {
        return (s.dim + s.value_dim + round_up(s.dim, kColumns<C>)) * kColumns<C>;
    }
    template <typename T>
    static KeyBlock pack(const Scores<C>& s, Head<const T> k, Head<const T> v, long first, C* to,
                         C* dkeys, C* dvalues) {
        constexpr long columns = kColumns<C>;
        const long count = s.time_k - first < columns ? s.time_k - first : columns;
        C *values = to + s.dim * columns, *rows = values + s.value_dim * columns;
        pack_panel<T, C, columns>({k.at(first, 0), k.row, k.column}, count, s.dim, to);
        pack_panel<T, C, columns>({v.at(first, 0), v.row, v.column}, count, s.value_dim, values);
        pack_rows<T, C, columns>({k.at(first, 0), k.column, k.row}, s.dim, count, rows);
        return {first, count, to, values, rows, dkeys, dvalues};
    }
};

// A row of at most a vector, wherever its elements are.
template <typename C>
Vector<C> load_row(Matrix<const C> from, long i, long j, long count) {
    if (from.column == 1 && count == Lanes<C>::count) return load(from.at(i, j));
    Vector<C> out{};
    for (long lane = 0; lane < count; ++lane) out[lane] = *from.at(i, j + lane);
    return out;
}
template <typename C>
void add_row(Matrix<C> to, long i, long j, long count, Vector<C> x) {
    if (to.column == 1 && count == Lanes<C>::count)
        return store(to.at(i, j), load(to.at(i, j)) + x);
    for (long lane = 0; lane < count; ++lane) *to.at(i, j + lane) += x[lane];
}

// Of one query and a block of keys: p, which holds q Kᵀ, becomes P = exp(S) / Σ exp(S), and ds, which
// holds dO Vᵀ, becomes the gradient of q Kᵀ.
template <typename C>
void gradient_of_scores(const Scores<C>& s, long query, long key, long count,
                        const Normaliser<C>& sum, C delta, C* p, C* ds) {
    constexpr long lanes = Lanes<C>::count;
    using Int = typename ExpConstants<C>::Int;
    const C factor = s.factor();
    const bool whole = count == kColumns<C> && s.sees(query, key) && s.sees(query, key + count - 1);
    if (whole && s.softcap == 0 && !s.bias.data && !s.dbias.data) {
        for (long j = 0; j < kColumns<C>; j += lanes) {
            const Vector<C> w = weight<C>(load(p + j) * factor, sum.head, sum.rest);
            store(p + j, w);
            store(ds + j, w * (load(ds + j) - delta) * s.scale);
        }
        return;
    }
    Vector<Int> place = places<C>();
    const long limit = s.end_of_keys(query) - key;
    const Vector<Int> begin = broadcast(Int(s.first_key(query) - key));
    const Vector<Int> end = broadcast(Int(limit < count ? limit : count));
    for (long j = 0; j < count; j += lanes, place += Int(lanes)) {
        const long part = count - j < lanes ? count - j : lanes;
        Vector<C> score = load(p + j) * factor, slope = broadcast(s.scale);
        if (s.softcap != 0) {
            const Vector<C> t = tanh<C>(score);
            score = s.softcap * t;
            slope *= 1 - t * t;
        }
        if (s.bias.data) score += load_row(s.bias, query, key + j, part);
        const Vector<C> w = weight<C>(score, sum.head, sum.rest);
        const auto seen = (place >= begin) & (place < end);
        const Vector<C> dscore = seen ? w * (load(ds + j) - delta) : Vector<C>{};
        if (s.dbias.data) add_row(s.dbias, query, key + j, part, dscore);
        store(p + j, seen ? w : Vector<C>{});
        store(ds + j, dscore * slope);
    }
}

// Room for what a block of queries and one of keys share.
template <typename C>
struct SharedBlock {
    C *probabilities, *dscores;  // (queries, keys)
    C* turned;                   // dscores, in panels of queries

    static constexpr long size = 3 * kQueries * kColumns<C>;
    explicit SharedBlock(C* to)
        : probabilities(to),
          dscores(to + kQueries * kColumns<C>),
          turned(to + 2 * kQueries * kColumns<C>) {}
};

// What the queries [query, query + queries) of one head add to dKᵀ and dVᵀ (dim, keys) of a block
// of keys, and to their own dQ.
template <typename C>
void backward_block(const Scores<C>& s, const PackedQueries<C>& packed, long query, long queries,
                    const KeyBlock<C>& b, const SharedBlock<C>& shared, C* dq, long dq_stride) {
    constexpr long columns = kColumns<C>;
    const auto [probabilities, dscores, turned] = shared;
    for (long i = 0; i < queries; i += kRows) {
        const long rows = queries - i < kRows ? queries - i : kRows;
        set_tile<C>(rows, columns, s.dim, packed.queries + (query + i) * s.dim, b.keys,
                        probabilities + i * columns, columns);
        set_tile<C>(rows, columns, s.value_dim, packed.grads + (query + i) * s.value_dim,
                        b.values, dscores + i * columns, columns);
    }
    for (long i = 0; i < queries; ++i)
        gradient_of_scores(s, query + i, b.first, b.count,
                           {packed.normalisers[query + i], packed.rests[query + i]},
                           packed.delta[query + i], probabilities + i * columns,
                           dscores + i * columns);
    for (long i = 0; i < s.value_dim; i += kRows)
        add_tile<C>(s.value_dim - i < kRows ? s.value_dim - i : kRows, columns, queries,
                    packed.grads_turned + i * s.time_q + query * kRows, probabilities,
                    b.dvalues + i * columns, columns);
    for (long i = 0; i < s.dim; i += kRows)
        add_tile<C>(s.dim - i < kRows ? s.dim - i : kRows, columns, queries,
                    packed.queries_turned + i * s.time_q + query * kRows, dscores,
                    b.dkeys + i * columns, columns);
    pack_rows<C, C, kRows>({dscores, columns, 1}, queries, b.count, turned);
    for (long i = 0; i < queries; i += kRows)
        for (long d = 0; d < s.dim; d += columns)
            add_tile<C>(queries - i < kRows ? queries - i : kRows,
                        s.dim - d < columns ? s.dim - d : columns, b.count, turned + i * b.count,
                        b.rows + d * b.count, dq + (query + i) * dq_stride + d, dq_stride);
}

// The same of all queries and of `count` blocks of keys, a block of queries with each of them while
// it is near.
template <typename C>
void backward_blocks(const Scores<C>& s, const PackedQueries<C>& packed, const KeyBlock<C>* blocks,
                     long count, const SharedBlock<C>& shared, C* dq, long dq_stride) {
    const auto begin_of = [&](const KeyBlock<C>& b) { return s.first_query(b.first) / kRows * kRows; };
    const auto end_of = [&](const KeyBlock<C>& b) { return s.end_of_queries(b.first + b.count - 1); };
    const long last = end_of(blocks[count - 1]);
    for (long query = begin_of(blocks[0]); query < last; query += kQueries)
        for (const KeyBlock<C>* b = blocks; b < blocks + count; ++b) {
            const long begin = begin_of(*b) > query ? begin_of(*b) : query;
            const long end = end_of(*b) < query + kQueries ? end_of(*b) : query + kQueries;
            if (begin < end)
                backward_block(s, packed, begin, end - begin, *b, shared, dq, dq_stride);
        }
}

template <typename C, typename Queries>
C sink_gradient(const Scores<C>& s, const Queries& packed) {
    Vector<C> sum{};
    for_each_vector<C>(s.time_q, [&](long, auto get, auto) {
        const Vector<C> exponent = *s.sink - get(packed.normalisers) - get(packed.rests) / kLog2E<C>;
        sum -= exp_nonpositive<C>(exponent > C(0) ? Vector<C>{} : exponent) * get(packed.delta);
    });
    return sum_of_lanes<C>(sum);
}

template <typename T>
struct BackwardHead {
    Head<const T> q, grad, out;
    const Compute<T>* lse;
    const Compute<T>* sink;
    Matrix<const Compute<T>> bias;
    Head<T> dq;
    Compute<T>* dsink;
    Matrix<Compute<T>> dbias;
};

// All gradients of one head of keys and the `group` heads of queries that read from it; `head(i)`
// gives the i-th.
template <typename T, typename Heads>
void backward_group(Scores<Compute<T>> s, Head<const T> k, Head<const T> v, Head<T> dk, Head<T> dv,
                    long group, Heads head) {
    using C = Compute<T>;
    constexpr long columns = kColumns<C>, lanes = Lanes<C>::count;
    const long dim_rows = round_up(s.dim, kRows), value_rows = round_up(s.value_dim, kRows);
    const long dq_stride = round_up(s.dim, columns);
    const long dq_size = round_up(s.time_q, kRows) * dq_stride;
    const long key_blocks = ceil_div(s.time_k, columns);
    C* keys_sum = scratch<C>(0, key_blocks * (dim_rows + value_rows) * columns + dq_size + 64);
    C* values_sum = keys_sum + key_blocks * dim_rows * columns;
    C* dq = values_sum + key_blocks * value_rows * columns;
    C* queries = scratch<C>(1, PackedQueries<C>::size(s));
    const long block_size = KeyBlock<C>::size(s);
    C* work = scratch<C>(2, kNearBlocks * block_size + SharedBlock<C>::size + 64);
    const SharedBlock<C> shared(work + kNearBlocks * block_size);

    __builtin_memset(keys_sum, 0, sizeof(C) * key_blocks * (dim_rows + value_rows) * columns);
    for (long g = 0; g < group; ++g) {
        const BackwardHead<T> one = head(g);
        s.sink = one.sink, s.bias = one.bias, s.dbias = one.dbias;
        const auto packed =
            PackedQueries<C>::template pack<T>(s, one.q, k, one.grad, one.out, one.lse, queries);
        __builtin_memset(dq, 0, sizeof(C) * dq_size);
        for (long block = 0; block < key_blocks; block += kNearBlocks) {
            KeyBlock<C> near[kNearBlocks];
            long count = 0;
            for (; count < kNearBlocks && block + count < key_blocks; ++count)
                near[count] = KeyBlock<C>::template pack<T>(
                    s, k, v, (block + count) * columns, work + count * block_size,
                    keys_sum + (block + count) * dim_rows * columns,
                    values_sum + (block + count) * value_rows * columns);
            backward_blocks(s, packed, near, count, shared, dq, dq_stride);
        }
        write_rows<T, C>(dq, dq_stride, s.time_q, s.dim, one.dq);
        if (one.dsink) *one.dsink = sink_gradient(s, packed);
    }
    const auto write_turned = [&](const C* from, long rows, long width, Head<T> to) {
        for (long block = 0; block < key_blocks; ++block) {
            const long key = block * columns;
            const long count = s.time_k - key < columns ? s.time_k - key : columns;
            for (long d = 0; d < width; d += columns) {
                const long part = width - d < columns ? width - d : columns;
                pack_panel<C, C, columns>({from + (block * rows + d) * columns, columns, 1}, part,
                                          columns, work);
                write_rows<T, C>(work, columns, count, part, {to.at(key, d), to.row, to.column});
            }
        }
    };
    static_assert(columns == 2 * lanes);
    write_turned(keys_sum, dim_rows, s.dim, dk);
    write_turned(values_sum, value_rows, s.value_dim, dv);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
