// Attention's gradients, of which attention.h has the formulas. Any block of P is made again from the
// logsumexp of its rows. Queries are down and keys across, so that K and V alone are turned:
//
//     P = exp(Q Kᵀ ...), dS = P (dO Vᵀ ...)     A: rows of Q and dO     B: panels of keys
//     dQ += dS K                                A: rows of dS           B: rows of K
//     dV += Pᵀ dO, dK += dSᵀ Q                  A: columns of P and dS  B: rows of dO and Q
//
// Threads take heads of keys, with all the queries that read from them, so that each sum has one order.

#pragma once

#include "attention.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr long kQueries = 4 * kRows;  // queries in a block, of kKeys keys
constexpr long kNearKeys = 2 * kKeys;  // past which a block of queries goes while it is near

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

// Rows of a head as the products read them: copied, as wide as whole vectors and as many as whole tiles
// have, with zeros where the head ends.
template <typename C>
struct Rows {
    const C* data;
    long width;

    static long padded(long dim) { return round_up(dim, Lanes<C>::count); }
    static long size(long count, long dim) { return round_up(count, kRows) * padded(dim); }
    template <typename T>
    static Rows copy(Head<const T> from, long count, long dim, C* to) {
        constexpr long lanes = Lanes<C>::count;
        const long width = padded(dim);
        for (long t = 0; t < count; ++t) {
            C* row = to + t * width;
            const T* source = from.at(t, 0);
            long d = 0;
            for (; d + lanes <= dim; d += lanes) store(row + d, load(source + d));
            if (d < dim) store(row + d, load_part(source + d, dim - d, C(0)));
        }
        __builtin_memset(to + count * width, 0, sizeof(C) * (round_up(count, kRows) - count) * width);
        return {to, width};
    }
    const C* at(long i) const { return data + i * width; }
};

// One head of queries.
template <typename C>
struct QueryHead {
    Rows<C> queries, grads;
    const C* delta;  // rowsum(dO O)
    const C *normalisers, *rests;

    static long size(const Scores<C>& s) {
        return Rows<C>::size(s.time_q, s.dim) + Rows<C>::size(s.time_q, s.value_dim) + 3 * s.time_q;
    }
    template <typename T>
    static QueryHead pack(const Scores<C>& s, Head<const T> q, Head<const T> k, Head<const T> grad,
                          Head<const T> out, const C* lse, C* to) {
        const auto queries = Rows<C>::copy(q, s.time_q, s.dim, to);
        to += Rows<C>::size(s.time_q, s.dim);
        const auto grads = Rows<C>::copy(grad, s.time_q, s.value_dim, to);
        C* delta = to + Rows<C>::size(s.time_q, s.value_dim);
        C *normalisers = delta + s.time_q, *rests = normalisers + s.time_q;
        for (long t = 0; t < s.time_q; ++t) {
            const Normaliser<C> whole = normaliser<T>(s, t, q.at(t, 0), k, lse[t]);
            normalisers[t] = whole.head, rests[t] = whole.rest;
            delta[t] = row_sum(s, t, grads.at(t), out.at(t, 0));
        }
        return {queries, grads, delta, normalisers, rests};
    }
    // Of a query that sees one key it is added up as the tiles do it: dO V - delta is then 0.
    template <typename T>
    static C row_sum(const Scores<C>& s, long query, const C* grad, const T* out) {
        if (s.end_of_keys(query) - s.first_key(query) == 1) {
            Vector<C> sum{};
            for (long d = 0; d < s.value_dim; ++d) {
                Vector<C> factor = broadcast(grad[d]);
                in_register<C>(factor);  // or the compiler multiplies first and adds then
                sum += factor * broadcast(load_one(out + d));
            }
            return sum[0];
        }
        Vector<C> sum{};
        for_each_vector<C>(s.value_dim,
                           [&](long d, auto get, auto) { sum += load(grad + d) * get(out); });
        return sum_of_lanes<C>(sum);
    }
};

// One head of keys.
template <typename C>
struct KeyHead {
    Rows<C> keys;
    const C *keys_turned, *values_turned;  // in panels of kColumns keys, (dim, keys)

    static long turned_size(const Scores<C>& s, long dim) {
        return round_up(s.time_k, kColumns<C>) * dim;
    }
    static long size(const Scores<C>& s) {
        return Rows<C>::size(s.time_k, s.dim) + turned_size(s, s.dim) + turned_size(s, s.value_dim);
    }
    template <typename T>
    static KeyHead pack(const Scores<C>& s, Head<const T> k, Head<const T> v, C* to) {
        const auto keys = Rows<C>::copy(k, s.time_k, s.dim, to);
        C* keys_turned = to + Rows<C>::size(s.time_k, s.dim);
        C* values_turned = keys_turned + turned_size(s, s.dim);
        pack_rows<T, C, kColumns<C>>(k, s.time_k, s.dim, keys_turned);
        pack_rows<T, C, kColumns<C>>(v, s.time_k, s.value_dim, values_turned);
        return {keys, keys_turned, values_turned};
    }
};

// What is added up for one head of keys and one of queries, rows as wide as Rows has them.
template <typename C>
struct Gradients {
    C *dq, *dk, *dv;
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

// What a block of queries of one head adds to dK and dV of the keys [key, key + count), and these to dQ.
// `block` is room for P and dS (queries, keys).
template <typename C>
void backward_block(const Scores<C>& s, const QueryHead<C>& head, const KeyHead<C>& from, long query,
                    long key, long count, const Gradients<C>& to, C* block) {
    constexpr long columns = kColumns<C>, stride = kKeys;
    const long width = from.keys.width, value_width = head.grads.width;
    C *weights = block, *dscores = block + kQueries * stride;
    const auto within = [](long x, long low, long high) { return x < low ? low : x < high ? x : high; };
    // All that see a key, and with them whole tiles.
    const long first_seen = s.first_query(key) / kRows * kRows;
    const long last_seen = round_up(s.end_of_queries(key + count - 1), kRows);
    const long skipped = within(first_seen - query, 0, kQueries);
    query += skipped;
    const long queries = within((last_seen < s.time_q ? last_seen : s.time_q) - query, 0, kQueries - skipped);
    struct Range {
        long begin, end;
    };
    // Of the tile of queries from i on, how many there are, and the keys that any of them sees.
    const auto rows_at = [=](long i) { return queries - i < kRows ? queries - i : kRows; };
    const auto keys_of = [&](long i) {
        const long begin = within(s.first_key(query + i) - key, 0, count);
        return Range{begin, within(s.end_of_keys(query + i + rows_at(i) - 1) - key, begin, count)};
    };
    for (long j = 0; j < count; j += columns)
        for (long i = 0; i < queries; i += kRows) {
            const long first = query + i, rows = rows_at(i);
            const Range seen = keys_of(i);
            C *p = weights + i * stride + j, *ds = dscores + i * stride + j;
            if (j + columns <= seen.begin || j >= seen.end) {
                for (long r = 0; r < rows; ++r) {
                    __builtin_memset(p + r * stride, 0, sizeof(C) * columns);
                    __builtin_memset(ds + r * stride, 0, sizeof(C) * columns);
                }
                continue;
            }
            set_tile<C>(rows, columns, s.dim,
                        {head.queries.at(first), width, 1, from.keys_turned + (key + j) * s.dim, columns},
                        p, stride);
            set_tile<C>(rows, columns, s.value_dim,
                        {head.grads.at(first), value_width, 1,
                         from.values_turned + (key + j) * s.value_dim, columns},
                        ds, stride);
            for (long r = 0; r < rows; ++r)
                gradient_of_scores(s, first + r, key + j, count - j < columns ? count - j : columns,
                                   {head.normalisers[first + r], head.rests[first + r]},
                                   head.delta[first + r], p + r * stride, ds + r * stride);
        }
    for (long i = 0; i < queries; i += kRows) {
        const long first = query + i, rows = rows_at(i);
        const Range seen = keys_of(i);
        for (long d = 0; seen.begin < seen.end && d < s.dim; d += columns)
            add_tile<C>(rows, s.dim - d, seen.end - seen.begin,
                        {dscores + i * stride + seen.begin, stride, 1, from.keys.at(key + seen.begin) + d,
                         width},
                        to.dq + first * width + d, width);
    }
    for (long j = 0; j < count; j += kRows) {
        const long rows = count - j < kRows ? count - j : kRows;
        const long begin = within(s.first_query(key + j) - query, 0, queries);
        const long end = within(s.end_of_queries(key + j + rows - 1) - query, begin, queries);
        const auto add = [&](const C* scores, const Rows<C>& b, long dim, C* sums) {
            for (long d = 0; begin < end && d < dim; d += columns)
                add_tile<C>(rows, dim - d, end - begin,
                            {scores + begin * stride + j, 1, stride, b.at(query + begin) + d, b.width},
                            sums + (key + j) * b.width + d, b.width);
        };
        add(weights, head.grads, s.value_dim, to.dv);
        add(dscores, head.queries, s.dim, to.dk);
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
    const long width = Rows<C>::padded(s.dim), value_width = Rows<C>::padded(s.value_dim);
    const long size_q = Rows<C>::size(s.time_q, s.dim), size_k = Rows<C>::size(s.time_k, s.dim);
    const long sums_size = size_k + Rows<C>::size(s.time_k, s.value_dim);
    C* dk_sums = scratch<C>(0, sums_size + size_q);
    const Gradients<C> sums{dk_sums + sums_size, dk_sums, dk_sums + size_k};
    C* query_head = scratch<C>(1, QueryHead<C>::size(s));
    C* key_head = scratch<C>(2, KeyHead<C>::size(s));
    C* block = scratch<C>(3, 2 * kQueries * kKeys);

    const auto keys = KeyHead<C>::template pack<T>(s, k, v, key_head);
    __builtin_memset(dk_sums, 0, sizeof(C) * sums_size);
    for (long g = 0; g < group; ++g) {
        const BackwardHead<T> one = head(g);
        s.sink = one.sink, s.bias = one.bias, s.dbias = one.dbias;
        const auto queries =
            QueryHead<C>::template pack<T>(s, one.q, k, one.grad, one.out, one.lse, query_head);
        __builtin_memset(sums.dq, 0, sizeof(C) * size_q);
        for (long near = 0; near < s.time_k; near += kNearKeys) {
            const long far = near + kNearKeys < s.time_k ? near + kNearKeys : s.time_k;
            const long end = s.end_of_queries(far - 1);
            for (long query = s.first_query(near) / kRows * kRows; query < end; query += kQueries)
                for (long key = near; key < far; key += kKeys)
                    backward_block(s, queries, keys, query, key, far - key < kKeys ? far - key : kKeys,
                                   sums, block);
        }
        write_rows<T, C>(sums.dq, width, s.time_q, s.dim, one.dq);
        if (one.dsink) *one.dsink = sink_gradient(s, queries);
    }
    write_rows<T, C>(sums.dk, width, s.time_k, s.dim, dk);
    write_rows<T, C>(sums.dv, value_width, s.time_k, s.value_dim, dv);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
