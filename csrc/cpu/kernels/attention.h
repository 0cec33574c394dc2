// Attention without the (time, time) matrix of scores, forward here, backward in attention_backward.h:
//
//     S = scale Q Kᵀ + bias,   P = softmax(S),   O = P V
//     dV = Pᵀ dO,   dS = P (dO Vᵀ - rowsum(dO O)),   dQ = scale dS K,   dK = scale dSᵀ Q
//
// With a soft cap c the product's part of S is c tanh(scale Q Kᵀ / c) (Gemma 2, 2024), and dQ and
// dK have its slope 1 - tanh² as a further factor. A sink z is one more score in the denominator,
// with no value: P = exp(S) / (exp(z) + Σ exp(S)) (gpt-oss, 2025), so that dz = -Σ exp(z - m -
// log(l)) dO O.
//
// A block of scores is made, used and dropped. Forward, a block of queries goes past all keys with
// a running maximum m and a running sum l of exp(S - m); what was added up under a smaller maximum
// is scaled down when a larger one comes. It leaves m + log(l), from which backward computes any
// block of P again. Source: FlashAttention-2, Dao 2023 (arXiv 2307.08691), algorithms 1 and 2.
//
// Products are made of the tiles of matmul.h. The scores are computed transposed, keys down and queries
// across: then the maximum and the sum over keys run lane by lane, and exp(S - m) already lies as the
// panel of B that the product with V wants. Threads take blocks of queries, or heads where there are but
// a few queries.

#pragma once

#include "matmul.h"

namespace minitorch::MT_INSTRUCTION_SET {

// One head: element (t, d) at data[t * row + d].
template <typename T>
using Head = Matrix<T>;

// One head of one sequence: what is computed from its queries and keys.
template <typename C>
struct Scores {
    long time_q, time_k, dim, value_dim;
    C scale;
    C softcap;             // 0: none
    long offset;           // query i stands at key i + offset,
    long left, right;      // and sees so many keys before and after; all, where negative
    const C* sink;         // or null
    Matrix<const C> bias;  // (time_q, time_k), -inf where a query must not look; or null
    Matrix<C> dbias;       // receives its gradient; or null

    long first_key(long query) const {
        const long key = query + offset - left;
        return left < 0 || key < 0 ? 0 : key < time_k ? key : time_k;
    }
    long end_of_keys(long query) const {
        const long end = query + offset + right + 1;
        return right < 0 || end > time_k ? time_k : end > 0 ? end : 0;
    }
    bool sees(long query, long key) const {
        return key >= first_key(query) && key < end_of_keys(query);
    }
    // The queries that see any of the keys from `key` to `last`.
    long first_query(long key) const {
        const long query = key - offset - right;
        return right < 0 || query < 0 ? 0 : query < time_q ? query : time_q;
    }
    long end_of_queries(long last) const {
        const long end = last - offset + left + 1;
        return left < 0 || end > time_q ? time_q : end > 0 ? end : 0;
    }
    // What the products of queries and keys are multiplied by, and then passed to `capped`.
    C factor() const { return softcap != 0 ? scale / softcap : scale; }
    Vector<C> capped(Vector<C> x) const { return softcap != 0 ? softcap * tanh<C>(x) : x; }
    bool has_sink() const { return sink && !(*sink == -kInfinity<C>); }
};

constexpr long kKeys = 8 * kRows;  // keys in a block

// What all blocks of queries read: K in panels of keys, Vᵀ in panels of value dimensions.
template <typename C>
struct PackedKeys {
    const C* keys;
    const C* values;

    static long size(const Scores<C>& s) {
        return round_up(s.time_k, kRows) * s.dim + round_up(s.value_dim, kRows) * s.time_k + 64;
    }
    template <typename T>
    static void pack(const Scores<C>& s, Head<const T> k, Head<const T> v, C* to) {
        pack_rows<T, C, kRows>(k, s.time_k, s.dim, to);
        pack_rows<T, C, kRows>(v.transposed(), s.value_dim, s.time_k,
                               to + round_up(s.time_k, kRows) * s.dim);
    }
    static PackedKeys at(const Scores<C>& s, const C* packed) {
        return {packed, packed + round_up(s.time_k, kRows) * s.dim};
    }
};

// Rows of `from` (count, width) with stride `stride`, multiplied by `factor`, into a head.
template <typename T, typename C>
void write_rows(const C* from, long stride, long count, long width, Head<T> to, C factor = 1) {
    constexpr long lanes = Lanes<C>::count;
    for (long t = 0; t < count; ++t, from += stride) {
        T* row = to.at(t, 0);
        long d = 0;
        for (; d + lanes <= width; d += lanes) store(row + d, load(from + d) * factor);
        if (d < width)
            store_part(row + d, load_part(from + d, width - d, C(0)) * factor, width - d);
    }
}

// 0, 1, 2, ...
template <typename C, typename Int = typename ExpConstants<C>::Int>
Vector<Int> places() {
    Vector<Int> out;
    for (long lane = 0; lane < Lanes<C>::count; ++lane) out[lane] = lane;
    return out;
}

// Which keys the queries of a block see, a query to a lane.
template <typename C>
struct Sight {
    using Int = typename ExpConstants<C>::Int;
    Vector<Int> begin, end;

    Sight(const Scores<C>& s, long query) {
        const Vector<Int> position = places<C>() + Int(query + s.offset);
        const Vector<Int> keys = broadcast(Int(s.time_k));
        begin = s.left < 0 ? Vector<Int>{} : within(position - Int(s.left), keys);
        end = s.right < 0 ? keys : within(position + Int(s.right + 1), keys);
    }
    static Vector<Int> within(Vector<Int> x, Vector<Int> limit) {
        x = x < 0 ? Vector<Int>{} : x;
        return x < limit ? x : limit;
    }
    auto sees(long key) const {
        const Vector<Int> k = broadcast(Int(key));
        return (k >= begin) & (k < end);
    }
    Vector<C> hide(Vector<C> score, long key) const {
        return sees(key) ? score : broadcast(-kInfinity<C>);
    }
};

// Scores are here logarithms to the base 2: a power of 2 costs less than one of e.
template <typename C>
constexpr C kLog2E = 1.4426950408889634074;
template <typename C>
constexpr C kLargest = sizeof(C) == sizeof(float) ? __FLT_MAX__ : __DBL_MAX__;

// The softmax of a row that comes in pieces, for a block of queries, a query to a lane.
template <typename C>
struct OnlineSoftmax {
    static constexpr long columns = kColumns<C>, lanes = Lanes<C>::count;
    Vector<C> peak[2];   // the largest score so far
    Vector<C> total[2];  // the sum of 2^(score - peak)

    explicit OnlineSoftmax(const Scores<C>& s) {
        for (long h = 0; h < 2; ++h) {
            peak[h] = broadcast(s.has_sink() ? *s.sink * kLog2E<C> : -kInfinity<C>);
            total[h] = broadcast(C(s.has_sink()));
        }
    }
    // Goes to the largest scores of a block too, `here` times factor, which is positive.
    // 2^(score - shift) is what the block's scores then weigh, and what was added up before is to be
    // multiplied by `shrink`.
    void raise(const Vector<C>* here, C factor, Vector<C>* shift, Vector<C>* shrink) {
        for (long h = 0; h < 2; ++h) {
            const Vector<C> now = maximum<C>(here[h] * factor, peak[h]);
            // Where nothing was seen yet the shift is 0, so that 2^-inf and not NaN comes out.
            shift[h] = now > -kInfinity<C> ? now : Vector<C>{};
            shrink[h] = exp2_nonpositive<C>(peak[h] - shift[h]);
            peak[h] = now;
        }
    }
    // Makes their weights of the scores of a block.
    void take(C* block, long keys, Vector<C>* shrink) {
        Vector<C> shift[2], added[2] = {};
        Vector<C> here[2] = {broadcast(-kInfinity<C>), broadcast(-kInfinity<C>)};
        largest(block, keys, here);
        raise(here, 1, shift, shrink);
        for (long i = 0; i < keys; ++i)
#pragma GCC unroll 2
            for (long h = 0; h < 2; ++h) {
                C* at = block + i * columns + h * lanes;
                const Vector<C> p = exp2_nonpositive<C>(load(at) - shift[h]);
                store(at, p);
                added[h] += p;
            }
        add(added, shrink);
    }
    void add(const Vector<C>* added, const Vector<C>* shrink) {
        for (long h = 0; h < 2; ++h) total[h] = total[h] * shrink[h] + added[h];
    }
    // Of a block (keys, queries) and of what is there: in four parts, since each comparison waits for
    // the one before.
    static void largest(const C* block, long keys, Vector<C>* out) {
        const Vector<C> none = broadcast(-kInfinity<C>);
        Vector<C> part[4][2] = {{out[0], out[1]}, {none, none}, {none, none}, {none, none}};
        long i = 0;
        for (; i + 4 <= keys; i += 4)
#pragma GCC unroll 4
            for (long j = 0; j < 4; ++j)
#pragma GCC unroll 2
                for (long h = 0; h < 2; ++h)
                    part[j][h] = maximum<C>(load(block + (i + j) * columns + h * lanes), part[j][h]);
        for (; i < keys; ++i)
            for (long h = 0; h < 2; ++h)
                part[0][h] = maximum<C>(load(block + i * columns + h * lanes), part[0][h]);
        for (long h = 0; h < 2; ++h)
            out[h] = maximum<C>(maximum<C>(part[0][h], part[1][h]), maximum<C>(part[2][h], part[3][h]));
    }
    Vector<C> inverse(long h) const { return total[h] == C(0) ? Vector<C>{} : C(1) / total[h]; }
    Vector<C> log_normaliser(long h) const {
        return total[h] == C(0) ? broadcast(kInfinity<C>) : peak[h] / kLog2E<C> + log<C>(total[h]);
    }
};

// The scores of the queries of a block, which is (keys, queries) and holds scores / factor: cap, bias,
// and what is out of sight.
template <typename C>
void change_scores(const Scores<C>& s, const Sight<C>* sight, long first, long count, long key,
                   long keys, C factor, C* block, C* bias) {
    constexpr long columns = kColumns<C>, lanes = Lanes<C>::count;
    const auto change = [&](long begin, long end, auto f) {
        for (long i = begin; i < end; ++i)
            for (long h = 0; h < 2; ++h) {
                C* at = block + i * columns + h * lanes;
                store(at, f(load(at), i, h));
            }
    };
    if (s.softcap != 0)
        change(0, keys,
               [&](Vector<C> x, long, long) { return s.capped(x * factor) * kLog2E<C>; });
    else if (factor != 1)
        change(0, keys, [&](Vector<C> x, long, long) { return x * factor; });
    if (s.bias.data) {
        pack_panel<C, C, columns>({s.bias.at(first, key), s.bias.row, s.bias.column}, count, keys,
                                  bias);
        change(0, keys,
            [&](Vector<C> x, long i, long h) {
                const Vector<C> b = load(bias + i * columns + h * lanes);
                // The least finite number stays finite: a row of nothing else weighs all alike.
                const Vector<C> scaled = maximum<C>(broadcast(-kLargest<C>), b * kLog2E<C>);
                return x + (b == -kInfinity<C> ? b : scaled);
            });
    }
    // All queries see the keys from the last one's first to the first one's last.
    const auto place = [=](long at) { return at < key ? 0 : at - key < keys ? at - key : keys; };
    const auto hide = [&](Vector<C> x, long i, long h) { return sight[h].hide(x, key + i); };
    const long low = place(s.first_key(first + count - 1)), high = place(s.end_of_keys(first));
    change(0, low, hide);
    change(low < high ? high : low, keys, hide);
}

// Oᵀ (dim, queries), divided by the sums of the softmax, as rows of out; `rows` is room for
// kColumns of them.
template <typename T, typename C>
void write_queries(const C* sums, const OnlineSoftmax<C>& softmax, long dim, long count, C* rows,
                   Head<T> out) {
    constexpr long columns = kColumns<C>, lanes = Lanes<C>::count;
    C inverse[columns];
    for (long h = 0; h < 2; ++h) store(inverse + h * lanes, softmax.inverse(h));
    for (long i = 0; i < dim; i += columns) {
        const long part = dim - i < columns ? dim - i : columns;
        pack_panel<C, C, columns>({sums + i * columns, columns, 1}, part, columns, rows);
        for (long j = 0; j < count; ++j) {
            T* to = out.at(j, i);
            const C* row = rows + j * columns;
            if (part == columns) {
                store(to, load(row) * inverse[j]);
                store(to + lanes, load(row + lanes) * inverse[j]);
            } else {
                for_each_vector<C>(
                    part, [&](long, auto get, auto put) { put(to, get(row) * inverse[j]); });
            }
        }
    }
}

// m + log(l) of `count` queries.
template <typename C>
void write_normalisers(const OnlineSoftmax<C>& softmax, long count, C* to) {
    constexpr long lanes = Lanes<C>::count;
    for (long h = 0; h < 2 && h * lanes < count; ++h) {
        const long part = count - h * lanes < lanes ? count - h * lanes : lanes;
        store_part(to + h * lanes, softmax.log_normaliser(h), part);
    }
}

// out and lse of the queries [first, first + count), count at most kColumns.
template <typename T>
void attend(const Scores<Compute<T>>& s, Head<const T> q, PackedKeys<Compute<T>> packed, long first,
            long count, Head<T> out, Compute<T>* lse) {
    using C = Compute<T>;
    constexpr long columns = kColumns<C>, lanes = Lanes<C>::count;
    const long out_rows = round_up(s.value_dim, kRows);
    C* query = scratch<C>(0, (s.dim + out_rows + 2 * kKeys) * columns + 64);
    C* sums = query + s.dim * columns;     // Oᵀ: (value_dim, queries)
    C* block = sums + out_rows * columns;  // Sᵀ, then Pᵀ: (keys, queries)
    C* bias = block + kKeys * columns;     // that of the block
    pack_panel<T, C, columns>({q.at(first, 0), q.row, q.column}, count, s.dim, query);
    const C factor = s.softcap != 0 ? s.factor() : s.factor() * kLog2E<C>;
    for (long i = 0; i < s.dim * columns; i += lanes) store(query + i, load(query + i) * factor);
    const Sight<C> sight[2] = {{s, first}, {s, first + lanes}};
    OnlineSoftmax<C> softmax(s);

    const long begin = s.first_key(first) / kRows * kRows, end = s.end_of_keys(first + count - 1);
    for (long key = begin; key < end; key += kKeys) {
        const long keys = end - key < kKeys ? end - key : kKeys;
        for (long i = 0; i < keys; i += kRows)
            set_tile<C, Layout::panels>(keys - i < kRows ? keys - i : kRows, columns, s.dim,
                                        Operands<C>::panels(packed.keys + (key + i) * s.dim, query),
                                        block + i * columns, columns);
        change_scores(s, sight, first, count, key, keys, C(1), block, bias);
        Vector<C> shrink[2];
        softmax.take(block, keys, shrink);
        for (long i = 0; i < s.value_dim; i += kRows) {
            const long rows = s.value_dim - i < kRows ? s.value_dim - i : kRows;
            const auto from =
                Operands<C>::panels(packed.values + i * s.time_k + key * kRows, block);
            C* to = sums + i * columns;
            if (key == begin)
                set_tile<C, Layout::panels>(rows, columns, keys, from, to, columns);
            else
                compute_tile<C, true, Layout::panels>(rows, columns, keys, from, to, columns, shrink);
        }
    }
    if (begin >= end) __builtin_memset(sums, 0, sizeof(C) * s.value_dim * columns);
    write_queries<T, C>(sums, softmax, s.value_dim, count, block,
                        {out.at(first, 0), out.row, out.column});
    write_normalisers(softmax, count, lse + first);
}

// Asks for a row that will be read soon.
template <typename T>
void fetch_ahead(const T* row, long width) {
    for (long d = 0; d < width; d += 64 / static_cast<long>(sizeof(T))) __builtin_prefetch(row + d);
}

// One query past all keys, which are read where they are: decoding, where nothing is read twice and
// memory decides. A head's keys are too few for the processor to find out in time what comes next, so
// it is told: the keys of the next turn, and the values, of which it has not yet seen any.
template <typename T>
void attend_alone(const Scores<Compute<T>>& s, long query, const T* q, Head<const T> k,
                  Head<const T> v, T* out, Compute<T>* lse) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    const long begin = s.first_key(query), limit = s.end_of_keys(query);
    const long end = limit > begin ? limit : begin;
    C* weights = scratch<C>(0, end - begin + s.dim + s.value_dim + 3 * lanes);
    C* scaled = weights + round_up(end - begin, lanes);
    C* sums = scaled + round_up(s.dim, lanes);
    const C factor = s.factor();
    for_each_vector<C>(s.dim, [&](long d, auto get, auto) { store(scaled + d, get(q) * factor); });
    // A vector of keys at a time, four of them at once: their products are turned, so that sums run
    // across vectors. Past the end the last key stands for those that are not there.
    for (long key = begin; key < end; key += lanes) {
        constexpr long together = lanes < 4 ? lanes : 4;
        Vector<C> products[lanes];
        for (long i = 0; i < lanes; i += together) {
            const T* row[together];
            for (long c = 0; c < together; ++c) {
                const long at = key + i + c < end ? key + i + c : end - 1;
                row[c] = k.at(at, 0);
                fetch_ahead(k.at(at + lanes < end ? at + lanes : at, 0), s.dim);
                fetch_ahead(v.at(at, 0), s.value_dim);
            }
            Vector<C> sum[together] = {};
            const auto add = [&](long d, const auto& get) __attribute__((always_inline)) {
                const Vector<C> part = load(scaled + d);
#pragma GCC unroll 4
                for (long c = 0; c < together; ++c) sum[c] += part * get(row[c] + d);
            };
            long d = 0;
            for (; d + lanes <= s.dim; d += lanes) add(d, [](const T* x) { return load(x); });
            if (const long rest = s.dim - d; rest > 0)
                add(d, [=](const T* x) { return load_part(x, rest, C(0)); });
#pragma GCC unroll 4
            for (long c = 0; c < together; ++c) products[i + c] = sum[c];
        }
        turn_blocks<C, 1>(products);
        for (long i = 1; i < lanes; ++i) products[0] += products[i];
        store(weights + (key - begin), products[0]);
    }
    Vector<C> peaks = broadcast(s.has_sink() ? *s.sink : -kInfinity<C>);
    for (long i = 0; i < end - begin; i += lanes) {
        const long count = end - begin - i < lanes ? end - begin - i : lanes;
        Vector<C> score = s.capped(load(weights + i));
        if (s.bias.data) {
            C bias[lanes] = {};
            for (long j = 0; j < count; ++j) bias[j] = *s.bias.at(query, begin + i + j);
            score += load(bias);
        }
        store(weights + i, score);
        peaks = maximum<C>(first_lanes<C>(score, count, -kInfinity<C>), peaks);
    }
    const C peak = largest_lane<C>(peaks);
    const C shift = peak > -kInfinity<C> ? peak : C(0);
    C total = 0;
    if (s.has_sink()) total = exp_nonpositive<C>(broadcast(*s.sink - shift))[0];
    for (long i = 0; i < end - begin; i += lanes) {
        const long count = end - begin - i < lanes ? end - begin - i : lanes;
        const Vector<C> e =
            exp_nonpositive<C>(load_part(weights + i, count, -kInfinity<C>) - shift);
        store_part(weights + i, e, count);
        total += sum_of_lanes<C>(e);
    }
    long d = 0;
    for (; d + 4 * lanes <= s.value_dim; d += 4 * lanes) {
        Vector<C> sum[4] = {};
        for (long key = begin; key < end; ++key) {
            const T* row = v.at(key, d);
#pragma GCC unroll 4
            for (long i = 0; i < 4; ++i) sum[i] += weights[key - begin] * load(row + i * lanes);
        }
        for (long i = 0; i < 4; ++i) store(sums + d + i * lanes, sum[i]);
    }
    for (; d < s.value_dim; d += lanes) {
        Vector<C> sum{};
        for (long key = begin; key < end; ++key) {
            const T* row = v.at(key, d);
            sum += weights[key - begin] *
                   (s.value_dim - d < lanes ? load_part(row, s.value_dim - d, C(0)) : load(row));
        }
        store(sums + d, sum);
    }
    for_each_vector<C>(s.value_dim, [&](long, auto get, auto put) {
        put(out, total == 0 ? Vector<C>{} : get(sums) / total);
    });
    *lse = total == 0 ? kInfinity<C> : peak + log_of(total);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
