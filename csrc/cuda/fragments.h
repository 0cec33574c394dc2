// Matrices of 16-bit floats on their way to the tensor cores: rows in shared memory, and from there
// fragments of 16 x 16 numbers, spread over the registers of a warp.
//
//     queries.fetch<threads>(rows, 64);    // global -> shared memory, by cp.async
//     queries.load(a, 16, 0);              // rows 16 to 31, columns 0 to 15 -> registers
//     multiply<T>(sums, a, b, 0);          // sums (16, 8) += a (16, 16) b (8, 16)ᵀ
//
// Lane l holds, of 16 x 8 sums, those of rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
// Two such pieces side by side, rounded, are a fragment a of the next product (`rounded`), so that
// what is computed from a product need not go back to memory to be multiplied again.
//
// Source: PTX ISA 8.5, "Matrix fragments for mma.m16n8k16" and "ldmatrix".

#pragma once

#include "attention.h"
#include "ptx.h"
#include "vector.h"

namespace minitorch {

using Fragment = uint32_t[4];
constexpr float kLog2e = 1.4426950408889634f;

// Rows of `width` numbers one after another, 16 bytes of which are a piece. ldmatrix reads a piece
// of each of 8 rows at once: piece i of row r lies where piece i ^ r % 8 would, or, where rows are
// no multiple of 128 bytes long, i ^ r / 2 % 4, and the eight are in different banks.
template <typename T, int width>
struct RowTile {
    static constexpr int pieces = width / 8;
    static_assert(pieces % 4 == 0);
    T* data;

    __device__ T* piece(int row, int i) const {
        return data + (row * pieces + (i ^ (pieces % 8 ? row / 2 % 4 : row % 8))) * 8;
    }
    // Begins to copy `count` rows of `dim` numbers, row_of(row) or null; zeros where there are
    // none, and past their end. `some` is any number that exists.
    template <int threads, typename RowOf>
    __device__ void fetch(RowOf&& row_of, int count, int dim, const T* some) const {
#pragma unroll 1
        for (int t = threadIdx.x; t < count * pieces; t += threads) {
            const int row = t / pieces, i = t % pieces;
            const T* from = 8 * i < dim ? row_of(row) : nullptr;
            ptx::cp_async<16>(piece(row, i), from ? from + 8 * i : some, from ? 16 : 0);
        }
    }
    template <int threads>
    __device__ void fetch(const Piece<const T>& from, int count) const {
        const auto row_of = [&](int row) {
            return row < from.count ? from.data + row * from.stride : nullptr;
        };
        fetch<threads>(row_of, count, from.dim, from.data);
    }
    // Four matrices of 8 x 8, at (row, column), (row + 8, column), (row, column + 8) and (row + 8,
    // column + 8): a fragment of a, or the halves of two of b, whose columns are the tile's rows.
    __device__ void load(Fragment& to, int row, int column) const {
        const int lane = threadIdx.x % 32;
        ptx::ldmatrix_x4(to, piece(row + lane % 16, column / 8 + lane / 16));
    }
    // The same, each turned, for a b whose rows are the tile's.
    __device__ void load_turned(Fragment& to, int row, int column) const {
        const int lane = threadIdx.x % 32;
        ptx::ldmatrix_x4_trans(to, piece(row + lane % 16, column / 8 + lane / 16));
    }
    // Writes 16 x width sums of a warp, times a factor for each of the lane's two rows, and from
    // there, 16 bytes at a time, those that exist.
    __device__ void store(const float (&sums)[width / 8][4], const float (&factors)[2],
                          const Piece<T>& to) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < width / 8; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                Vector<T, 2> pair;
                pair[0] = T(sums[j][2 * i] * factors[i]);
                pair[1] = T(sums[j][2 * i + 1] * factors[i]);
                pair.store(piece(lane / 4 + 8 * i, j) + lane % 4 * 2);
            }
        __syncwarp();
        for (int t = lane; t < 16 * pieces; t += 32) {
            const int row = t / pieces, i = t % pieces;
            if (row < to.count && 8 * i < to.dim)
                Vector<T>(piece(row, i)).store(to.data + row * to.stride + 8 * i);
        }
        __syncwarp();
    }
};

// The nearest numbers, the first one in the lower bits.
template <typename T>
__device__ uint32_t pack(float x, float y) {
    if constexpr (std::is_same_v<T, bfloat16>) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
        return reinterpret_cast<const uint32_t&>(pair);
    } else {
        const __half2 pair = __floats2half2_rn(x, y);
        return reinterpret_cast<const uint32_t&>(pair);
    }
}

// Two pieces of sums, 16 x 8 each, as a fragment a.
template <typename T>
__device__ void rounded(const float (&left)[4], const float (&right)[4], Fragment& to) {
    to[0] = pack<T>(left[0], left[1]);
    to[1] = pack<T>(left[2], left[3]);
    to[2] = pack<T>(right[0], right[1]);
    to[3] = pack<T>(right[2], right[3]);
}

template <typename T>
__device__ void multiply_add(float (&sums)[4], const Fragment& a, uint32_t b_low, uint32_t b_high) {
    const uint32_t b[2] = {b_low, b_high};
    if constexpr (std::is_same_v<T, bfloat16>)
        ptx::mma_bf16(sums, a, b, sums);
    else
        ptx::mma_f16(sums, a, b, sums);
}

// Of strips of 16 rows of a, from `row` on, with all rows of b: sums += a bᵀ.
template <int strips, int n, typename T, int width>
__device__ void add_products_of_rows(float (&sums)[strips][n][4], const RowTile<T, width>& a,
                                     int row, const RowTile<T, width>& b) {
#pragma unroll
    for (int k = 0; k < width; k += 16) {
        Fragment own[strips];
#pragma unroll
        for (int strip = 0; strip < strips; ++strip) a.load(own[strip], row + 16 * strip, k);
#pragma unroll
        for (int j = 0; j < n; j += 2) {
            Fragment rows;
            b.load(rows, 8 * j, k);
#pragma unroll
            for (int strip = 0; strip < strips; ++strip) {
                multiply_add<T>(sums[strip][j], own[strip], rows[0], rows[2]);
                multiply_add<T>(sums[strip][j + 1], own[strip], rows[1], rows[3]);
            }
        }
    }
}

// Sums of the rows of b, with weights that the warp holds: sums += weights b.
template <int strips, int n, typename T, int width>
__device__ void add_weighted_rows(float (&sums)[strips][width / 8][4],
                                  const float (&weights)[strips][n][4],
                                  const RowTile<T, width>& b) {
#pragma unroll
    for (int k = 0; k < n; k += 2) {
        Fragment own[strips];
#pragma unroll
        for (int strip = 0; strip < strips; ++strip)
            rounded<T>(weights[strip][k], weights[strip][k + 1], own[strip]);
#pragma unroll
        for (int j = 0; j < width / 8; j += 2) {
            Fragment columns;
            b.load_turned(columns, 8 * k, 8 * j);
#pragma unroll
            for (int strip = 0; strip < strips; ++strip) {
                multiply_add<T>(sums[strip][j], own[strip], columns[0], columns[1]);
                multiply_add<T>(sums[strip][j + 1], own[strip], columns[2], columns[3]);
            }
        }
    }
}

// of_row(row)(column, x...) for each of the sums that the lane holds.
template <int strips, int n, typename OfRow, typename... More>
__device__ void for_each(OfRow&& of_row, float (&sums)[strips][n][4], More&... more) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int strip = 0; strip < strips; ++strip)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            auto body = of_row(16 * strip + lane / 4 + 8 * i);
#pragma unroll
            for (int j = 0; j < n; ++j)
#pragma unroll
                for (int e = 2 * i; e < 2 * i + 2; ++e)
                    body(8 * j + lane % 4 * 2 + e % 2, sums[strip][j][e], more[strip][j][e]...);
        }
}

// Of the four lanes that hold a row.
template <typename Combine>
__device__ float reduce_row(float x) {
    for (int flip = 1; flip < 4; flip *= 2) x = Combine()(x, __shfl_xor_sync(0xFFFFFFFF, x, flip));
    return x;
}

// The softmax of the lane's two rows of a strip, so far. Scores are in units of 1 / factor.
struct Softmax {
    float peak[2], total[2];  // the lane's part of the sum

    __device__ void begin(float sink) {
        for (int i = 0; i < 2; ++i) {
            peak[i] = sink;
            total[i] = threadIdx.x % 4 == 0 && sink > -INFINITY ? 1 : 0;
        }
    }
    // Scores become exp2(factor (score - peak)), fade is what earlier ones are to be multiplied by.
    template <int n>
    __device__ void take(float (&scores)[n][4], float factor, float (&fade)[2]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float larger = peak[i];
#pragma unroll
            for (int j = 0; j < n; ++j)
                larger = max(larger, max(scores[j][2 * i], scores[j][2 * i + 1]));
            larger = reduce_row<Larger>(larger);
            const float shift = larger == -INFINITY ? 0 : larger * factor;
            fade[i] = ptx::exp2(peak[i] * factor - shift);
            peak[i] = larger;
            total[i] *= fade[i];
#pragma unroll
            for (int e = 2 * i; e < 2 * i + 2; ++e)
#pragma unroll
                for (int j = 0; j < n; ++j) {
                    scores[j][e] = ptx::exp2(scores[j][e] * factor - shift);
                    total[i] += scores[j][e];
                }
        }
    }
};

// What forward leaves of a strip of queries from `query` on: O = sums / total, by way of rows of shared
// memory that nobody else needs, and the logarithm of total.
template <typename T, int width>
__device__ void write_strip(const Work<T>& work, long head, long query, const Softmax& softmax,
                            float factor, const float (&sums)[width / 8][4],
                            const RowTile<T, width>& staged, const Heads<T>& out,
                            float* log_normaliser) {
    const int lane = threadIdx.x % 32;
    float factors[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float total = reduce_row<Plus>(softmax.total[i]), peak = softmax.peak[i];
        const bool blind = peak == -INFINITY;
        factors[i] = blind ? 0 : 1 / total;
        const long row = query + lane / 4 + 8 * i;
        if (lane % 4 == 0 && row < work.time_q)
            log_normaliser[work.statistic(head, row)] =
                blind ? INFINITY : peak * factor / kLog2e + logf(total);
    }
    staged.store(sums, factors, work.queries(out, head, query));
}

// What becomes of a product before its exponential, where that is not scale alone.
template <typename T>
struct Modified {
    float scale, softcap;
    Scores<const float> bias;

    __device__ Modified(const Work<T>& work, long head)
        : scale(work.p.scale), softcap(work.p.softcap), bias(work.p.bias) {
        if (bias.data) bias.data += work.batch * bias.batch + head * bias.head;
    }
    __device__ operator bool() const { return softcap != 0 || bias.data; }
    // What a score is multiplied by to be a power of two's exponent.
    __device__ static float factor(const Attention<T>& p) {
        return p.softcap != 0 || p.bias.data ? kLog2e : p.scale * kLog2e;
    }
    // Without the slope; and with a division that rounds, for which ptxas takes fewer registers in
    // some kernels (and more in others).
    __device__ float operator()(float product) const {
        const float s = product * scale;
        return softcap == 0 ? s : softcap * tanh(s / softcap);
    }
    // slope: of the cap.
    __device__ float operator()(float product, float& slope) const {
        slope = 1;
        const float s = product * scale;
        if (softcap == 0) return s;
        const float capped = tanh(__fdividef(s, softcap));
        slope = 1 - capped * capped;
        return softcap * capped;
    }
    __device__ static float tanh(float x) {
        return 1 - __fdividef(2, 1 + ptx::exp2(2 * kLog2e * x));
    }
    // Of a query's neighbours along the keys, or of a key's along the queries.
    struct Line {
        const float* data;  // or null
        int step;
    };
    __device__ Line along_keys(long query, long key) const { return {at(query, key), int(bias.key)}; }
    __device__ Line along_queries(long query, long key) const {
        return {at(query, key), int(bias.query)};
    }
    __device__ float bias_of(long query, long key) const {
        return bias.data ? *at(query, key) : 0;
    }

private:
    __device__ const float* at(long query, long key) const {
        return bias.data ? bias.data + query * bias.query + key * bias.key : nullptr;
    }
};

}  // namespace minitorch
