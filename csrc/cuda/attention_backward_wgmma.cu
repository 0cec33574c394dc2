// The backward of attention_wgmma.cu on Hopper, sm_90a: what attention_mma_backward.cu
// computes, by warpgroups. With D = rowsum(dO O), first:
//
//     P = exp(S - L),   dP = dO Vᵀ,   dS = P (dP - D) softcap'
//     dV = Pᵀ dO,   dQ = scale dS K,   dK = scale dSᵀ Q
//
// Two kernels, as there, so that each sum is made by one warpgroup in one order: the same bits each time.
// A block has three warpgroups: one has tiles copied by the tensor memory accelerator, two keep 64 rows
// each, of 128 queries or 128 keys, and walk past tiles of the others:
//
//     dQ       S = Q Kᵀ, dP = dO Vᵀ (queries, keys), then dQ += dS K
//     dK, dV   Sᵀ = K Qᵀ, dPᵀ = V dOᵀ (keys, queries), then dV += Pᵀ dO, dK += dSᵀ Q
//
// P and dS are left operands in the registers in which they were computed. All that is multiplied from
// shared memory lies there once: K, for one, by its columns for S and by its rows for dQ, since wgmma takes
// both. While the softmax of one warpgroup is computed the tensor cores work for the other one, and for
// this one's dPᵀ and dV. L and D of a tile's queries are brought by another warp of the first warpgroup,
// which has nothing else to do; for queries that do not exist L is infinite, and P 0.
//
// The seven products of two kernels instead of the five of one cost 7/5 of its arithmetic; in return
// nothing is added up over blocks. Wide heads have smaller tiles, since a thread's sums are wider: for dQ 96
// keys of 128 features, 64 of 192, or 32 of 256; for dK and dV 32 queries of 192 and 128. Heads of 256 have too many
// sums for one warpgroup: 64 keys to a block then, and dK is one consumer's, dV the other's. Both make S.
//
// Registers of a thread: 168, of which the first warpgroup keeps 24 and the others get 240, in the kernel of
// the keys, where it has more to do, 40 and 232. No spills.
// Source: FlashAttention-2, Dao 2023 (arXiv 2307.08691), algorithm 2; FlashAttention-3, Shah et al. 2024
// (arXiv 2407.08608), appendix B.

#include "attention_warpgroups.h"

namespace minitorch {

namespace {

template <typename Widths>
struct Plan : Widths {
    using Widths::dim, Widths::value_dim;
    static constexpr int rows = 128;  // of queries of a block
    static constexpr int keys =       // of a tile, for dQ
        dim <= 96 ? 128 : dim <= 128 ? 96 : dim <= 192 ? 64 : 32;
    static constexpr bool apart = dim + value_dim > 320;  // dK is one consumer's, dV the other's
    static constexpr int kept_keys = apart ? 64 : 128;    // of a block
    static constexpr int queries = dim <= 128 || apart ? 64 : 32;  // of a tile, for dK and dV
};

// Two matrices, of which the block keeps rows, and two tiles of two others.
template <typename T, typename Plan, int rows, int tile>
struct Memory {
    static constexpr int dim = padded(Plan::dim), value_dim = padded(Plan::value_dim);
    static constexpr unsigned tile_bytes = tile * (dim + value_dim) * 2;
    static constexpr unsigned kept_bytes = rows * (dim + value_dim) * 2;
    static constexpr size_t bytes = kept_bytes + 2 * tile_bytes;
    char* data;

    __device__ Panels<T, 64> left(int i) const { return {data + i * 64 * dim * 2}; }
    __device__ Panels<T, 64> right(int i) const {
        return {data + (rows * dim + i * 64 * value_dim) * 2};
    }
    __device__ Panels<T, tile> left_tile(int n) const {
        return {data + kept_bytes + n % 2 * tile_bytes};
    }
    __device__ Panels<T, tile> right_tile(int n) const {
        return {left_tile(n).data + tile * dim * 2};
    }
    // A warp's 16 rows of what was kept, which are not needed any more.
    template <int width>
    __device__ RowTile<T, width> own_rows(const Panels<T, 64>& panels) const {
        return {reinterpret_cast<T*>(panels.data) + row_of_warp() * padded(width)};
    }
};

struct Maps {
    CUtensorMap query, grad, key, value;
};

template <typename T, typename Plan>
__global__ void __launch_bounds__(kThreads, 1)
    backward_queries_wgmma(Attention<T> p, Above<T> above, const __grid_constant__ Maps maps,
                           Heads<T> dquery) {
    using Shared = Memory<T, Plan, Plan::rows, Plan::keys>;
    SHARED_DYNAMIC(char, data);
    SHARED(uint64_t, barriers, [5]);
    const Shared memory{data};
    const Ring ring{barriers, barriers + 2};
    uint64_t* const kept_full = barriers + 4;
    const QueryBlock<T, Plan> block(p);
    const Work<T>& work = block.work;
    const int head = block.head, tiles = block.tiles;
    if (!block.exists()) return;
    if (threadIdx.x == 0) {
        ring.begin();
        ptx::mbarrier_init(kept_full, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();

    if (threadIdx.x < kGroup) {
        ptx::give_registers<24>();
        if (threadIdx.x != 0 || tiles == 0) return;
        ptx::mbarrier_arrive_expect(kept_full, Shared::kept_bytes);
        for (int i = 0; i < 2; ++i) {
            const int row = block.query_row(i);
            memory.left(i).load(&maps.query, kept_full, Plan::dim, row, head, work.batch);
            memory.right(i).load(&maps.grad, kept_full, Plan::value_dim, row, head, work.batch);
        }
        for (int n = 0; n < tiles; ++n) {
            const int row = block.key_row(n), kv_head = block.kv_head;
            uint64_t* const full = ring.full + n % 2;
            ring.wait_to_fill(n, Shared::tile_bytes);
            memory.left_tile(n).load(&maps.key, full, Plan::dim, row, kv_head, work.batch);
            memory.right_tile(n).load(&maps.value, full, Plan::value_dim, row, kv_head, work.batch);
        }
        return;
    }
    ptx::take_registers<240>();
    const int consumer = consumer_of_thread();
    const int own = int(work.first) + 64 * consumer + row_of_warp();
    const float factor = Modified<T>::factor(p);
    float log_normaliser[2], delta[2];
    for (int i = 0; i < 2; ++i) {
        const int query = min(own + int(threadIdx.x) % 32 / 4 + 8 * i, block.last);
        log_normaliser[i] = above.log_normaliser[work.statistic(head, query)] * kLog2e;
        delta[i] = above.delta[work.statistic(head, query)];
    }
    float sums[Plan::dim / 2] = {}, scores[Plan::keys / 2], dscores[Plan::keys / 2];
    if (tiles > 0) ptx::mbarrier_wait(kept_full, 0);
    for (int n = 0; n < tiles; ++n) {
        ring.wait_to_read(n);
        begin_products_of_rows<Plan::dim>(scores, memory.left(consumer), memory.left_tile(n));
        begin_products_of_rows<Plan::value_dim>(dscores, memory.right(consumer),
                                                memory.right_tile(n));
        const int key = block.key(n);
        const bool all = block.all_see(n);
        const auto seen_of = [&](int row) { return work.keys_seen(own + row, key); };
        ptx::wgmma_wait<1>(scores);
        if (const Modified<T> modified(work, head); modified) {
            ptx::wgmma_wait<0>(dscores);
            modify(
                modified, seen_of,
                [&](int row) { return modified.along_keys(own + row, key); },
                [&](int row, int) { return delta[row / 8 % 2]; }, scores, dscores);
        }
        for_each(
            [&](int row) {
                const int i = row / 8 % 2;
                return [=, seen = seen_of(row)](int column, float& s) {
                    s = all || seen.has(column) ? ptx::exp2(s * factor - log_normaliser[i]) : 0;
                };
            },
            by_pieces(scores));
        ptx::wgmma_wait<0>(dscores);
#pragma unroll
        for (int e = 0; e < Plan::keys / 2; ++e)
            scores[e] *= dscores[e] - delta[e / 2 % 2];
        Fragment weights[Plan::keys / 16];
        round_all<T>(scores, weights);
        begin_weighted_rows(sums, weights, memory.left_tile(n));
        ptx::wgmma_wait<0>(sums);
        ring.release(n);
    }
    ptx::bar_sync(1 + consumer, kGroup);  // this consumer's queries are not needed any more
    memory.template own_rows<Plan::dim>(memory.left(consumer))
        .store(by_pieces(sums)[0], {p.scale, p.scale}, work.queries(dquery, head, own));
}

template <typename T, typename Plan>
__global__ void __launch_bounds__(kThreads, 1)
    backward_keys_wgmma(Attention<T> p, Above<T> above, const __grid_constant__ Maps maps,
                        Heads<T> dkey, Heads<T> dvalue) {
    using Shared = Memory<T, Plan, Plan::kept_keys, Plan::queries>;
    SHARED_DYNAMIC(char, data);
    SHARED(float, log_normaliser, [2][Plan::queries]);
    SHARED(float, delta, [2][Plan::queries]);
    SHARED(uint64_t, barriers, [5]);
    const Shared memory{data};
    const Ring ring{barriers, barriers + 2};
    uint64_t* const kept_full = barriers + 4;
    const Work<T> work(p, true, Plan::kept_keys);
    const int kv_head = blockIdx.y, group = int(p.group);
    if (work.first >= work.time_k) return;
    const int last = int(min(work.first + Plan::kept_keys, work.time_k)) - 1;
    const int begin = int(work.first_query(work.first)), end = int(work.end_of_queries(last));
    const int per_head = max(0, end - begin + Plan::queries - 1) / Plan::queries;
    const int tiles = per_head * group;
    const auto head_of = [&](int n) { return kv_head * group + n / per_head; };
    const auto query_of = [&](int n) { return begin + n % per_head * Plan::queries; };
    if (threadIdx.x == 0) {
        ring.begin(2);
        ptx::mbarrier_init(kept_full, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();

    if (threadIdx.x < kGroup) {
        ptx::give_registers<Plan::apart ? 24 : 40>();
        const int lane = threadIdx.x % 32;
        if (threadIdx.x == 0 && tiles > 0) {
            ptx::mbarrier_arrive_expect(kept_full, Shared::kept_bytes);
            for (int i = 0; i < Plan::kept_keys / 64; ++i) {
                const int row = int(work.k_begin + work.first) + 64 * i;
                memory.left(i).load(&maps.key, kept_full, Plan::dim, row, kv_head, work.batch);
                memory.right(i).load(&maps.value, kept_full, Plan::value_dim, row, kv_head,
                                     work.batch);
            }
            for (int n = 0; n < tiles; ++n) {
                const int row = int(work.q_begin) + query_of(n), head = head_of(n);
                uint64_t* const full = ring.full + n % 2;
                ring.wait_to_fill(n, Shared::tile_bytes);
                memory.left_tile(n).load(&maps.query, full, Plan::dim, row, head, work.batch);
                memory.right_tile(n).load(&maps.grad, full, Plan::value_dim, row, head, work.batch);
            }
        } else if (threadIdx.x / 32 == 1) {
            for (int n = 0; n < tiles; ++n) {
                ring.wait_until_empty(n);
                for (int i = lane; i < Plan::queries; i += 32) {
                    const int query = query_of(n) + i;
                    const bool exists = query < work.time_q;
                    const long from = work.statistic(head_of(n), exists ? query : 0);
                    log_normaliser[n % 2][i] =
                        exists ? above.log_normaliser[from] * kLog2e : INFINITY;
                    delta[n % 2][i] = exists ? above.delta[from] : 0;
                }
                __syncwarp();
                if (lane == 0) ptx::mbarrier_arrive(ring.full + n % 2);
            }
        }
        return;
    }
    ptx::take_registers<Plan::apart ? 240 : 232>();
    const auto consume = [&](int i, auto with_keys, auto with_values) {
        constexpr bool keys = with_keys.value, values = with_values.value;
        const int own = int(work.first) + 64 * i + row_of_warp();
        const float factor = Modified<T>::factor(p);
        float dkeys[keys ? Plan::dim / 2 : 1] = {}, dvalues[values ? Plan::value_dim / 2 : 1] = {};
        float scores[Plan::queries / 2], dscores[Plan::queries / 2];
        if (tiles > 0) ptx::mbarrier_wait(kept_full, 0);
        for (int n = 0; n < tiles; ++n) {
            ring.wait_to_read(n);
            begin_products_of_rows<Plan::dim>(scores, memory.left(i), memory.left_tile(n));
            if constexpr (keys)
                begin_products_of_rows<Plan::value_dim>(dscores, memory.right(i),
                                                        memory.right_tile(n));
            const int query = query_of(n);
            const bool all = work.all_see(query, query + Plan::queries - 1, work.first, last);
            const auto seen_of = [&](int row) { return work.queries_that_see(own + row, query); };
            ptx::wgmma_wait<keys ? 1 : 0>(scores);
            if (const Modified<T> modified(work, head_of(n)); modified) {
                const auto bias_of = [&](int row) {
                    return modified.along_queries(query, own + row);
                };
                const auto delta_of = [&](int, int column) { return delta[n % 2][column]; };
                if constexpr (keys) {
                    ptx::wgmma_wait<0>(dscores);
                    modify(modified, seen_of, bias_of, delta_of, scores, dscores);
                } else {
                    modify(modified, seen_of, bias_of, delta_of, scores);
                }
            }
            for_each(
                [&](int row) {
                    return [&, seen = seen_of(row)](int column, float& s) {
                        s = all || seen.has(column)
                                ? ptx::exp2(s * factor - log_normaliser[n % 2][column])
                                : 0;
                    };
                },
                by_pieces(scores));
            Fragment weights[Plan::queries / 16], dweights[Plan::queries / 16];
            if constexpr (values) {
                round_all<T>(scores, weights);
                begin_weighted_rows(dvalues, weights, memory.right_tile(n));
            }
            if constexpr (keys) {
                ptx::wgmma_wait<values ? 1 : 0>(dscores);
                for_each(
                    [&](int) {
                        return [&](int column, float& d, float weight) {
                            d = weight * (d - delta[n % 2][column]);
                        };
                    },
                    by_pieces(dscores), by_pieces(scores));
                round_all<T>(dscores, dweights);
                begin_weighted_rows(dkeys, dweights, memory.left_tile(n));
                ptx::wgmma_wait<0>(dkeys);
            }
            if constexpr (values) ptx::wgmma_wait<0>(dvalues);
            __syncwarp();  // one lane says for all that L and D have been read
            ring.release(n);
        }
        // What the consumer, or both of them, kept is not needed any more.
        Plan::apart ? ptx::bar_sync(1, 2 * kGroup) : ptx::bar_sync(1 + i, kGroup);
        if constexpr (keys)
            memory.template own_rows<Plan::dim>(memory.left(i))
                .store(by_pieces(dkeys)[0], {p.scale, p.scale}, work.keys(dkey, kv_head, own));
        if constexpr (values)
            memory.template own_rows<Plan::value_dim>(memory.right(i))
                .store(by_pieces(dvalues)[0], {1, 1}, work.keys(dvalue, kv_head, own));
    };
    using Yes = std::true_type;
    using No = std::false_type;
    ptx::take_registers<Plan::apart ? 240 : 232>();
    const int consumer = consumer_of_thread();
    if constexpr (!Plan::apart)
        consume(consumer, Yes(), Yes());
    else if (consumer == 0)
        consume(0, Yes(), No());
    else
        consume(0, No(), Yes());
}

}  // namespace

// The arrays of `attention_mma_backward`, strides of rows above 0 where they matter, and its numbers.
DEVICE_KERNEL(attention_wgmma_backward) {
    by_half(arrays[0], [&](auto kind) {
        using T = decltype(kind);
        const auto p = attention_of<T>(arrays, numbers);
        const Above<T> above = above_of<T>(arrays);
        start_row_products(p, above, arrays[9].size, stream);
        by_width(p, [&](auto widths) {
            using P = Plan<decltype(widths)>;
            const auto maps = [&](int queries, int keys) {
                return Maps{map_of<T>(arrays[0], queries), map_of<T>(arrays[7], queries),
                            map_of<T>(arrays[1], keys), map_of<T>(arrays[2], keys)};
            };
            launch(backward_queries_wgmma<T, P>, grid_of(p, p.time_q, p.heads, P::rows), kThreads,
                   Memory<T, P, P::rows, P::keys>::bytes, stream, p, above, maps(64, P::keys),
                   heads_of<T>(arrays[10]));
            launch(backward_keys_wgmma<T, P>,
                   grid_of(p, p.time_k, p.heads / p.group, P::kept_keys), kThreads,
                   Memory<T, P, P::kept_keys, P::queries>::bytes, stream, p, above,
                   maps(P::queries, 64), heads_of<T>(arrays[11]), heads_of<T>(arrays[12]));
        });
        if (arrays[14]) start_sinks(p, above, arrays[14], stream);
    });
}

}  // namespace minitorch
