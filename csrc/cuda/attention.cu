// Attention without the (time, time) matrix of scores, forward and backward, written to be read:
//
//     S = softcap(scale Q Kᵀ) + bias,   P = exp(S) / (exp(z) + Σ exp(S)),   O = P V
//     dV = Pᵀ dO,   dS = P (dO Vᵀ - D),   D = rowsum(dO O)
//     dX = scale softcap' dS,   dQ = dX K,   dK = dXᵀ Q,   dz = -Σ exp(z - log(exp(z) + Σ exp(S))) D
//
// A block of four warps takes 16 rows, four to a warp, and walks past what they meet in tiles of 32,
// which all of its warps share. A lane makes the scores of its warp's rows with one row of the tile;
// then it makes, for these rows, the columns lane, lane + 32, ... of their sums over the tile.
//
//     forward           rows are queries, and tiles keys with their values; the sums are O, kept under
//                       a running maximum: FlashAttention-2, Dao 2023 (arXiv 2307.08691), algorithm 1
//     backward, dQ      the same, P being computed again from the logarithm that forward left
//     backward, dK, dV  rows are keys, and tiles the queries that see them, of all heads that read
//                       from these keys: each sum is made by one thread, in one order
//
// Scores are made three times in the backward's two kernels instead of twice in one, and nothing has
// to be added up by atomics: the same bits each time.

#include "attention.h"

namespace minitorch {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kOwn = 4;                // rows of a warp
constexpr int kRows = kWarps * kOwn;   // rows of a block
constexpr int kTile = 32;              // rows of a tile, one to a lane
template <typename C>                  // columns of a lane: 256 in all, 128 in float64
constexpr int kColumns = 32 / sizeof(C);

// Rows in shared memory lie an odd number apart: 32 lanes that read one column of 32 rows find them in
// 32 banks.
__host__ __device__ constexpr int pitch(int dim) { return dim | 1; }

// The first n rows, zeros where there are none.
template <typename T, typename C>
__device__ void load_rows(const Piece<const T>& from, int n, C* to) {
    for (int r = threadIdx.x / 32; r < n; r += kWarps)
        for (int d = threadIdx.x % 32; d < from.dim; d += 32)
            to[r * pitch(from.dim) + d] = r < from.count ? C(from.data[r * from.stride + d]) : C(0);
}

// The products of the warp's rows with one row of the tile.
template <typename C>
__device__ void dot(const C* own, const C* row, int dim, C (&products)[kOwn]) {
    for (int i = 0; i < kOwn; ++i) products[i] = 0;
    for (int d = 0; d < dim; ++d) {
        const C x = row[d];
#pragma unroll
        for (int i = 0; i < kOwn; ++i) products[i] += own[i * pitch(dim) + d] * x;
    }
}

// sums += weights tile, for the warp's rows and the lane's columns.
template <typename C>
__device__ void add_rows(const C (*weights)[kTile], const C* tile, int dim,
                         C (&sums)[kOwn][kColumns<C>]) {
    const int lane = threadIdx.x % 32;
    for (int t = 0; t < kTile; ++t)
#pragma unroll
        for (int c = 0; c < kColumns<C>; ++c) {
            const int d = lane + 32 * c;
            if (d >= dim) break;
            const C x = tile[t * pitch(dim) + d];
#pragma unroll
            for (int i = 0; i < kOwn; ++i) sums[i][c] += weights[i][t] * x;
        }
}

template <typename T, typename C>
__device__ void write_row(const C (&sums)[kColumns<C>], C factor, int dim, T* to) {
#pragma unroll
    for (int c = 0; c < kColumns<C>; ++c) {
        const int d = threadIdx.x % 32 + 32 * c;
        if (d < dim) to[d] = T(sums[c] * factor);
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    forward(Attention<T> p, Heads<T> out, Compute<T>* log_normaliser) {
    using C = Compute<T>;
    SHARED_DYNAMIC(C, memory);
    SHARED(C, weights, [kRows][kTile]);
    C* const queries = memory;
    C* const keys = queries + kRows * pitch(p.query.dim);
    C* const values = keys + kTile * pitch(p.key.dim);
    const Work<T> work(p, false, kRows);
    const long head = blockIdx.y, kv_head = head / p.group;
    const int own = threadIdx.x / 32 * kOwn, lane = threadIdx.x % 32;
    if (work.first >= work.time_q) return;
    const long last = min(work.first + kRows, work.time_q) - 1;

    load_rows(work.queries(p.query, head, work.first), kRows, queries);
    const C sink = p.sinks ? p.sinks[head] : C(-INFINITY);
    C sums[kOwn][kColumns<C>] = {}, peak[kOwn], total[kOwn];
    for (int i = 0; i < kOwn; ++i) {
        peak[i] = sink;
        total[i] = lane == 0 && sink > C(-INFINITY) ? 1 : 0;  // the lanes' parts of the sum
    }
    const long end = work.end_of_keys(last);
    for (long key = work.first_key(work.first); key < end; key += kTile) {
        __syncthreads();
        load_rows(work.keys(p.key, kv_head, key), kTile, keys);
        load_rows(work.keys(p.value, kv_head, key), kTile, values);
        __syncthreads();
        C products[kOwn];
        dot(queries + own * pitch(p.query.dim), keys + lane * pitch(p.key.dim), p.key.dim, products);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            C slope;
            const C s = work.score(products[i], head, work.first + own + i, key + lane, slope);
            const C larger = max(peak[i], reduce_warp<Larger>(s));
            const C shift = larger == C(-INFINITY) ? C(0) : larger;
            const C fade = exp(peak[i] - shift), weight = exp(s - shift);
            peak[i] = larger;
            total[i] = total[i] * fade + weight;
#pragma unroll
            for (int c = 0; c < kColumns<C>; ++c) sums[i][c] *= fade;
            weights[own + i][lane] = weight;
        }
        __syncwarp();
        add_rows(weights + own, values, p.value.dim, sums);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const long query = work.first + own + i;
        const C sum = reduce_warp<Plus>(total[i]);
        if (query >= work.time_q) continue;
        const bool blind = peak[i] == C(-INFINITY);
        write_row(sums[i], blind ? C(0) : C(1) / sum, out.dim,
                  out.row(work.batch, head, work.q_begin + query));
        if (lane == 0)
            log_normaliser[work.statistic(head, query)] = blind ? C(INFINITY) : peak[i] + log(sum);
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_queries(Attention<T> p, Above<T> above, Heads<T> dquery, Scores<Compute<T>> dbias) {
    using C = Compute<T>;
    SHARED_DYNAMIC(C, memory);
    SHARED(C, weights, [kRows][kTile]);
    C* const queries = memory;
    C* const grads = queries + kRows * pitch(p.query.dim);
    C* const keys = grads + kRows * pitch(p.value.dim);
    C* const values = keys + kTile * pitch(p.key.dim);
    const Work<T> work(p, false, kRows);
    const long head = blockIdx.y, kv_head = head / p.group;
    const int own = threadIdx.x / 32 * kOwn, lane = threadIdx.x % 32;
    if (work.first >= work.time_q) return;
    const long last = min(work.first + kRows, work.time_q) - 1;

    load_rows(work.queries(p.query, head, work.first), kRows, queries);
    load_rows(work.queries(above.grad, head, work.first), kRows, grads);
    __syncthreads();
    C sums[kOwn][kColumns<C>] = {}, log_normaliser[kOwn], delta[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const long query = min(work.first + own + i, last);
        const Piece<const T> out = work.queries(above.out, head, query);
        // In the order of `dot`: a query that sees one key alone gets a gradient of exactly zero.
        delta[i] = 0;
        for (int d = 0; d < out.dim; ++d)
            delta[i] += grads[(own + i) * pitch(out.dim) + d] * C(out.data[d]);
        log_normaliser[i] = above.log_normaliser[work.statistic(head, query)];
        if (lane == 0 && query == work.first + own + i)
            above.delta[work.statistic(head, query)] = delta[i];
    }
    const long end = work.end_of_keys(last);
    for (long key = work.first_key(work.first); key < end; key += kTile) {
        __syncthreads();
        load_rows(work.keys(p.key, kv_head, key), kTile, keys);
        load_rows(work.keys(p.value, kv_head, key), kTile, values);
        __syncthreads();
        C products[kOwn], dweights[kOwn];
        dot(queries + own * pitch(p.query.dim), keys + lane * pitch(p.key.dim), p.key.dim, products);
        dot(grads + own * pitch(p.value.dim), values + lane * pitch(p.value.dim), p.value.dim,
            dweights);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const long query = work.first + own + i;
            C slope;
            const C s = work.score(products[i], head, query, key + lane, slope);
            const C dscore = exp(s - log_normaliser[i]) * (dweights[i] - delta[i]);
            if (dbias.data && query < work.time_q && key + lane < work.time_k)
                dbias.data[work.batch * dbias.batch + head * dbias.head + query * dbias.query +
                           (key + lane) * dbias.key] = dscore;
            weights[own + i][lane] = dscore * slope;
        }
        __syncwarp();
        add_rows(weights + own, keys, p.key.dim, sums);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const long query = work.first + own + i;
        if (query < work.time_q)
            write_row(sums[i], C(1), dquery.dim,
                      dquery.row(work.batch, head, work.q_begin + query));
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_keys(Attention<T> p, Above<T> above, Heads<T> dkey, Heads<T> dvalue) {
    using C = Compute<T>;
    SHARED_DYNAMIC(C, memory);
    SHARED(C, weights, [kRows][kTile]);
    SHARED(C, dproducts, [kRows][kTile]);
    C* const keys = memory;
    C* const values = keys + kRows * pitch(p.key.dim);
    C* const queries = values + kRows * pitch(p.value.dim);
    C* const grads = queries + kTile * pitch(p.query.dim);
    const Work<T> work(p, true, kRows);
    const long kv_head = blockIdx.y;
    const int own = threadIdx.x / 32 * kOwn, lane = threadIdx.x % 32;
    if (work.first >= work.time_k) return;
    const long last = min(work.first + kRows, work.time_k) - 1;

    load_rows(work.keys(p.key, kv_head, work.first), kRows, keys);
    load_rows(work.keys(p.value, kv_head, work.first), kRows, values);
    C dkeys[kOwn][kColumns<C>] = {}, dvalues[kOwn][kColumns<C>] = {};
    const long begin = work.first_query(work.first), end = work.end_of_queries(last);
    for (long head = kv_head * p.group; head < (kv_head + 1) * p.group; ++head)
        for (long query = begin; query < end; query += kTile) {
            __syncthreads();
            load_rows(work.queries(p.query, head, query), kTile, queries);
            load_rows(work.queries(above.grad, head, query), kTile, grads);
            __syncthreads();
            C products[kOwn], dweights[kOwn];
            dot(keys + own * pitch(p.key.dim), queries + lane * pitch(p.key.dim), p.key.dim, products);
            dot(values + own * pitch(p.value.dim), grads + lane * pitch(p.value.dim), p.value.dim,
                dweights);
            const long statistic = work.statistic(head, min(query + lane, work.time_q - 1));
            const C log_normaliser = above.log_normaliser[statistic], delta = above.delta[statistic];
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                C slope;
                const C s = work.score(products[i], head, query + lane, work.first + own + i, slope);
                const C weight = exp(s - log_normaliser);
                weights[own + i][lane] = weight;
                dproducts[own + i][lane] = weight * (dweights[i] - delta) * slope;
            }
            __syncwarp();
            add_rows(weights + own, grads, p.value.dim, dvalues);
            add_rows(dproducts + own, queries, p.query.dim, dkeys);
        }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const long key = work.first + own + i;
        if (key >= work.time_k) continue;
        write_row(dkeys[i], C(1), dkey.dim, dkey.row(work.batch, kv_head, work.k_begin + key));
        write_row(dvalues[i], C(1), dvalue.dim, dvalue.row(work.batch, kv_head, work.k_begin + key));
    }
}

template <typename T>
static size_t shared_bytes(const Attention<T>& p, long keys, long values) {
    return sizeof(Compute<T>) * (keys * pitch(p.key.dim) + values * pitch(p.value.dim));
}

// query (batch, heads, time_q, dim), key (batch, kv_heads, time_k, dim), value (..., value_dim), at
// most 256 wide, or 128 in float64, the last stride 1; bias (batch, heads, time_q, time_k) at any strides or None, sinks
// (heads,) or None, of the compute dtype; starts_q and starts_k (sequences + 1,) of int64, with a
// batch of one, or None; out (batch, heads, time_q, value_dim), log_normaliser (batch, heads, time_q)
// of the compute dtype; scale, softcap, left, right, lower_right.
DEVICE_KERNEL(attention) {
    by_dtype(arrays[0], [&](auto kind) {
        using T = decltype(kind);
        const auto p = attention_of<T>(arrays, numbers);
        launch(forward<T>, grid_of(p, p.time_q, p.heads, kRows), kThreads,
               shared_bytes(p, kRows + kTile, kTile), stream, p, heads_of<T>(arrays[7]),
               arrays[8].as<Compute<T>>());
    });
}

// The first seven of attention; grad, out, log_normaliser; dquery, dkey, dvalue; dbias like bias but
// not broadcast, zeros, or None; dsinks (sequences, heads), with sinks, or None; delta, like
// log_normaliser, for what the kernels leave each other; the same numbers.
DEVICE_KERNEL(attention_backward) {
    by_dtype(arrays[0], [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const auto p = attention_of<T>(arrays, numbers);
        const auto above = above_of<T>(arrays);
        launch(backward_queries<T>, grid_of(p, p.time_q, p.heads, kRows), kThreads,
               shared_bytes(p, kRows + kTile, kRows + kTile), stream, p, above,
               heads_of<T>(arrays[10]), scores_of<C>(arrays[13]));
        launch(backward_keys<T>, grid_of(p, p.time_k, p.heads / p.group, kRows), kThreads,
               shared_bytes(p, kRows + kTile, kRows + kTile), stream, p, above,
               heads_of<T>(arrays[11]), heads_of<T>(arrays[12]));
        if (arrays[14]) start_sinks(p, above, arrays[14], stream);
    });
}

}  // namespace minitorch
