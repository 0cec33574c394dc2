// What the kernels of attention share: the problem as Python states it, and a block's part of it.

#pragma once

#include "device.h"
#include "reduce.h"

namespace minitorch {

// Element (t, d) of a head at data[batch * batch_stride + head * head_stride + t * time_stride +
// d].
template <typename T>
struct Heads {
    T* data;
    long batch_stride, head_stride, time_stride;
    int dim;

    __device__ T* row(long batch, long head, long t) const {
        return data + batch * batch_stride + head * head_stride + t * time_stride;
    }
};

// Rows of a head, of which the first `count` exist.
template <typename T>
struct Piece {
    T* data;
    long stride, count;
    int dim;
};

// A number for each query and key, or, with strides of 0, for many of them.
template <typename T>
struct Scores {
    T* data;
    long batch, head, query, key;
};

template <typename T>
struct Attention {
    using C = Compute<T>;
    Heads<const T> query, key, value;
    Scores<const C> bias;  // -inf where a query must not look; or null
    const C* sinks;        // (heads,), or null
    const int64_t *starts_q,
        *starts_k;  // where each sequence begins, and the last one ends; or null
    long sequences, time_q, time_k, heads, group;  // group: heads that read from one head of keys
    C scale, softcap;                              // softcap 0: none
    long left, right;  // how many keys a query sees on each side; all if negative
    bool lower_right;  // the last query stands at the last key
};

// Some neighbours of the rows or columns of a tile.
struct Range {
    int begin, end;
    __device__ bool has(int i) const { return begin <= i && i < end; }
};

// What a block works on: `rows` rows of one sequence, from `first` on.
template <typename T>
struct Work {
    using C = Compute<T>;
    const Attention<T>& p;
    long batch, sequence, q_begin, k_begin, time_q, time_k, offset, first;

    // With sequences one after another, blocks are dealt out to each in turn, and a few are left
    // over: their first row is past the last one.
    __device__ Work(const Attention<T>& p, bool rows_are_keys, int rows) : p(p) {
        batch = sequence = blockIdx.z, q_begin = k_begin = 0;
        time_q = p.time_q, time_k = p.time_k;
        long block = blockIdx.x;
        if (p.starts_q) {
            batch = 0;
            for (sequence = 0; sequence < p.sequences; ++sequence) {
                q_begin = p.starts_q[sequence], k_begin = p.starts_k[sequence];
                time_q = p.starts_q[sequence + 1] - q_begin;
                time_k = p.starts_k[sequence + 1] - k_begin;
                const long blocks = ((rows_are_keys ? time_k : time_q) + rows - 1) / rows;
                if (block < blocks) break;
                block -= blocks;
            }
            if (sequence == p.sequences) time_q = time_k = 0;
        }
        offset = p.lower_right ? time_k - time_q : 0;
        first = block * rows;
    }

    __device__ bool sees(long query, long key) const {
        const long distance = key - query - offset;
        return query < time_q && key < time_k && (p.left < 0 || distance >= -p.left) &&
               (p.right < 0 || distance <= p.right);
    }
    // Whether each of these queries sees each of these keys.
    __device__ bool all_see(long query, long last_query, long key, long last_key) const {
        return last_query < time_q && last_key < time_k &&
               (p.left < 0 || key - last_query - offset >= -p.left) &&
               (p.right < 0 || last_key - query - offset <= p.right);
    }
    // Of the keys from `key` on, those that a query sees; of the queries from `query` on, those
    // that see a key. In tiles, whose numbers are small.
    __device__ Range keys_seen(long query, long key) const {
        if (query >= time_q) return {0, 0};
        return {int(max(first_key(query) - key, 0l)), int(min(end_of_keys(query) - key, 1l << 30))};
    }
    __device__ Range queries_that_see(long key, long query) const {
        if (key >= time_k) return {0, 0};
        return {int(max(first_query(key) - query, 0l)),
                int(min(end_of_queries(key) - query, 1l << 30))};
    }
    // The keys that any of the queries from `query` on to `last` see, and the other way round.
    __device__ long first_key(long query) const {
        return p.left < 0 ? 0 : max(0l, query + offset - p.left);
    }
    __device__ long end_of_keys(long last) const {
        return p.right < 0 ? time_k : min(time_k, last + offset + p.right + 1);
    }
    __device__ long first_query(long key) const {
        return p.right < 0 ? 0 : max(0l, key - offset - p.right);
    }
    __device__ long end_of_queries(long last) const {
        return p.left < 0 ? time_q : min(time_q, last - offset + p.left + 1);
    }

    // Of a matrix with a row for each query, or each key, those of a head from `from` on.
    template <typename U>
    __device__ Piece<U> queries(const Heads<U>& x, long head, long from) const {
        return {x.row(batch, head, q_begin + from), x.time_stride, time_q - from, x.dim};
    }
    template <typename U>
    __device__ Piece<U> keys(const Heads<U>& x, long head, long from) const {
        return {x.row(batch, head, k_begin + from), x.time_stride, time_k - from, x.dim};
    }
    // Where a number for each query lies, in (batch, heads, time).
    __device__ long statistic(long head, long query) const {
        return (batch * p.heads + head) * p.time_q + q_begin + query;
    }

    // The score that a product becomes, and its slope.
    __device__ C score(C product, long head, long query, long key, C& slope) const {
        slope = p.scale;
        if (!sees(query, key)) return -INFINITY;
        C s = product * p.scale;
        if (p.softcap != C(0)) {
            const C capped = tanh(s / p.softcap);
            slope *= C(1) - capped * capped;
            s = p.softcap * capped;
        }
        if (p.bias.data)
            s += p.bias.data[batch * p.bias.batch + head * p.bias.head + query * p.bias.query +
                             key * p.bias.key];
        return s;
    }
};

// What forward left, and what comes from above.
template <typename T>
struct Above {
    Heads<const T> grad, out;
    const Compute<T>* log_normaliser;
    Compute<T>* delta;  // D: written with dQ, read for dK
};

// D, the products of rows of dO and O: a warp to a row, in (batch, heads, time).
template <typename T>
__global__ void row_products(Attention<T> p, Above<T> above, long rows) {
    const long warps_of_block = blockDim.x / 32, warps = gridDim.x * warps_of_block;
    for (long row = blockIdx.x * warps_of_block + threadIdx.x / 32; row < rows; row += warps) {
        const long t = row % p.time_q, head = row / p.time_q % p.heads;
        const long batch = row / p.time_q / p.heads;
        const T *grad = above.grad.row(batch, head, t), *out = above.out.row(batch, head, t);
        float sum = 0;
        for (int d = threadIdx.x % 32; d < above.out.dim; d += 32)
            sum += float(grad[d]) * float(out[d]);
        sum = reduce_warp<Plus>(sum);
        if (threadIdx.x % 32 == 0) above.delta[row] = sum;
    }
}

// A block to a head and a sequence. dsinks: (sequences, heads).
template <typename T>
__global__ void backward_sinks(Attention<T> p, Above<T> above, Compute<T>* dsinks) {
    using C = Compute<T>;
    const long head = blockIdx.x, sequence = blockIdx.y;
    const long batch = p.starts_q ? 0 : sequence;
    const long begin = p.starts_q ? p.starts_q[sequence] : 0;
    const long end = p.starts_q ? p.starts_q[sequence + 1] : p.time_q;
    const long row = (batch * p.heads + head) * p.time_q;
    C sum = 0;
    for (long t = begin + threadIdx.x; t < end; t += blockDim.x)
        sum += exp(p.sinks[head] - above.log_normaliser[row + t]) * above.delta[row + t];
    sum = reduce_block<Plus>(sum, C(0));
    if (threadIdx.x == 0) dsinks[sequence * p.heads + head] = -sum;
}

template <typename T>
Heads<T> heads_of(const Array& x) {
    return {x.as<T>(), x.strides[0], x.strides[1], x.strides[2], int(x.shape[3])};
}

template <typename T>
Scores<T> scores_of(const Array& x) {
    return {x.as<T>(), x.strides[0], x.strides[1], x.strides[2], x.strides[3]};
}

template <typename T>
Attention<T> attention_of(const Array* arrays, const double* numbers) {
    using C = Compute<T>;
    const Array &query = arrays[0], &key = arrays[1], &starts_q = arrays[5];
    return {heads_of<const T>(query),
            heads_of<const T>(key),
            heads_of<const T>(arrays[2]),
            scores_of<const C>(arrays[3]),
            arrays[4].as<const C>(),
            starts_q.as<const int64_t>(),
            arrays[6].as<const int64_t>(),
            starts_q ? starts_q.shape[0] - 1 : query.shape[0],
            query.shape[2],
            key.shape[2],
            query.shape[1],
            query.shape[1] / key.shape[1],
            C(numbers[0]),
            C(numbers[1]),
            long(numbers[2]),
            long(numbers[3]),
            numbers[4] != 0};
}

// The arrays of attention_backward.
template <typename T>
Above<T> above_of(const Array* arrays) {
    return {heads_of<const T>(arrays[7]), heads_of<const T>(arrays[8]),
            arrays[9].as<const Compute<T>>(), arrays[15].as<Compute<T>>()};
}

template <typename T>
void start_row_products(const Attention<T>& p, const Above<T>& above, long rows,
                        cudaStream_t stream) {
    constexpr int warps = 4;
    launch(row_products<T>, min(ceil_div(rows, warps), 65535u), 32 * warps, 0, stream, p, above,
           rows);
}

template <typename T>
void start_sinks(const Attention<T>& p, const Above<T>& above, const Array& dsinks,
                 cudaStream_t stream) {
    launch(backward_sinks<T>, dim3(unsigned(p.heads), unsigned(p.sequences)), 128, 0, stream, p,
           above, dsinks.as<Compute<T>>());
}

// Blocks for rows of all sequences, `per_block` to one: with starts, a sequence may leave its last
// block half empty.
template <typename T>
dim3 grid_of(const Attention<T>& p, long rows, long heads, int per_block) {
    if (p.starts_q) return dim3(unsigned(rows / per_block + p.sequences), unsigned(heads));
    return dim3(ceil_div(rows, per_block), unsigned(heads), unsigned(p.sequences));
}

// body(T()) with T the dtype of 16 bits.
template <typename Body>
void by_half(const Array& array, Body&& body) {
    array.dtype == Dtype::bfloat16 ? body(bfloat16()) : body(float16());
}

// How wide heads are, made up to what tensor cores are given: body(Widths<...>()).
template <int dim_, int value_dim_>
struct Widths {
    static constexpr int dim = dim_, value_dim = value_dim_;
};
template <typename T, typename Body>
void by_width(const Attention<T>& p, Body&& body) {
    const int dim = p.query.dim, value_dim = p.value.dim, wider = max(dim, value_dim);
    if (wider <= 64) return body(Widths<64, 64>());
    if (wider <= 96) return body(Widths<96, 96>());
    if (wider <= 128) return body(Widths<128, 128>());
    if (dim <= 192 && value_dim <= 128) return body(Widths<192, 128>());
    return body(Widths<256, 256>());
}

}  // namespace minitorch
