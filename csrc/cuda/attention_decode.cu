// Attention of a few queries to a long past, on tensor cores; sm_80 and later. Each number of the
// past takes part in two multiply-adds for each query that reads it, so the time is that of reading
// it once, by as many multiprocessors as there are:
//
//     split     blocks share the keys of one head: each leaves its own O and log of the
//     denominator, in
//               float32, and another kernel puts them together,  O = Σ exp(L_i - L) O_i,
//               exp(L) = exp(z) + Σ exp(L_i)
//     packed    the rows of a block are the queries of all heads that read from its keys, 16 or 64
//     paged     keys and values may lie in pages of one pool: key t of sequence s is row t % size
//     of
//               page table[s][t / size]
//     latent    keys and values may be the same rows, values the first columns of keys. That is
//     latent
//               attention, absorbed: queries (W_Kᵀ q, q^R) of 512 + 64 numbers meet latents and
//               rotated keys (c, k^R) as one, and P c is multiplied by W_V afterwards
//
// A tile of 64 or 32 keys is copied while the one before it is used. Its scores are shared out by
// pieces of 16 rows and 16 keys; through shared memory they come to threads that keep whole rows,
// or parts of them, and leave P; and of O each warp makes some columns, of all rows.
//
// Registers of a thread on sm_80: at most 94 with 16 rows, 237 with 64 and latents; no spills.
// Source: Dao et al., "Flash-Decoding for
// long-context inference", 2023; Kwon et al. 2023 (arXiv 2309.06180), section 4.1, for pages;
// DeepSeek-AI 2024 (arXiv 2405.04434), section 2.1, for latents.

#include "fragments.h"

namespace minitorch {

namespace {

template <typename Widths, int strips_>
struct Plan : Widths {
    using Widths::dim, Widths::value_dim;
    static constexpr bool latent = dim > 256;
    static constexpr int strips = strips_, rows = 16 * strips;
    static constexpr int warps = latent ? 8 : 4, threads = 32 * warps;
    static constexpr int keys = dim <= 192 ? 64 : 32;  // of a tile
    static constexpr int columns = value_dim / warps;  // of a warp
    static constexpr int per_row = threads / rows;     // threads
    static constexpr int stage = keys * (latent ? dim : dim + value_dim);
    static constexpr int pitch = keys + 4;  // of the scores
    static constexpr size_t shared_bytes =
        2 * (rows * dim + 2 * stage + rows * keys) + 4 * (rows * pitch + rows);
};

// Where the past lies, and what the blocks that share it leave.
struct Past {
    const int64_t* lengths;  // (batch,), or null: all of time_k
    const int32_t*
        table;  // (batch, pages_each), or null: page b is that of sequence b, as long as needed
    long page_size, pages_each;
    float *outs, *logs;  // (splits, rows of all sequences and heads, value_dim), (splits, rows)
    int splits;
};

template <typename T, typename Plan>
__global__ void __launch_bounds__(Plan::threads) decode(Attention<T> p, Past past) {
    SHARED_DYNAMIC(T, memory);
    const RowTile<T, Plan::dim> queries{memory};
    const auto keys = [&](int stage) {
        return RowTile<T, Plan::dim>{memory + Plan::rows * Plan::dim + stage * Plan::stage};
    };
    const auto values = [&](int stage) {
        if constexpr (Plan::latent)
            return keys(stage);
        else
            return RowTile<T, Plan::value_dim>{keys(stage).data + Plan::keys * Plan::dim};
    };
    const RowTile<T, Plan::keys> weights{keys(2).data};
    float* const scores = reinterpret_cast<float*>(weights.data + Plan::rows * Plan::keys);
    float* const fades = scores + Plan::rows * Plan::pitch;

    Work<T> work(p, false, Plan::rows);
    if (past.lengths) work.time_k = past.lengths[work.batch];
    work.offset = p.lower_right ? work.time_k - work.time_q : 0;
    const long kv_head = blockIdx.y, first_row = blockIdx.x / past.splits * Plan::rows;
    const int split = blockIdx.x % past.splits, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const long all_rows = p.group * p.time_q;
    const unsigned group =
        unsigned(p.group);  // division of 64 bits is a function of many instructions
    const auto head_of = [&](long row) { return kv_head * group + unsigned(row) % group; };
    const auto query_of = [&](long row) { return long(unsigned(row) / group); };

    const long last_row = min(first_row + Plan::rows, all_rows) - 1;
    const long low = work.first_key(query_of(first_row));
    const long high = work.end_of_keys(query_of(last_row));
    const long tiles = max(0l, high - low + Plan::keys - 1) / Plan::keys;
    const long each = (tiles + past.splits - 1) / past.splits * Plan::keys;
    const long begin = low + split * each, end = min(high, begin + each);
    const auto row_of = [&](const Heads<const T>& x, long key) -> const T* {
        if (key >= end) return nullptr;
        if (!past.table) return x.row(work.batch, kv_head, key);
        const unsigned t = unsigned(key), size = unsigned(past.page_size);
        return x.row(past.table[work.batch * past.pages_each + t / size], kv_head, t % size);
    };
    const auto fetch = [&](long key, int stage) {
        if (key < end) {
            keys(stage).template fetch<Plan::threads>(
                [&](int row) { return row_of(p.key, key + row); }, Plan::keys, p.key.dim,
                p.key.data);
            if constexpr (!Plan::latent)
                values(stage).template fetch<Plan::threads>(
                    [&](int row) { return row_of(p.value, key + row); }, Plan::keys, p.value.dim,
                    p.value.data);
        }
        ptx::cp_async_commit();
    };

    // The row whose softmax this thread has a part of.
    const int own = threadIdx.x / Plan::per_row, part = threadIdx.x % Plan::per_row;
    const long own_row = first_row + own;
    const bool exists = own_row < all_rows;
    const long query = query_of(own_row);
    const Modified<T> modified(work, exists ? head_of(own_row) : 0);
    const float factor = modified ? kLog2e : p.scale * kLog2e;
    float peak = -INFINITY, total = 0;

    float sums[Plan::strips][Plan::columns / 8][4] = {};
    queries.template fetch<Plan::threads>(
        [&](int row) -> const T* {
            const long r = first_row + row;
            return r < all_rows ? p.query.row(work.batch, head_of(r), query_of(r)) : nullptr;
        },
        Plan::rows, p.query.dim, p.query.data);
    fetch(begin, 0);
    int stage = 0;
    for (long key = begin; key < end; key += Plan::keys, stage ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();  // this tile is whole, and all are done with the one before
        fetch(key + Plan::keys, stage ^ 1);
        for (int unit = warp; unit < Plan::strips * Plan::keys / 16; unit += Plan::warps) {
            const int row = unit / (Plan::keys / 16) * 16, column = unit % (Plan::keys / 16) * 16;
            float products[2][4] = {};
#pragma unroll 4
            for (int k = 0; k < Plan::dim; k += 16) {
                Fragment a, b;
                queries.load(a, row, k);
                keys(stage).load(b, column, k);
                multiply_add<T>(products[0], a, b[0], b[2]);
                multiply_add<T>(products[1], a, b[1], b[3]);
            }
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    Vector<float, 2>(&products[j][2 * i])
                        .store(scores + (row + lane / 4 + 8 * i) * Plan::pitch + column + 8 * j +
                               lane % 4 * 2);
        }
        __syncthreads();
        const Range seen = exists ? work.keys_seen(query, key) : Range{0, 0};
        const int last = int(min(end - key, long(Plan::keys)));
        float mine[Plan::keys / Plan::per_row], larger = peak;
#pragma unroll
        for (int i = 0; i < Plan::keys / Plan::per_row; ++i) {
            const int column = i * Plan::per_row + part;
            mine[i] = -INFINITY;
            if (!seen.has(column) || column >= last) continue;
            mine[i] = scores[own * Plan::pitch + column];
            float slope;
            if (modified)
                mine[i] = modified(mine[i], slope) + modified.bias_of(query, key + column);
            larger = max(larger, mine[i]);
        }
        for (int flip = 1; flip < Plan::per_row; flip *= 2)
            larger = max(larger, __shfl_xor_sync(0xFFFFFFFF, larger, flip));
        const float shift = larger == -INFINITY ? 0 : larger * factor;
        const float fade = ptx::exp2(peak * factor - shift);
        peak = larger;
        total *= fade;
        if (part == 0) fades[own] = fade;
#pragma unroll
        for (int i = 0; i < Plan::keys / Plan::per_row; ++i) {
            const int column = i * Plan::per_row + part;
            const float weight = ptx::exp2(mine[i] * factor - shift);
            total += weight;
            weights.piece(own, column / 8)[column % 8] = T(weight);
        }
        __syncthreads();
#pragma unroll
        for (int strip = 0; strip < Plan::strips; ++strip)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float faded = fades[16 * strip + lane / 4 + 8 * i];
#pragma unroll
                for (auto& piece : sums[strip]) piece[2 * i] *= faded, piece[2 * i + 1] *= faded;
            }
#pragma unroll
        for (int k = 0; k < Plan::keys; k += 16) {
            Fragment a[Plan::strips];
#pragma unroll
            for (int strip = 0; strip < Plan::strips; ++strip)
                weights.load(a[strip], 16 * strip, k);
#pragma unroll
            for (int j = 0; j < Plan::columns / 8; j += 2) {
                Fragment b;
                values(stage).load_turned(b, k, warp * Plan::columns + 8 * j);
#pragma unroll
                for (int strip = 0; strip < Plan::strips; ++strip) {
                    multiply_add<T>(sums[strip][j], a[strip], b[0], b[1]);
                    multiply_add<T>(sums[strip][j + 1], a[strip], b[2], b[3]);
                }
            }
        }
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    for (int flip = 1; flip < Plan::per_row; flip *= 2)
        total += __shfl_xor_sync(0xFFFFFFFF, total, flip);
    const long rows_before = (split * p.sequences + work.batch) * p.heads * p.time_q;
    const auto place = [&](long row) {
        return rows_before + head_of(row) * p.time_q + query_of(row);
    };
    if (part == 0) {
        fades[own] = total > 0 ? 1 / total : 0;
        if (exists)
            past.logs[place(own_row)] =
                total > 0 ? peak * factor / kLog2e + logf(total) : -INFINITY;
    }
    __syncthreads();
    for_each(
        [&](int r) {
            const long row = first_row + r;
            float* const to = past.outs + (row < all_rows ? place(row) : 0) * p.value.dim;
            return [&, to, row, factor = fades[r]](int column, float& sum) {
                const int d = warp * Plan::columns + column;
                if (row < all_rows && d < p.value.dim) to[d] = sum * factor;
            };
        },
        sums);
}

// A warp to each query of each head; `out` and log_normaliser as attention's.
template <typename T>
__global__ void combine(Attention<T> p, Past past, Heads<T> out, float* log_normaliser, long rows) {
    const int lane = threadIdx.x % 32;
    const long row = blockIdx.x * long(blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    const long t = row % p.time_q, head = row / p.time_q % p.heads;
    const float sink = p.sinks ? p.sinks[head] : -INFINITY;
    float peak = sink;
    for (int i = 0; i < past.splits; ++i) peak = max(peak, past.logs[i * rows + row]);
    const float shift = peak == -INFINITY ? 0 : peak;
    float total = expf(sink - shift);
    for (int i = 0; i < past.splits; ++i) total += expf(past.logs[i * rows + row] - shift);
    T* const to = out.row(row / p.time_q / p.heads, head, t);
    for (int d = lane; d < out.dim; d += 32) {
        float sum = 0;
        for (int i = 0; i < past.splits; ++i)
            sum +=
                expf(past.logs[i * rows + row] - shift) * past.outs[(i * rows + row) * out.dim + d];
        to[d] = T(peak == -INFINITY ? 0 : sum / total);
    }
    if (lane == 0) log_normaliser[row] = peak == -INFINITY ? INFINITY : peak + logf(total);
}

template <typename T, typename Body>
void by_decoding_width(const Attention<T>& p, Body&& body) {
    const int dim = p.query.dim, value_dim = p.value.dim, wider = max(dim, value_dim);
    if (dim > 256) return body(Plan<Widths<576, 512>, 4>());
    const auto by_strips = [&](auto widths) {
        if (p.group * p.time_q <= 16) return body(Plan<decltype(widths), 1>());
        return body(Plan<decltype(widths), 4>());
    };
    if (wider <= 64) return by_strips(Widths<64, 64>());
    if (wider <= 128) return by_strips(Widths<128, 128>());
    if (dim <= 192 && value_dim <= 128) return by_strips(Widths<192, 128>());
    return by_strips(Widths<256, 256>());
}

}  // namespace

// The arrays of `attention`, of 16-bit floats, rows at multiples of 16 bytes, without starts; then
// lengths (batch,) of int64 and table (batch, pages_each) of int32, with keys and values (pages,
// kv_heads, page_size, dim), or None; outs (splits, batch, heads, time_q, value_dim) and logs
// (splits, batch, heads, time_q) of float32. Heads wider than 256, up to 576, with values of up to
// 512: the values are the first columns of the keys.
DEVICE_KERNEL(attention_decode) {
    by_half(arrays[0], [&](auto kind) {
        using T = decltype(kind);
        const auto p = attention_of<T>(arrays, numbers);
        const Array &lengths = arrays[9], &table = arrays[10], &outs = arrays[11];
        const Past past{
            lengths.as<const int64_t>(), table.as<const int32_t>(), p.time_k,
            table ? table.shape[1] : 0,  outs.as<float>(),          arrays[12].as<float>(),
            int(outs.shape[0])};
        by_decoding_width(p, [&](auto plan) {
            using P = decltype(plan);
            const unsigned blocks = ceil_div(p.group * p.time_q, P::rows) * past.splits;
            launch(decode<T, P>, dim3(blocks, unsigned(p.heads / p.group), unsigned(p.sequences)),
                   P::threads, P::shared_bytes, stream, p, past);
        });
        const long rows = arrays[8].size;
        launch(combine<T>, ceil_div(rows, 4), 128, 0, stream, p, past, heads_of<T>(arrays[7]),
               arrays[8].as<float>(), rows);
    });
}

}  // namespace minitorch
