#include "attention_pieces.h"
#include "attention_tiles_backward.h"

namespace minitorch::MT_INSTRUCTION_SET {

// One sequence of the batch: an element of the batch dimension, or a range of the time that all
// sequences share.
struct Sequence {
    long batch, first_query, time_q, first_key, time_k;
    long blocks;  // of queries, in the sequences before
    long packed;  // where its packed keys begin
};

constexpr long kFewQueries = 2;

// What the arrays and numbers of a call mean.
template <typename T>
struct Problem {
    using C = Compute<T>;
    const Array &q, &k, &v, &bias, &sinks;
    const Array &starts_q, &starts_k;  // of packed sequences, and where the last ends; or none
    const double* numbers;             // scale, softcap, left, right, lower_right

    long heads() const { return q.shape[1]; }
    long kv_heads() const { return k.shape[1]; }
    long group() const { return heads() / kv_heads(); }
    long count() const { return starts_q ? starts_q.size - 1 : q.shape[0]; }

    Sequence sequence(long i) const {
        if (!starts_q) return {i, 0, q.shape[2], 0, k.shape[2], 0, 0};
        const int64_t *from = starts_q.as<int64_t>() + i, *keys_from = starts_k.as<int64_t>() + i;
        return {0, from[0], from[1] - from[0], keys_from[0], keys_from[1] - keys_from[0], 0, 0};
    }
    Scores<C> scores(const Sequence& one, long head) const {
        const bool lower_right = numbers[4] != 0;
        const double all = one.time_q + one.time_k;  // as good as any larger bound
        const double left = numbers[2] < all ? numbers[2] : all;
        const double right = numbers[3] < all ? numbers[3] : all;
        return {one.time_q,
                one.time_k,
                q.shape[3],
                v.shape[3],
                C(numbers[0]),
                C(numbers[1]),
                lower_right ? one.time_k - one.time_q : 0,
                static_cast<long>(left),
                static_cast<long>(right),
                sinks ? sinks.as<const C>() + head * sinks.strides[0] : nullptr,
                head_of<const C>(bias, one.batch, head, 0),
                {}};
    }
    // (time, dim) of one head, from a time on.
    template <typename E>
    static Head<E> head_of(const Array& x, long batch, long head, long time) {
        if (!x) return {nullptr, 0, 0};
        return {x.as<E>() + batch * x.strides[0] + head * x.strides[1] + time * x.strides[2],
                x.strides[2], x.strides[3]};
    }
    template <typename E>
    static Head<E> queries_of(const Array& x, const Sequence& one, long head) {
        return head_of<E>(x, one.batch, head, one.first_query);
    }
    template <typename E>
    static Head<E> keys_of(const Array& x, const Sequence& one, long head) {
        return head_of<E>(x, one.batch, head, one.first_key);
    }
    static C* lse_of(const Array& x, const Sequence& one, long head) {
        return x.as<C>() + one.batch * x.strides[0] + head * x.strides[1] + one.first_query;
    }
};

// Packed keys and values of a head that are used as soon as they are packed, while they are in the
// second-level cache, hold at most so many bytes.
constexpr long kNearBytesOfKeys = 1 << 19;

// With `tiles` the products are made in tile registers.
struct None {};
template <bool tiles>
using Registers = std::conditional_t<tiles, TileRegisters, None>;

template <typename T, bool tiles>
struct Forward {
    using C = Compute<T>;
    static constexpr bool in_pieces = tiles && __is_same(T, float);
    using Keys = std::conditional_t<tiles, TiledKeys<T>, PackedKeys<C>>;
    static constexpr long columns = kColumns<C>;
    const Problem<T>& p;
    const Array &out, &lse;

    static bool few(const Sequence& one) { return one.time_q <= kFewQueries; }
    static long blocks(const Sequence& one) {
        return few(one) ? one.time_q > 0 : ceil_div(one.time_q, columns);
    }
    long packed_size(const Sequence& one) const {
        return few(one) ? 0 : Keys::size(p.scores(one, 0));
    }
    void pack(const Sequence& one, long key_head, C* to) const {
        if (!few(one))
            Keys::pack(p.scores(one, 0), keys(p.k, one, key_head), keys(p.v, one, key_head), to);
    }
    Head<const T> keys(const Array& x, const Sequence& one, long head) const {
        return p.template keys_of<const T>(x, one, head);
    }
    void attend_block(const Sequence& one, long head, long block, const C* packed) const {
        const long first = block * columns, key_head = head / p.group();
        const Scores<C> s = p.scores(one, head);
        const Head<const T> queries = p.template queries_of<const T>(p.q, one, head);
        const Head<T> to = p.template queries_of<T>(out, one, head);
        C* normalisers = p.lse_of(lse, one, head);
        if (few(one)) {
            for (long t = 0; t < one.time_q; ++t)
                attend_alone<T>(s, t, queries.at(t, 0), keys(p.k, one, key_head),
                                keys(p.v, one, key_head), to.at(t, 0), normalisers + t);
            return;
        }
        const long count = one.time_q - first < columns ? one.time_q - first : columns;
        const auto with = [&](const auto& keys) {
            return attend(s, queries, keys, first, count, to, normalisers);
        };
        if constexpr (in_pieces) {
            if (with(Keys::at(s, packed))) return;
            C* whole = scratch<C>(2, PackedKeys<C>::size(s));
            PackedKeys<C>::pack(s, keys(p.k, one, key_head), keys(p.v, one, key_head), whole);
            with(PackedKeys<C>::at(s, whole));
        } else {
            with(Keys::at(s, packed));
        }
    }

    // A thread takes heads of keys, with all their queries.
    void by_heads(const Sequence* plan, long sequences, long grain) const {
        const long kv_heads = p.kv_heads(), group = p.group();
        parallel_ranges(sequences * kv_heads, grain, [&](long begin, long end) {
            [[maybe_unused]] const Registers<tiles> registers;
            for (long i = begin; i < end; ++i) {
                const Sequence& one = plan[i / kv_heads];
                const long key_head = i % kv_heads;
                C* packed = scratch<C>(1, packed_size(one));
                pack(one, key_head, packed);
                for (long head = key_head * group; head < (key_head + 1) * group; ++head)
                    for (long block = 0; block < blocks(one); ++block)
                        attend_block(one, head, block, packed);
            }
        });
    }
    // Threads pack the keys of all heads together; then each takes blocks of queries.
    void by_blocks(const Sequence* plan, long sequences, long grain) const {
        const long kv_heads = p.kv_heads(), heads = p.heads();
        C* memory = scratch<C>(7, plan[sequences].packed);
        const auto place = [&](const Sequence& one, long key_head) {
            return memory + one.packed + key_head * packed_size(one);
        };
        parallel_ranges(sequences * kv_heads, grain, [&](long begin, long end) {
            for (long i = begin; i < end; ++i) {
                const Sequence& one = plan[i / kv_heads];
                pack(one, i % kv_heads, place(one, i % kv_heads));
            }
        });
        parallel_ranges(plan[sequences].blocks * heads, grain, [&](long begin, long end) {
            [[maybe_unused]] const Registers<tiles> registers;
            long at = 0;
            for (long i = begin; i < end; ++i) {
                while (plan[at + 1].blocks * heads <= i) ++at;
                const Sequence& one = plan[at];
                const long own = plan[at + 1].blocks - one.blocks, rest = i - one.blocks * heads;
                // The last block first, since under a causal mask it is the longest.
                attend_block(one, rest / own, own - 1 - rest % own, place(one, rest / own / p.group()));
            }
        });
    }

    void run() const {
        const long sequences = p.count(), kv_heads = p.kv_heads();
        Sequence* plan = scratch<Sequence>(6, sequences + 1);
        long taken = 0, packed = 0, largest = 0, work = 0;
        for (long i = 0; i < sequences; ++i) {
            Sequence& one = plan[i] = p.sequence(i);
            one.blocks = taken, one.packed = packed;
            taken += blocks(one), packed += kv_heads * packed_size(one);
            largest = packed_size(one) > largest ? packed_size(one) : largest;
            work += one.time_k * p.q.shape[3];
        }
        if (taken == 0) return;
        plan[sequences].blocks = taken, plan[sequences].packed = packed;
        const long grain = rows_per_piece(work / (sequences + 1));
        const bool near = largest * static_cast<long>(sizeof(C)) <= kNearBytesOfKeys;
        if (near && sequences * kv_heads >= 4 * num_threads())
            by_heads(plan, sequences, ceil_div(grain, ceil_div(taken, sequences)));
        else
            by_blocks(plan, sequences, grain);
    }
};

template <typename T, bool tiles>
static void backward(const Problem<T>& p, const Array& grad, const Array& out, const Array& lse,
                     const Array& dq, const Array& dk, const Array& dv, const Array& dbias,
                     const Array& dsinks) {
    using C = Compute<T>;
    const long sequences = p.count(), kv_heads = p.kv_heads(), group = p.group();
    const auto run = [&](long i, long key_head) {
        const Sequence one = p.sequence(i);
        const auto head = [&](long g) {
            const long number = key_head * group + g;
            const Scores<C> s = p.scores(one, number);
            return BackwardHead<T>{p.template queries_of<const T>(p.q, one, number),
                                   p.template queries_of<const T>(grad, one, number),
                                   p.template queries_of<const T>(out, one, number),
                                   p.lse_of(lse, one, number),
                                   s.sink,
                                   s.bias,
                                   p.template queries_of<T>(dq, one, number),
                                   dsinks ? dsinks.as<C>() + i * p.heads() + number : nullptr,
                                   p.template head_of<C>(dbias, one.batch, number, 0)};
        };
        const Scores<C> s = p.scores(one, 0);
        const Head<const T> k = p.template keys_of<const T>(p.k, one, key_head);
        const Head<const T> v = p.template keys_of<const T>(p.v, one, key_head);
        const Head<T> to_k = p.template keys_of<T>(dk, one, key_head);
        const Head<T> to_v = p.template keys_of<T>(dv, one, key_head);
        if constexpr (tiles)
            if (fit_in_tiles(s, k, v, group, head))
                return backward_group_in_tiles<T>(s, k, v, to_k, to_v, group, head);
        backward_group<T>(s, k, v, to_k, to_v, group, head);
    };
    // What adds to the same gradient of a bias is one thread's, in order.
    const bool share_batch = dbias && dbias.strides[0] == 0;
    const bool share_heads = dbias && dbias.strides[1] == 0;
    const long outer = share_batch ? 1 : sequences, inner = share_heads ? 1 : kv_heads;
    parallel_for(outer * inner, [&](long i) {
        [[maybe_unused]] const Registers<tiles> registers;
        for (long s = 0; s < sequences / outer; ++s)
            for (long h = 0; h < kv_heads / inner; ++h) run(i / inner + s, i % inner + h);
    });
}

static bool rows_lie(const Array& x) {
    return x.strides[3] == 1 || x.shape[3] == 1;
}

static void check(const Array& q, const Array& k, const Array& v, const Array& out,
                  const Array& starts_q, const Array& starts_k) {
    require(q.ndim == 4 && k.ndim == 4 && v.ndim == 4 && out.ndim == 4 &&
                q.shape[0] == k.shape[0] && k.shape[0] == v.shape[0] && k.shape[1] == v.shape[1] &&
                k.shape[2] == v.shape[2] && q.shape[3] == k.shape[3] && k.shape[1] > 0 &&
                q.shape[1] % k.shape[1] == 0 && out.shape[3] == v.shape[3] && rows_lie(q) &&
                rows_lie(k) && rows_lie(v) && rows_lie(out),
            "attention: arrays that do not fit");
    require(bool(starts_q) == bool(starts_k) && starts_q.size == starts_k.size,
            "attention: starts of the queries and of the keys");
    if (!starts_q) return;
    const auto rises = [](const Array& starts, long end) {
        const int64_t* at = starts.as<int64_t>();
        bool fine = starts.dtype == Dtype::int64 && starts.size > 0 && starts.strides[0] == 1 &&
                    at[0] == 0 && at[starts.size - 1] == end;
        for (long i = 1; i < starts.size; ++i) fine &= at[i - 1] <= at[i];
        return fine;
    };
    require(q.shape[0] == 1 && rises(starts_q, q.shape[2]) && rises(starts_k, k.shape[2]),
            "attention: starts that do not rise from 0 to the end");
}

template <typename Run>
static void dispatch(Dtype dtype, const Run& run) {
    if (dtype == Dtype::float32)
        run(float{});
    else if (dtype == Dtype::float64)
        run(double{});
    else if (dtype == Dtype::bfloat16)
        run(bfloat16{});
    else
        fail("attention: expected float32, float64 or bfloat16");
}

// Whether products with these keys are made in tile registers.
template <typename T>
static bool in_tiles(const Array& keys) {
    return tile_registers_serve() &&
           (__is_same(T, bfloat16) || keys.shape[2] >= kLeastKeysInPieces);
}

// query (batch, heads, time_q, dim), key (batch, kv_heads, time_k, dim), value, bias (batch, heads,
// time_q, time_k) or None, sinks (heads,) or None, starts of the queries and of the keys of
// sequences that share a time (batch is 1, there is no bias) or None twice, out, lse (batch, heads,
// time_q); scale, softcap or 0, left, right, lower_right. bias, sinks and lse are of the compute
// type. The last dimension of all but bias has stride 1.
KERNEL(attention) {
    check(arrays[0], arrays[1], arrays[2], arrays[7], arrays[5], arrays[6]);
    dispatch(arrays[0].dtype, [&](auto kind) {
        using T = decltype(kind);
        const Problem<T> problem{arrays[0], arrays[1], arrays[2], arrays[3],
                                 arrays[4], arrays[5], arrays[6], numbers};
        if constexpr (kTiledAttention && !__is_same(T, double))
            if (in_tiles<T>(arrays[1]))
                return Forward<T, true>{problem, arrays[7], arrays[8]}.run();
        Forward<T, false>{problem, arrays[7], arrays[8]}.run();
    });
}

// The same as far as the starts, then grad, out, lse, dquery, dkey, dvalue, dbias (to which is
// added; its strides may be 0) or None, dsinks (sequences, heads) or None; the same numbers.
KERNEL(attention_backward) {
    check(arrays[0], arrays[1], arrays[2], arrays[8], arrays[5], arrays[6]);
    check(arrays[10], arrays[11], arrays[12], arrays[7], arrays[5], arrays[6]);
    dispatch(arrays[0].dtype, [&](auto kind) {
        using T = decltype(kind);
        const Problem<T> problem{arrays[0], arrays[1], arrays[2], arrays[3],
                                 arrays[4], arrays[5], arrays[6], numbers};
        const auto run = [&](auto tiles) {
            backward<T, tiles>(problem, arrays[7], arrays[8], arrays[9], arrays[10], arrays[11],
                               arrays[12], arrays[13], arrays[14]);
        };
        if constexpr (kTiledAttention && !__is_same(T, double))
            if (in_tiles<T>(arrays[1])) return run(std::true_type());
        run(std::false_type());
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
