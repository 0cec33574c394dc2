// Attention forward on Hopper, sm_90a: what attention_mma.cu computes, by warpgroups. A block takes
// 128 queries and has three of them, 128 threads each:
//
//     producer    one thread asks the tensor memory accelerator for tiles of 128 (heads of 256: 64)
//     keys
//                 and of their values, two of each on their way; the others have nothing to do
//     consumers   two with 64 queries each: S = Q Kᵀ and O += P V by wgmma, Q, K and V from shared
//                 memory, P from the registers in which the softmax leaves it
//
// wgmma goes on while its threads do something else, and that is used twice. A consumer begins the
// scores of a tile and the values of the tile before it together, and takes the softmax of the one
// while the tensor cores do the other. And the consumers take turns (pingpong): each begins its
// products when the other one has begun its own, so that while one of them computes exponentials,
// of which a multiprocessor does 16 in the time of 2048 multiply-adds, the tensor cores work for the other
// one:
//
//     one      | products j | softmax j  | products j+1 | softmax j+1  |
//     other    ...          | products j | softmax j    | products j+1 | ...
//
// The producer needs few registers: of the 168 that a thread has at first it keeps 24, and consumers
// get 240. No spills. Source: FlashAttention-3, Shah et al. 2024 (arXiv 2407.08608), sections 3.1 and
// 3.2, algorithm 2.

#include "attention_warpgroups.h"

namespace minitorch {

namespace {

template <typename Widths>
struct Plan : Widths {
    using Widths::dim, Widths::value_dim;
    static constexpr int rows = 128;
    static constexpr int keys = dim <= 192 ? 128 : 64;  // of a tile
    static constexpr int query_bytes = 64 * padded(dim) * 2;
    static constexpr int key_bytes = keys * padded(dim) * 2;
    static constexpr int value_bytes = keys * padded(value_dim) * 2;
    static constexpr size_t shared_bytes = 2 * (query_bytes + key_bytes + value_bytes);
};

template <typename T, typename Plan>
__global__ void __launch_bounds__(kThreads, 1)
    forward_wgmma(Attention<T> p, const __grid_constant__ CUtensorMap query_map,
                  const __grid_constant__ CUtensorMap key_map,
                  const __grid_constant__ CUtensorMap value_map, Heads<T> out,
                  float* log_normaliser) {
    SHARED_DYNAMIC(char, memory);
    SHARED(uint64_t, barriers, [9]);
    const Ring key_ring{barriers, barriers + 2}, value_ring{barriers + 4, barriers + 6};
    uint64_t* const queries_full = barriers + 8;
    const QueryBlock<T, Plan> block(p);
    const Work<T>& work = block.work;
    const int head = block.head, tiles = block.tiles;
    if (!block.exists()) return;

    const auto queries = [&](int consumer) {
        return Panels<T, 64>{memory + consumer * Plan::query_bytes};
    };
    const auto keys = [&](int n) {
        return Panels<T, Plan::keys>{memory + 2 * Plan::query_bytes + n % 2 * Plan::key_bytes};
    };
    const auto values = [&](int n) {
        return Panels<T, Plan::keys>{memory + 2 * (Plan::query_bytes + Plan::key_bytes) +
                                     n % 2 * Plan::value_bytes};
    };
    if (threadIdx.x == 0) {
        key_ring.begin();
        value_ring.begin();
        ptx::mbarrier_init(queries_full, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();

    if (threadIdx.x < kGroup) {
        ptx::give_registers<24>();
        if (threadIdx.x != 0 || tiles == 0) return;
        ptx::mbarrier_arrive_expect(queries_full, 2 * Plan::query_bytes);
        for (int i = 0; i < 2; ++i)
            queries(i).load(&query_map, queries_full, Plan::dim, block.query_row(i), head,
                            work.batch);
        for (int n = 0; n < tiles; ++n) {
            const int row = block.key_row(n), kv_head = block.kv_head;
            key_ring.wait_to_fill(n, Plan::key_bytes);
            keys(n).load(&key_map, key_ring.full + n % 2, Plan::dim, row, kv_head, work.batch);
            value_ring.wait_to_fill(n, Plan::value_bytes);
            values(n).load(&value_map, value_ring.full + n % 2, Plan::value_dim, row, kv_head,
                           work.batch);
        }
        return;
    }
    ptx::take_registers<240>();
    const int consumer = consumer_of_thread(), own = 64 * consumer + row_of_warp();
    const int turn = 1 + consumer, turn_of_other = 2 - consumer;  // named barriers
    const float factor = Modified<T>::factor(p);
    Softmax softmax;
    softmax.begin(p.sinks ? p.sinks[head] * kLog2e / factor : -INFINITY);
    float sums[Plan::value_dim / 2] = {}, scores[Plan::keys / 2];
    Fragment weights[Plan::keys / 16];
    auto& pieces = by_pieces(scores);
    const auto begin_scores = [&](int n) {
        key_ring.wait_to_read(n);
        begin_products_of_rows<Plan::dim>(scores, queries(consumer), keys(n));
    };
    const auto begin_sums = [&](int n) {
        value_ring.wait_to_read(n);
        begin_weighted_rows(sums, weights, values(n));
    };

    const auto weigh = [&](int n, float (&fade)[2]) {
        key_ring.release(n);
        const int key = block.key(n), query = int(work.first) + own;
        const auto seen_of = [&](int row) { return work.keys_seen(query + row, key); };
        if (const Modified<T> modified(work, head); modified)
            modify(
                modified, seen_of,
                [&](int row) { return modified.along_keys(query + row, key); },
                [](int, int) { return 0.0f; }, scores);
        if (!block.all_see(n))
            for_each(
                [&](int row) {
                    return [seen = seen_of(row)](int column, float& s) {
                        if (!seen.has(column)) s = -INFINITY;
                    };
                },
                pieces);
        softmax.take(pieces[0], factor, fade);
    };
    const auto keep_weights = [&] { round_all<T>(scores, weights); };
    const auto begin_turn = [&] { ptx::bar_sync(turn, 2 * kGroup); };
    const auto end_turn = [&](int n) {
        if (consumer == 0 || n + 1 < tiles) ptx::bar_arrive(turn_of_other, 2 * kGroup);
    };

    if (tiles > 0) {
        float fade[2];
        ptx::mbarrier_wait(queries_full, 0);
        if (consumer == 1) ptx::bar_arrive(turn_of_other, 2 * kGroup);
        begin_turn();
        begin_scores(0);
        end_turn(0);
        ptx::wgmma_wait<0>(scores);
        weigh(0, fade);
        keep_weights();
        for (int n = 1; n < tiles; ++n) {
            begin_turn();
            begin_scores(n);
            begin_sums(n - 1);
            end_turn(n);
            ptx::wgmma_wait<1>(scores);
            weigh(n, fade);
            ptx::wgmma_wait<0>(sums);
            value_ring.release(n - 1);
#pragma unroll
            for (int e = 0; e < Plan::value_dim / 2; ++e) sums[e] *= fade[e / 2 % 2];
            keep_weights();
        }
        begin_sums(tiles - 1);
        ptx::wgmma_wait<0>(sums);
    }
    ptx::bar_sync(3 + consumer, kGroup);  // this consumer's queries are not needed any more
    const RowTile<T, Plan::value_dim> staged{reinterpret_cast<T*>(memory) + own * padded(Plan::dim)};
    write_strip(work, head, work.first + own, softmax, factor,
                by_pieces(sums)[0], staged, out, log_normaliser);
}

}  // namespace

// The arrays of `attention_mma`, strides of rows above 0 where they matter, and its numbers.
DEVICE_KERNEL(attention_wgmma) {
    by_half(arrays[0], [&](auto kind) {
        using T = decltype(kind);
        const auto p = attention_of<T>(arrays, numbers);
        by_width(p, [&](auto widths) {
            using P = Plan<decltype(widths)>;
            launch(forward_wgmma<T, P>, grid_of(p, p.time_q, p.heads, P::rows), kThreads,
                   P::shared_bytes, stream, p, map_of<T>(arrays[0], 64),
                   map_of<T>(arrays[1], P::keys), map_of<T>(arrays[2], P::keys),
                   heads_of<T>(arrays[7]), arrays[8].as<float>());
        });
    });
}

}  // namespace minitorch
