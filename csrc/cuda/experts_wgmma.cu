// The products of experts.cu, of groups of rows with a matrix each, on Hopper's tensor cores, sm_90a:
// for bfloat16, float16 and 8 bits, added up in float32.
//
//     grouped_mm       out[r] = x[r] weight[e]       for the rows r of group e; the gradient of x is
//                                                    one, too, of weight[e]ᵀ
//     grouped_outer    out[e] = x_eᵀ grad_e          the gradient of the weight
//     grouped_scaled   as grouped_mm, of 8-bit floats with scales (scaled.h); grouped_scaled_outer as
//                      grouped_outer, of what quantize_groups has turned (quantize.cu)
//
// Only the device knows where groups begin. The tensor memory accelerator does not mind: a box may
// begin at any row. What it brings of the next group's rows makes sums that are not written, or, where
// rows are what is added up, is overwritten by zeros. 128 x 128 numbers to a block, a tile each.
//
// Registers of a thread: 168, which is the share of each of 384; no spills.
//
// Source: Gale et al. 2022, "MegaBlocks"; for 8 bits DeepSeek-V3, 2024 (arXiv 2412.19437), section 3.3.

#include "groups.h"
#include "scaled.h"

namespace minitorch {

namespace {

template <typename T, bool a_along_k, bool b_along_k>
using Grouped = Plan<T, a_along_k, b_along_k, 128, 128, 6, 1>;

// `steps` of k from `begin` on: the first warpgroup has tiles copied, the others multiply them, by
// accumulate(sums, ring, consumer).
template <typename P, typename Accumulate, typename Write>
__device__ void multiply_tile(const Maps& maps, int row, int column, int plane, int begin, int steps,
                              Accumulate accumulate, Write write) {
    SHARED_DYNAMIC(char, memory);
    SHARED(uint64_t, full, [P::stages]);
    SHARED(uint64_t, empty, [P::stages]);
    Ring<P> ring{memory, full, empty};
    if (threadIdx.x == 0) ring.init();
    __syncthreads();
    if (threadIdx.x < kGroup) {
        ptx::give_registers<40>();
        if (threadIdx.x == 0) fill(ring, maps, row, column, 0, plane, begin, begin + steps);
    } else {
        ptx::take_registers<232>();
        const int consumer = threadIdx.x / kGroup - 1;
        char* const own = memory + P::stages * P::stage_bytes + consumer * Square::bytes;
        Sums<P::columns> sums;
        accumulate(sums, ring, consumer);
        write(sums, 64 * consumer, Square{reinterpret_cast<float*>(own), 1 + consumer});
    }
}

template <typename P>
__global__ void __launch_bounds__(P::threads, 1)
    grouped_mm_kernel(const __grid_constant__ Maps maps, Matrix<typename P::T> out,
                      const int64_t* ends, int groups, long n, int k) {
    using T = typename P::T;
    const GroupRows rows(ends, groups, blockIdx.x);
    if (rows.group == groups) return;
    const int column = blockIdx.y * P::columns;
    multiply_tile<P>(
        maps, int(rows.begin), column, rows.group, 0, k,
        [k](auto& sums, auto& ring, int consumer) {
            accumulate(sums, k, consumer, ring, [](char*, int) {});
        },
        [&](const Sums<P::columns>& sums, int own, const Square& square) {
            Product<T, T> p{};
            p.m = rows.end, p.n = n, p.alpha = 1, p.out = out;
            sums.write(p, rows.begin + own, column, square);
        });
}

template <typename O>
__global__ void __launch_bounds__(ScaledPlan::threads, 1)
    grouped_scaled_kernel(const __grid_constant__ Maps maps, Matrix<O> out, const int64_t* ends,
                          int groups, long n, int k, Scales scales, long scales_stride) {
    const GroupRows rows(ends, groups, blockIdx.x);
    if (rows.group == groups) return;
    const int column = blockIdx.y * ScaledPlan::columns;
    scales.right.data += rows.group * scales_stride;
    multiply_tile<ScaledPlan>(
        maps, int(rows.begin), column, rows.group, 0, k,
        [&](auto& sums, auto& ring, int consumer) {
            accumulate_scaled(sums, ring, consumer, int(rows.begin) + 64 * consumer, column, rows.end,
                              k, scales);
        },
        [&](const Sums<ScaledPlan::columns>& sums, int own, const Square& square) {
            Product<Number, O> p{};
            p.m = rows.end, p.n = n, p.alpha = 1, p.out = out;
            sums.write(p, rows.begin + own, column, square);
        });
}

// Lines of a stage's panels from `rest` on are those of other groups' rows.
template <typename P>
__device__ void clear_lines(char* stage, int rest) {
    constexpr int depth = kDepth<typename P::T>;
    if (rest >= depth) return;
    constexpr int threads = P::consumers * kGroup;
    for (int i = threadIdx.x - kGroup; i < P::stage_bytes / 16; i += threads)
        if (i / 8 % depth >= rest) reinterpret_cast<uint4*>(stage)[i] = make_uint4(0, 0, 0, 0);
    ptx::fence_proxy_async();
    ptx::bar_sync(1 + P::consumers, threads);
}

template <typename P>
__global__ void __launch_bounds__(P::threads, 1)
    grouped_outer_kernel(const __grid_constant__ Maps maps, Matrix<typename P::T> out,
                         long out_stride, const int64_t* ends, long m, long n) {
    using T = typename P::T;
    const int group = blockIdx.y;
    const long begin = group ? ends[group - 1] : 0;
    const Corner corner(n, P::rows, P::columns);
    const int steps = int(ends[group] - begin);
    multiply_tile<P>(
        maps, int(corner.row), int(corner.column), 0, int(begin), steps,
        [steps](auto& sums, auto& ring, int consumer) {
            accumulate(sums, steps, consumer, ring,
                       [](char* stage, int rest) { clear_lines<P>(stage, rest); });
        },
        [&](const Sums<P::columns>& sums, int own, const Square& square) {
            Product<T, T> p{};
            p.m = m, p.n = n, p.alpha = 1;
            p.out = {out.data + group * out_stride, out.row_stride, out.column_stride};
            sums.write(p, corner.row + own, corner.column, square);
        });
}

// Each group's rows are blocks of 128 of their own, which end with zeros.
template <typename O>
__global__ void __launch_bounds__(ScaledPlan::threads, 1)
    grouped_scaled_outer_kernel(const __grid_constant__ Maps maps, Matrix<O> out, long out_stride,
                                const int64_t* ends, long m, long n, Scales scales) {
    int first = 0, steps = 0;
    long begin = 0;
    for (int e = 0; e <= int(blockIdx.y); ++e) {
        first += steps / kScaledBlock;
        steps = int((ends[e] - begin + kScaledBlock - 1) / kScaledBlock) * kScaledBlock;
        begin = ends[e];
    }
    const Corner corner(n, ScaledPlan::rows, ScaledPlan::columns);
    const int row = int(corner.row), column = int(corner.column);
    multiply_tile<ScaledPlan>(
        maps, row, column, 0, first * kScaledBlock, steps,
        [&](auto& sums, auto& ring, int consumer) {
            accumulate_scaled<true>(sums, ring, consumer, row + 64 * consumer, column, m, steps, scales,
                                    n, first);
        },
        [&](const Sums<ScaledPlan::columns>& sums, int own, const Square& square) {
            Product<Number, O> p{};
            p.m = m, p.n = n, p.alpha = 1;
            p.out = {out.data + blockIdx.y * out_stride, out.row_stride, out.column_stride};
            sums.write(p, row + own, column, square);
        });
}

}  // namespace

// x (rows, k), in rows; weight (groups, k, n), in columns if that is said, otherwise in rows; ends
// (groups), int64; out (rows, n). Lines begin at multiples of 16 bytes.
DEVICE_KERNEL(grouped_mm_wgmma) {
    const Array &x = arrays[0], &weight = arrays[1], &ends = arrays[2], &out = arrays[3];
    by_half(x, [&](auto kind) {
        using T = decltype(kind);
        const long rows = x.shape[0], k = x.shape[1], n = out.shape[1], groups = ends.size;
        const auto run = [&](auto along_k) {
            using P = Grouped<T, true, decltype(along_k)::value>;
            Maps maps{};
            maps.a = P::A::map(matrix_of<const T>(x), rows, k, 1, 0);
            maps.b = P::B::map(matrix_of<const T>(weight).transposed(), n, k, groups,
                               weight.strides[0]);
            launch(grouped_mm_kernel<P>, dim3(unsigned(rows / 128 + groups), ceil_div(n, 128)),
                   P::threads, P::shared_bytes, stream, maps, matrix_of<T>(out),
                   ends.as<const int64_t>(), int(groups), n, int(k));
        };
        numbers[0] != 0 ? run(std::true_type()) : run(std::false_type());
    });
}

// x (rows, k), weight (groups, n, k), the bits of e4m3, uint8, in rows at multiples of 16 bytes; ends
// (groups), int64; out (rows, n), of 16 bits or float32; left (rows, blocks), right (groups, blocks of n,
// blocks), float32.
DEVICE_KERNEL(grouped_scaled_wgmma) {
    const Array &x = arrays[0], &weight = arrays[1], &ends = arrays[2], &out = arrays[3];
    const Array &left = arrays[4], &right = arrays[5];
    const auto run = [&](auto kind) {
        using O = decltype(kind);
        using P = ScaledPlan;
        const long rows = x.shape[0], k = x.shape[1], n = out.shape[1], groups = ends.size;
        Maps maps{};
        maps.a = P::A::map(matrix_of<const Number>(x), rows, k, 1, 0);
        maps.b = P::B::map(matrix_of<const Number>(weight), n, k, groups, weight.strides[0]);
        launch(grouped_scaled_kernel<O>, dim3(unsigned(rows / 128 + groups), ceil_div(n, 128)),
               P::threads, P::shared_bytes, stream, maps, matrix_of<O>(out),
               ends.as<const int64_t>(), int(groups), n, int(k),
               Scales{matrix_of<const float>(left), matrix_of<const float>(right)},
               right.strides[0]);
    };
    if (out.dtype == Dtype::float32) return run(float());
    by_half(out, run);
}

// x (m, columns), grad (n, columns), uint8, left (m, blocks) and right (n, blocks), float32, of
// quantize_groups; ends (groups), int64; out (groups, m, n), of 16 bits or float32.
DEVICE_KERNEL(grouped_scaled_outer_wgmma) {
    const Array &x = arrays[0], &grad = arrays[1], &ends = arrays[2], &out = arrays[3];
    const auto run = [&](auto kind) {
        using O = decltype(kind);
        using P = ScaledPlan;
        const long m = x.shape[0], n = grad.shape[0], columns = x.shape[1];
        Maps maps{};
        maps.a = P::A::map(matrix_of<const Number>(x), m, columns, 1, 0);
        maps.b = P::B::map(matrix_of<const Number>(grad), n, columns, 1, 0);
        launch(grouped_scaled_outer_kernel<O>,
               dim3(ceil_div(m, P::rows) * ceil_div(n, P::columns), unsigned(ends.size)), P::threads,
               P::shared_bytes, stream, maps, matrix_of<O>(out), out.strides[0],
               ends.as<const int64_t>(), m, n,
               Scales{matrix_of<const float>(arrays[4]), matrix_of<const float>(arrays[5])});
    };
    if (out.dtype == Dtype::float32) return run(float());
    by_half(out, run);
}

// x (rows, m), grad (rows, n), in rows; ends (groups), int64; out (groups, m, n). Lines begin at
// multiples of 16 bytes.
DEVICE_KERNEL(grouped_outer_wgmma) {
    const Array &x = arrays[0], &grad = arrays[1], &ends = arrays[2], &out = arrays[3];
    by_half(x, [&](auto kind) {
        using T = decltype(kind);
        using P = Grouped<T, false, false>;
        const long rows = x.shape[0], m = x.shape[1], n = grad.shape[1];
        Maps maps{};
        maps.a = P::A::map(matrix_of<const T>(x).transposed(), m, rows, 1, 0);
        maps.b = P::B::map(matrix_of<const T>(grad).transposed(), n, rows, 1, 0);
        launch(grouped_outer_kernel<P>,
               dim3(ceil_div(m, P::rows) * ceil_div(n, P::columns), unsigned(ends.size)), P::threads,
               P::shared_bytes, stream, maps, matrix_of<T>(out), out.strides[0],
               ends.as<const int64_t>(), m, n);
    });
}

}  // namespace minitorch
