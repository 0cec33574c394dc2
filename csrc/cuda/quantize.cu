// Numbers as e4m3, 8 bits, with a scale for each block, so that the largest one of a block is 448, which
// is the largest there is:
//
//     scale = max |x| / 448,   q = x / scale to the nearest e4m3
//
// Blocks are 1 x 128, for what changes from token to token, or 128 x 128, for weights. A block of zeros
// has the smallest normal number for a scale. A warp reads 128 neighbours at a time, and keeps what it has
// read until it knows the scale: x is read once. Where not those but the rows are neighbours, as in the
// operands of a weight's gradient, they are turned in shared memory; blocks of 128 x 128 are read twice
// then. The rows of a mixture's experts come in groups, and each group has blocks of its own. sm_80 and later, where it has no instruction for it the conversion is a function of cuda_fp8.h.
//
// Source: DeepSeek-V3, 2024 (arXiv 2412.19437), section 3.3.2.

#include <cfloat>

#include "groups.h"
#include "product.h"
#include "reduce.h"

namespace minitorch {

namespace {

constexpr int kBlock = 128, kWarps = 8, kThreads = 32 * kWarps;
constexpr float kLargest = 448;

// Four neighbours in a row, of which some may not exist.
template <typename T>
__device__ float4 read(const Matrix<const T>& x, long row, long column, long rows, long columns,
                       bool vectors) {
    float found[4] = {};
    if (row < rows && vectors && column + 4 <= columns) {
        const Vector<T, 4> run(&x(row, column));
#pragma unroll
        for (int i = 0; i < 4; ++i) found[i] = float(run[i]);
    } else if (row < rows) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (column + i < columns) found[i] = float(x(row, column + i));
    }
    return make_float4(found[0], found[1], found[2], found[3]);
}

__device__ float larger(float largest, const float4& a) {
    largest = Larger()(Larger()(largest, fabsf(a.x)), Larger()(fabsf(a.y), fabsf(a.z)));
    return Larger()(largest, fabsf(a.w));
}

__device__ float scale_of(float largest) {
    return Larger()(largest / kLargest, FLT_MIN);
}

__device__ void put(const Matrix<uint8_t>& out, long row, long column, const float4& a,
                    float scale) {
    const __nv_fp8x4_e4m3 four(make_float4(a.x / scale, a.y / scale, a.z / scale, a.w / scale));
    *reinterpret_cast<uint32_t*>(&out(row, column)) = reinterpret_cast<const uint32_t&>(four);
}

// `lines` rows to a warp: 1 of a block of its own, or 16 of the 128 that warps share.
template <typename T, int lines>
__global__ void __launch_bounds__(kThreads)
    quantize(Matrix<const T> x, Matrix<uint8_t> out, Matrix<float> scales, long rows, long columns,
             bool vectors) {
    constexpr bool shared = lines > 1;
    const int warp = threadIdx.x / 32;
    const long across = (columns + kBlock - 1) / kBlock;
    const long block = shared ? blockIdx.x : blockIdx.x * long(kWarps) + warp;
    const long down = block / across, column = block % across * kBlock + threadIdx.x % 32 * 4;
    const auto row_of = [&](int i) { return shared ? down * kBlock + i * kWarps + warp : down; };
    float4 kept[lines];
    float largest = 0;
#pragma unroll
    for (int i = 0; i < lines; ++i) {
        kept[i] = read(x, row_of(i), column, rows, columns, vectors);
        largest = larger(largest, kept[i]);
    }
    largest = shared ? reduce_block<Larger>(largest, 0.0f) : reduce_warp<Larger>(largest);
    if (row_of(0) >= rows && !shared) return;
    const float scale = scale_of(largest);
    if (threadIdx.x % 32 == 0 && (warp == 0 || !shared)) scales(down, block % across) = scale;
#pragma unroll
    for (int i = 0; i < lines; ++i)
        if (row_of(i) < rows && column < columns) put(out, row_of(i), column, kept[i], scale);
}

// 128 x 128 of x, whose rows are neighbours, to a block of threads, 32 rows of them at a time through
// shared memory: rows from 128 `down` on, columns from `first` on and before `columns`, to block `block`
// of out's columns. `shared`: they have one scale. `whole`: zeros follow to the end of the block.
template <bool shared, bool whole, typename T>
__device__ void turn(const Matrix<const T>& x, const Matrix<uint8_t>& out,
                     const Matrix<float>& scales, long rows, long columns, long down, long first,
                     long block) {
    SHARED(float, tile, [32][kBlock + 1]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const auto at = [&](long row, long column) {
        return row < rows && column < columns ? float(x(row, column)) : 0.0f;
    };
    float scale = 0;
    if constexpr (shared) {
        float largest = 0;
#pragma unroll 2
        for (int i = warp; i < kBlock; i += kWarps)
#pragma unroll
            for (int j = lane; j < kBlock; j += 32)
                largest = Larger()(largest, fabsf(at(down * kBlock + j, first + i)));
        scale = scale_of(reduce_block<Larger>(largest, 0.0f));
        if (threadIdx.x == 0) scales(down, block) = scale;
    }
    for (long strip = down * kBlock; strip < min(rows, (down + 1) * kBlock); strip += 32) {
#pragma unroll 4
        for (int i = warp; i < kBlock; i += kWarps) tile[lane][i] = at(strip + lane, first + i);
        __syncthreads();
#pragma unroll 1
        for (int i = warp; i < 32 && strip + i < rows; i += kWarps) {
            const float* const four = &tile[i][4 * lane];
            const float4 a = make_float4(four[0], four[1], four[2], four[3]);
            if constexpr (!shared) {
                scale = scale_of(reduce_warp<Larger>(larger(0, a)));
                if (lane == 0) scales(strip + i, block) = scale;
            }
            if (whole || first + 4 * lane < columns)
                put(out, strip + i, block * kBlock + 4 * lane, a, scale);
        }
        __syncthreads();
    }
}

template <typename T, bool shared>
__global__ void __launch_bounds__(kThreads)
    quantize_turned(Matrix<const T> x, Matrix<uint8_t> out, Matrix<float> scales, long rows,
                    long columns) {
    const long across = (columns + kBlock - 1) / kBlock, block = blockIdx.x % across;
    turn<shared, false>(x, out, scales, rows, columns, blockIdx.x / across, block * kBlock, block);
}

// x (columns, rows) are rows in groups, turned.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_groups_kernel(Matrix<const T> x, Matrix<uint8_t> out, Matrix<float> scales,
                           const int64_t* ends, int groups, long columns) {
    const GroupRows rows(ends, groups, blockIdx.x);
    turn<false, true>(x, out, scales, columns, rows.end, blockIdx.y, rows.begin, blockIdx.x);
}

}  // namespace

// x (rows, columns) of floats at any strides; out, uint8, the bits of e4m3, rows at multiples of 16
// bytes: up to the next such one zeros may be written; scales (blocks down, blocks across), float32.
// Rows of a block: 1 or 128.
DEVICE_KERNEL(quantize_blocks) {
    const Array &x = arrays[0], &out = arrays[1], &scales = arrays[2];
    const auto run = [&](auto kind) {
        using T = decltype(kind);
        const Matrix<const T> from = matrix_of<const T>(x);
        if (from.row_stride == 1 && from.column_stride != 1) {
            const auto turned =
                numbers[0] == 1 ? quantize_turned<T, false> : quantize_turned<T, true>;
            launch(turned, ceil_div(x.shape[0], kBlock) * unsigned(scales.shape[1]), kThreads, 0,
                   stream, from, matrix_of<uint8_t>(out), matrix_of<float>(scales), x.shape[0],
                   x.shape[1]);
            return;
        }
        const bool vectors = from.template has_vectors<4>();
        const auto start = [&](auto kernel, unsigned blocks) {
            launch(kernel, blocks, kThreads, 0, stream, from, matrix_of<uint8_t>(out),
                   matrix_of<float>(scales), x.shape[0], x.shape[1], vectors);
        };
        const long blocks = scales.shape[0] * scales.shape[1];
        numbers[0] == 1 ? start(quantize<T, 1>, ceil_div(blocks, kWarps))
                        : start(quantize<T, kBlock / kWarps>, unsigned(blocks));
    };
    if (x.dtype == Dtype::float32) return run(float());
    by_half(x, run);
}

// x (rows, columns) of floats, in rows; ends (groups), int64; out (columns, 128 blocks), uint8; scales
// (columns, blocks), float32. There are rows / 128 + groups blocks, of the rows of one group each, zeros
// after their end, and zeros in those that are too many.
DEVICE_KERNEL(quantize_groups) {
    const Array &x = arrays[0], &ends = arrays[1], &out = arrays[2], &scales = arrays[3];
    const auto run = [&](auto kind) {
        using T = decltype(kind);
        launch(quantize_groups_kernel<T>,
               dim3(unsigned(scales.shape[1]), ceil_div(x.shape[1], kBlock)), kThreads, 0, stream,
               matrix_of<const T>(x).transposed(), matrix_of<uint8_t>(out),
               matrix_of<float>(scales), ends.as<const int64_t>(), int(ends.size), x.shape[1]);
    };
    if (x.dtype == Dtype::float32) return run(float());
    by_half(x, run);
}

}  // namespace minitorch
