// The backward of attention_mma.cu, on tensor cores; sm_80 and later. With D = rowsum(dO O), first:
//
//     P = exp(S - L),   dP = dO Vᵀ,   dS = P (dP - D) softcap'
//     dV = Pᵀ dO,   dQ = scale dS K,   dK = scale dSᵀ Q
//
// where L is the logarithm that forward left. Two kernels, as in attention.cu:
//
//     dQ       a warp has 16 queries, and their block walks past keys; S and dP (queries, keys)
//     dK, dV   a warp has 16 keys, and their block walks past the queries that see them, of all
//     heads
//              that read from these keys; Sᵀ and dPᵀ (keys, queries) are computed turned, K Qᵀ, V
//              dOᵀ
//
// Either way P and dS lie in the registers that make the left operand of the products which follow
// them, and every sum is made by one warp in one order: the same bits each time. One kernel for all
// three would save two products of seven, and would have to add dQ up over blocks: by atomics, in
// another order each time, or each block after the one before it; and it would pass dS on to other
// warps through shared memory. Heads of 256 have too many sums for one warp: dV and dK apart.
//
// Registers of a thread, heads of 64, 96, 128, 192 and 256, sm_80: dQ 126, 154, 166, 168 and 247;
// dK and dV 167, 214, 244, 251 and, apart, 236; sm_90a: 136, 134, 172, 173, 247; 164, 204, 237,
// 243, 253. No spills. Source: FlashAttention-2, Dao 2023 (arXiv 2307.08691), algorithm 2.

#include "fragments.h"

namespace minitorch {

namespace {

constexpr int kThreads = 128, kWarps = 4;

template <typename Widths>
struct Plan : Widths {
    using Widths::dim, Widths::value_dim;
    static constexpr int rows = 16 * kWarps;
    static constexpr int tile = dim <= 128 ? 32 : 16;
    static constexpr int width = dim + value_dim;
    static constexpr size_t shared_bytes = 2 * width * (rows + 2 * tile);
};

// Two matrices, `rows` rows of each that the block keeps, and tiles of two others on their way.
template <typename T, typename Plan>
struct Memory {
    T* data;

    __device__ RowTile<T, Plan::dim> left() const { return {data}; }
    __device__ RowTile<T, Plan::value_dim> right() const { return {data + Plan::rows * Plan::dim}; }
    __device__ RowTile<T, Plan::dim> left(int stage) const {
        return {data + (Plan::rows + stage * Plan::tile) * Plan::width};
    }
    __device__ RowTile<T, Plan::value_dim> right(int stage) const {
        return {left(stage).data + Plan::tile * Plan::dim};
    }
};

template <typename T, typename Plan>
__global__ void __launch_bounds__(kThreads)
    backward_queries_mma(Attention<T> p, Above<T> above, Heads<T> dquery) {
    SHARED_DYNAMIC(T, shared);
    const Memory<T, Plan> memory{shared};
    const Work<T> work(p, false, Plan::rows);
    const long head = blockIdx.y, kv_head = head / p.group;
    if (work.first >= work.time_q) return;
    const long last = min(work.first + Plan::rows, work.time_q) - 1;
    const long end = work.end_of_keys(last);
    const int own = int(threadIdx.x) / 32 * 16;
    const auto fetch = [&](long key, int stage) {
        if (key < end) {
            memory.left(stage).template fetch<kThreads>(work.keys(p.key, kv_head, key), Plan::tile);
            memory.right(stage).template fetch<kThreads>(work.keys(p.value, kv_head, key),
                                                         Plan::tile);
        }
        ptx::cp_async_commit();
    };

    const Modified<T> modified(work, head);
    const float factor = modified ? kLog2e : p.scale * kLog2e;
    float log_normaliser[2], delta[2];
    for (int i = 0; i < 2; ++i) {
        const long query = min(work.first + own + threadIdx.x % 32 / 4 + 8 * i, last);
        log_normaliser[i] = above.log_normaliser[work.statistic(head, query)] * kLog2e;
        delta[i] = above.delta[work.statistic(head, query)];
    }
    float sums[1][Plan::dim / 8][4] = {};
    memory.left().template fetch<kThreads>(work.queries(p.query, head, work.first), Plan::rows);
    memory.right().template fetch<kThreads>(work.queries(above.grad, head, work.first), Plan::rows);
    long key = work.first_key(work.first);
    fetch(key, 0);
    for (int stage = 0; key < end; key += Plan::tile, stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();  // this tile is whole, and all are done with the one before
        fetch(key + Plan::tile, stage ^ 1);
        float scores[1][Plan::tile / 8][4] = {}, dscores[1][Plan::tile / 8][4] = {};
        add_products_of_rows(scores, memory.left(), own, memory.left(stage));
        add_products_of_rows(dscores, memory.right(), own, memory.right(stage));
        for_each(
            [&](int row) {
                const long query = work.first + own + row;
                const int i = row / 8 % 2;
                return [&, query, i, seen = work.keys_seen(query, key)](int column, float& s,
                                                                        float& d) {
                    float slope = 1;
                    if (modified && seen.has(column))
                        s = modified(s, slope) + modified.bias_of(query, key + column);
                    const float weight =
                        seen.has(column) ? ptx::exp2(s * factor - log_normaliser[i]) : 0;
                    d = weight * (d - delta[i]) * slope;
                };
            },
            scores, dscores);
        add_weighted_rows(sums, dscores, memory.left(stage));
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    const RowTile<T, Plan::dim> staged{memory.left().data + own * Plan::dim};
    staged.store(sums[0], {p.scale, p.scale}, work.queries(dquery, head, work.first + own));
}

template <typename T, typename Plan, bool with_keys, bool with_values>
__global__ void __launch_bounds__(kThreads)
    backward_keys_mma(Attention<T> p, Above<T> above, Heads<T> dkey, Heads<T> dvalue) {
    SHARED_DYNAMIC(T, shared);
    SHARED(float, log_normaliser, [2][Plan::tile]);
    SHARED(float, delta, [2][Plan::tile]);
    const Memory<T, Plan> memory{shared};
    const Work<T> work(p, true, Plan::rows);
    const long kv_head = blockIdx.y;
    if (work.first >= work.time_k) return;
    const long last = min(work.first + Plan::rows, work.time_k) - 1;
    const int own = threadIdx.x / 32 * 16;
    const long begin = work.first_query(work.first), end = work.end_of_queries(last);
    const long per_head = max(0l, end - begin + Plan::tile - 1) / Plan::tile;
    const auto head_of = [&](long n) { return kv_head * p.group + n / per_head; };
    const auto query_of = [&](long n) { return begin + n % per_head * Plan::tile; };
    const auto fetch = [&](long n, int stage) {
        if (n < per_head * p.group) {
            const long head = head_of(n), query = query_of(n);
            memory.left(stage).template fetch<kThreads>(work.queries(p.query, head, query),
                                                        Plan::tile);
            memory.right(stage).template fetch<kThreads>(work.queries(above.grad, head, query),
                                                         Plan::tile);
            const int t = threadIdx.x % Plan::tile;
            const bool exists = query + t < work.time_q;
            const long from = work.statistic(head, exists ? query + t : query);
            if (threadIdx.x < Plan::tile)
                ptx::cp_async<4>(&log_normaliser[stage][t], above.log_normaliser + from,
                                 exists ? 4 : 0);
            else if (threadIdx.x < 2 * Plan::tile)
                ptx::cp_async<4>(&delta[stage][t], above.delta + from, exists ? 4 : 0);
        }
        ptx::cp_async_commit();
    };

    float dkeys[1][with_keys ? Plan::dim / 8 : 1][4] = {};
    float dvalues[1][with_values ? Plan::value_dim / 8 : 1][4] = {};
    memory.left().template fetch<kThreads>(work.keys(p.key, kv_head, work.first), Plan::rows);
    memory.right().template fetch<kThreads>(work.keys(p.value, kv_head, work.first), Plan::rows);
    fetch(0, 0);
    for (long n = 0, stage = 0; n < per_head * p.group; ++n, stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();  // this tile is whole, and all are done with the one before
        fetch(n + 1, stage ^ 1);
        const long head = head_of(n), first = query_of(n);
        const Modified<T> modified(work, head);
        const float factor = modified ? kLog2e : p.scale * kLog2e;
        float scores[1][Plan::tile / 8][4] = {}, dscores[1][Plan::tile / 8][4] = {};
        add_products_of_rows(scores, memory.left(), own, memory.left(stage));
        if constexpr (with_keys)
            add_products_of_rows(dscores, memory.right(), own, memory.right(stage));
        for_each(
            [&](int row) {
                const long key = work.first + own + row;
                return [&, key, seen = work.queries_that_see(key, first)](int column, float& s,
                                                                          float& d) {
                    float slope = 1;
                    if (modified && seen.has(column))
                        s = modified(s, slope) + modified.bias_of(first + column, key);
                    s = seen.has(column)
                            ? ptx::exp2(s * factor - log_normaliser[stage][column] * kLog2e)
                            : 0;
                    d = s * (d - delta[stage][column]) * slope;
                };
            },
            scores, dscores);
        if constexpr (with_values) add_weighted_rows(dvalues, scores, memory.right(stage));
        if constexpr (with_keys) add_weighted_rows(dkeys, dscores, memory.left(stage));
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    const long key = work.first + own;
    if constexpr (with_keys) {
        const RowTile<T, Plan::dim> staged{memory.left().data + own * Plan::dim};
        staged.store(dkeys[0], {p.scale, p.scale}, work.keys(dkey, kv_head, key));
    }
    if constexpr (with_values) {
        const RowTile<T, Plan::value_dim> staged{memory.right().data + own * Plan::value_dim};
        staged.store(dvalues[0], {1, 1}, work.keys(dvalue, kv_head, key));
    }
}

}  // namespace

// The arrays of `attention_backward`, of 16-bit floats, rows at multiples of 16 bytes, without
// dbias; and its numbers.
DEVICE_KERNEL(attention_mma_backward) {
    by_half(arrays[0], [&](auto kind) {
        using T = decltype(kind);
        const auto p = attention_of<T>(arrays, numbers);
        const Above<T> above = above_of<T>(arrays);
        const auto dquery = heads_of<T>(arrays[10]), dkey = heads_of<T>(arrays[11]),
                   dvalue = heads_of<T>(arrays[12]);
        start_row_products(p, above, arrays[9].size, stream);
        by_width(p, [&](auto widths) {
            using P = Plan<decltype(widths)>;
            launch(backward_queries_mma<T, P>, grid_of(p, p.time_q, p.heads, P::rows), kThreads,
                   P::shared_bytes, stream, p, above, dquery);
            const auto start = [&](auto kernel) {
                launch(kernel, grid_of(p, p.time_k, p.heads / p.group, P::rows), kThreads,
                       P::shared_bytes, stream, p, above, dkey, dvalue);
            };
            if constexpr (P::width <= 320) {
                start(backward_keys_mma<T, P, true, true>);
            } else {
                start(backward_keys_mma<T, P, true, false>);
                start(backward_keys_mma<T, P, false, true>);
            }
        });
        if (arrays[14]) start_sinks(p, above, arrays[14], stream);
    });
}

}  // namespace minitorch
