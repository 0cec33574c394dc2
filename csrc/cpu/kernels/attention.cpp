#include "attention.h"

namespace minitorch::MT_INSTRUCTION_SET {

template <typename T>
static Head<T> head_of(const Array& x, long batch, long head) {
    if (!x) return {nullptr, 0, 0};
    return {x.as<T>() + batch * x.strides[0] + head * x.strides[1], x.strides[2], x.strides[3]};
}

template <typename C>
static Scores<C> scores_of(const Array& q, const Array& k, const Array& v, const double* numbers) {
    return {q.shape[2], k.shape[2],      q.shape[3],
            v.shape[3], C(numbers[0]), numbers[1] != 0, static_cast<long>(numbers[2]), {}};
}

constexpr long kFewQueries = 2;

template <typename T>
static void forward(const Array* arrays, const double* numbers) {
    using C = Compute<T>;
    const Array &q = arrays[0], &k = arrays[1], &v = arrays[2], &bias = arrays[3], &out = arrays[4],
                &lse = arrays[5];
    const Scores<C> s = scores_of<C>(q, k, v, numbers);
    const long heads = q.shape[1], kv_heads = k.shape[1], key_heads = k.shape[0] * kv_heads;
    if (s.time_q <= kFewQueries) {
        parallel_ranges(
            q.shape[0] * heads, rows_per_piece(s.time_q * s.time_k * s.dim),
            [&](long begin, long end) {
                for (long i = begin; i < end; ++i) {
                    const long batch = i / heads, head = i % heads;
                    const long key_head = head / (heads / kv_heads);
                    Scores<C> own = s;
                    own.bias = head_of<const C>(bias, batch, head);
                    const Head<const T> queries = head_of<const T>(q, batch, head);
                    const Head<T> to = head_of<T>(out, batch, head);
                    for (long t = 0; t < s.time_q; ++t)
                        attend_alone<T>(own, t, queries.at(t, 0),
                                        head_of<const T>(k, batch, key_head),
                                        head_of<const T>(v, batch, key_head), to.at(t, 0),
                                        lse.as<C>() + i * s.time_q + t);
                }
            });
        return;
    }
    const long size = PackedKeys<C>::size(s);
    C* memory = scratch<C>(7, key_heads * size);
    parallel_ranges(key_heads, rows_per_piece(s.time_k * s.dim), [&](long begin, long end) {
        for (long i = begin; i < end; ++i)
            PackedKeys<C>::template pack<T>(s, head_of<const T>(k, i / kv_heads, i % kv_heads),
                                            head_of<const T>(v, i / kv_heads, i % kv_heads),
                                            memory + i * size);
    });
    constexpr long columns = kColumns<C>;
    const long blocks = ceil_div(s.time_q, columns);
    parallel_ranges(
        q.shape[0] * heads * blocks, rows_per_piece(s.time_k * s.dim), [&](long begin, long end) {
            for (long i = begin; i < end; ++i) {
                const long block = i % blocks, head = i / blocks % heads, batch = i / blocks / heads;
                const long first = block * columns, key_head = head / (heads / kv_heads);
                Scores<C> own = s;
                own.bias = head_of<const C>(bias, batch, head);
                C* packed = memory + (batch * kv_heads + key_head) * size;
                attend<T>(own, head_of<const T>(q, batch, head),
                          {packed, packed + round_up(s.time_k, kRows) * s.dim}, first,
                          s.time_q - first < columns ? s.time_q - first : columns,
                          head_of<T>(out, batch, head),
                          lse.as<C>() + (batch * heads + head) * s.time_q);
            }
        });
}

template <typename T>
static void backward(const Array* arrays, const double* numbers) {
    using C = Compute<T>;
    const Array &grad = arrays[0], &q = arrays[1], &k = arrays[2], &v = arrays[3],
                &bias = arrays[4], &out = arrays[5], &lse = arrays[6], &dq = arrays[7],
                &dk = arrays[8], &dv = arrays[9];
    const Scores<C> s = scores_of<C>(q, k, v, numbers);
    const long heads = q.shape[1], kv_heads = k.shape[1], group = heads / kv_heads;
    parallel_for(k.shape[0] * kv_heads, [&](long i) {
        const long batch = i / kv_heads, key_head = i % kv_heads;
        backward_group<T>(s, head_of<const T>(k, batch, key_head),
                          head_of<const T>(v, batch, key_head), head_of<T>(dk, batch, key_head),
                          head_of<T>(dv, batch, key_head), group, [&](long g) {
                              const long head = key_head * group + g;
                              return BackwardHead<T>{
                                  head_of<const T>(q, batch, head),
                                  head_of<const T>(grad, batch, head),
                                  head_of<const T>(out, batch, head),
                                  lse.as<const C>() + (batch * heads + head) * s.time_q,
                                  head_of<const C>(bias, batch, head),
                                  head_of<T>(dq, batch, head)};
                          });
    });
}

static void check(const Array& q, const Array& k, const Array& v, const Array& out) {
    require(q.ndim == 4 && k.ndim == 4 && v.ndim == 4 && out.ndim == 4 &&
                q.shape[0] == k.shape[0] && k.shape[0] == v.shape[0] && k.shape[1] == v.shape[1] &&
                k.shape[2] == v.shape[2] && q.shape[3] == k.shape[3] && k.shape[1] > 0 &&
                q.shape[1] % k.shape[1] == 0 && out.shape[3] == v.shape[3] &&
                q.strides[3] == 1 && k.strides[3] == 1 && v.strides[3] == 1 && out.strides[3] == 1,
            "attention: arrays that do not fit");
}

// query (batch, heads, time_q, dim), key (batch, kv_heads, time_k, dim), value, bias (batch, heads,
// time_q, time_k) of the compute type or None, out, lse (batch, heads, time_q) contiguous; scale,
// causal, window. The last dimension of all but bias has stride 1.
KERNEL(attention) {
    check(arrays[0], arrays[1], arrays[2], arrays[4]);
    if (arrays[0].dtype == Dtype::float32)
        forward<float>(arrays, numbers);
    else if (arrays[0].dtype == Dtype::float64)
        forward<double>(arrays, numbers);
    else if (arrays[0].dtype == Dtype::bfloat16)
        forward<bfloat16>(arrays, numbers);
    else
        fail("attention: expected float32, float64 or bfloat16");
}

// grad, query, key, value, bias or None, out, lse, dquery, dkey, dvalue; scale, causal, window.
KERNEL(attention_backward) {
    check(arrays[1], arrays[2], arrays[3], arrays[5]);
    check(arrays[7], arrays[8], arrays[9], arrays[0]);
    if (arrays[0].dtype == Dtype::float32)
        backward<float>(arrays, numbers);
    else if (arrays[0].dtype == Dtype::float64)
        backward<double>(arrays, numbers);
    else if (arrays[0].dtype == Dtype::bfloat16)
        backward<bfloat16>(arrays, numbers);
    else
        fail("attention: expected float32, float64 or bfloat16");
}

}  // namespace minitorch::MT_INSTRUCTION_SET
