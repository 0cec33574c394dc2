// Attention on tensor cores, forward, for bfloat16 and float16; sm_80 and later. What attention.cu
// computes, with the same options, if scale is positive:
//
//     S = softcap(scale Q Kᵀ) + bias,   P = exp(S) / (exp(z) + Σ exp(S)),   O = P V
//
// A block of four warps takes 64 or 128 queries, one or two strips of 16 to a warp, and walks past
// their keys and values in tiles of 32 or 64. A tile is copied while the one before it is
// multiplied.
//
//     S = Q Kᵀ   fragments of Q and K from shared memory; S stays in registers, four lanes to a row
//     P          exp2(factor S - factor max S), factor = scale log2(e): one fused multiply-add and
//                one exp2 to a number. A row's maximum is made by two shuffles, its sum at the end
//     O += P V   the registers that hold P, rounded, are fragments of the left operand already
//
// Two strips use each fragment of K and V twice. With one, shared memory would have to give as many
// bytes as it can: on sm_80 a multiprocessor multiplies 16 x 16 numbers of K by 16 of Q in the four
// cycles that it takes to load them. Wide heads leave no registers for a second strip.
//
// Tiles that every query of the block sees whole are not masked; those that none sees are not read.
//
// Registers of a thread, heads of 64, 96, 128, 192 and 256: 226, 220, 255, 128 and 244 on sm_90a; no
// spills. Source: FlashAttention-2, Dao 2023 (arXiv 2307.08691), algorithm 1 and section 3.3.

#include "fragments.h"

namespace minitorch {

namespace {

constexpr int kThreads = 128, kWarps = 4;

template <typename Widths>
struct Plan : Widths {
    using Widths::dim, Widths::value_dim;
    static constexpr int strips = dim <= 128 ? 2 : 1;
    static constexpr int rows = 16 * strips * kWarps;
    static constexpr int keys = dim <= 64 ? 64 : 32;  // of a tile
    static constexpr int stage = keys * (dim + value_dim);
    static constexpr size_t shared_bytes = 2 * (rows * dim + 2 * stage);
};

template <typename T, typename Plan>
__global__ void __launch_bounds__(kThreads)
    forward_mma(Attention<T> p, Heads<T> out, float* log_normaliser) {
    SHARED_DYNAMIC(T, memory);
    const Work<T> work(p, false, Plan::rows);
    const long head = blockIdx.y, kv_head = head / p.group;
    if (work.first >= work.time_q) return;
    const long last = min(work.first + Plan::rows, work.time_q) - 1;
    const long end = work.end_of_keys(last);
    const int own = threadIdx.x / 32 * 16 * Plan::strips;

    const RowTile<T, Plan::dim> queries{memory};
    const auto keys = [&](int stage) {
        return RowTile<T, Plan::dim>{memory + Plan::rows * Plan::dim + stage * Plan::stage};
    };
    const auto values = [&](int stage) {
        return RowTile<T, Plan::value_dim>{keys(stage).data + Plan::keys * Plan::dim};
    };
    const auto fetch = [&](long key, int stage) {
        if (key < end) {
            keys(stage).template fetch<kThreads>(work.keys(p.key, kv_head, key), Plan::keys);
            values(stage).template fetch<kThreads>(work.keys(p.value, kv_head, key), Plan::keys);
        }
        ptx::cp_async_commit();
    };

    const Modified<T> modified(work, head);
    const float factor = modified ? kLog2e : p.scale * kLog2e;
    Softmax softmax[Plan::strips];
    for (Softmax& one : softmax) one.begin(p.sinks ? p.sinks[head] * kLog2e / factor : -INFINITY);
    float sums[Plan::strips][Plan::value_dim / 8][4] = {};
    queries.template fetch<kThreads>(work.queries(p.query, head, work.first), Plan::rows);
    long key = work.first_key(work.first);
    fetch(key, 0);
    for (int stage = 0; key < end; key += Plan::keys, stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();  // this tile is whole, and all are done with the one before
        fetch(key + Plan::keys, stage ^ 1);
        float scores[Plan::strips][Plan::keys / 8][4] = {};
        add_products_of_rows(scores, queries, own, keys(stage));
        if (modified || !work.all_see(work.first, last, key, key + Plan::keys - 1))
            for_each(
                [&](int row) {
                    const long query = work.first + own + row;
                    return [&, query, seen = work.keys_seen(query, key)](int column, float& s) {
                        if (!seen.has(column))
                            s = -INFINITY;
                        else if (modified)
                            s = modified(s) + modified.bias_of(query, key + column);
                    };
                },
                scores);
#pragma unroll
        for (int strip = 0; strip < Plan::strips; ++strip) {
            float fade[2];
            softmax[strip].take(scores[strip], factor, fade);
#pragma unroll
            for (auto& piece : sums[strip])
#pragma unroll
                for (int e = 0; e < 4; ++e) piece[e] *= fade[e / 2];
        }
        add_weighted_rows(sums, scores, values(stage));
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int strip = 0; strip < Plan::strips; ++strip) {
        const RowTile<T, Plan::value_dim> staged{memory + (own + 16 * strip) * Plan::dim};
        write_strip(work, head, work.first + own + 16 * strip, softmax[strip], factor, sums[strip],
                    staged, out, log_normaliser);
    }
}

}  // namespace

// The arrays of `attention`, of 16-bit floats, rows at multiples of 16 bytes, and its numbers.
DEVICE_KERNEL(attention_mma) {
    by_half(arrays[0], [&](auto kind) {
        using T = decltype(kind);
        const auto p = attention_of<T>(arrays, numbers);
        by_width(p, [&](auto widths) {
            using P = Plan<decltype(widths)>;
            launch(forward_mma<T, P>, grid_of(p, p.time_q, p.heads, P::rows), kThreads,
                   P::shared_bytes, stream, p, heads_of<T>(arrays[7]), arrays[8].as<float>());
        });
    });
}

}  // namespace minitorch
