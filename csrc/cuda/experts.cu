// Mixture of experts: rows go to the experts that were chosen for them, and their results come
// back.
//
// An assignment is a token t and one of its k choices j. Sorted by expert, stably, assignment (t,
// j) stands at place[t, j], and the rows of expert e at places end[e - 1] to end[e]. With that,
// three kernels are the three derivatives of one trilinear form, and each the derivative of the
// others:
//
//     Σ over t, j of  w[t, j] <rows[place[t, j]], x[t]>
//
//     permute      rows[place[t, j]] = w[t, j] x[t]
//     unpermute    x[t] = Σ over j of w[t, j] rows[place[t, j]]
//     dot          w[t, j] = <rows[place[t, j]], x[t]>
//
// All sums are made in one order: no atomics, and the same bits every time.
//
// Source: Gale et al. 2022, "MegaBlocks"; Tan et al. 2024, "Scattered mixture-of-experts".

#include "reduce.h"
#include "rows.h"
#include "tiles.h"

namespace minitorch {

// A block to an expert. It counts the assignments to experts before it and to itself, then walks
// through them again and gives each of its own the next place. An index that is no expert counts as
// the nearest one.
__global__ void moe_places_kernel(const int64_t* index, int64_t* places, int64_t* ends, int count) {
    SHARED(int, of_warp, [32]);
    const int expert = blockIdx.x, last = int(gridDim.x) - 1;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const auto expert_of = [&](int i) {
        return int(min(max(index[i], int64_t(0)), int64_t(last)));
    };
    int before = 0, own = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        before += expert_of(i) < expert;
        own += expert_of(i) == expert;
    }
    int next = reduce_block<Plus>(before, 0);
    own = reduce_block<Plus>(own, 0);
    if (threadIdx.x == 0) ends[expert] = next + own;
    for (int begin = 0; begin < count; begin += blockDim.x) {
        const int i = begin + threadIdx.x;
        const bool mine = i < count && expert_of(i) == expert;
        const unsigned votes = __ballot_sync(0xFFFFFFFF, mine);
        __syncthreads();  // the last round's counts have been read
        if (lane == 0) of_warp[warp] = __popc(votes);
        __syncthreads();
        int place = next + __popc(votes & ((1u << lane) - 1));
        for (int w = 0; w < warps; ++w) {
            if (w < warp) place += of_warp[w];
            next += of_warp[w];
        }
        if (mine) places[i] = place;
    }
}

DEVICE_KERNEL(moe_places) {  // index, places (assignments), ends (experts), all int64
    const Array &index = arrays[0], &places = arrays[1], &ends = arrays[2];
    launch(moe_places_kernel, unsigned(ends.size), 256, 0, stream, index.as<const int64_t>(),
           places.as<int64_t>(), ends.as<int64_t>(), int(index.size));
}

template <typename T, int n>
__global__ void moe_permute_kernel(const T* x, const T* weights, const int64_t* places, T* rows,
                                   long assignments, int choices, long features) {
    using C = Compute<T>;
    const long threads = long(gridDim.x) * blockDim.x, steps = features / n;
    for (long i = long(blockIdx.x) * blockDim.x + threadIdx.x; i < assignments * steps;
         i += threads) {
        const long at = i / steps, column = i % steps * n;
        Few<T, n> v = load<n>(x + at / choices * features + column);
        if (weights)
            for (int l = 0; l < n; ++l) v[l] = T(C(weights[at]) * C(v[l]));
        store(rows + places[at] * features + column, v);
    }
}

template <typename T, int n>
__global__ void moe_unpermute_kernel(const T* rows, const T* weights, const int64_t* places, T* x,
                                     long tokens, int choices, long features) {
    using C = Compute<T>;
    const long threads = long(gridDim.x) * blockDim.x, steps = features / n;
    for (long i = long(blockIdx.x) * blockDim.x + threadIdx.x; i < tokens * steps; i += threads) {
        const long token = i / steps, column = i % steps * n;
        Few<C, n> sum{};
        for (int j = 0; j < choices; ++j) {
            const long at = token * choices + j;
            const C weight = weights ? C(weights[at]) : C(1);
            const Few<T, n> v = load<n>(rows + places[at] * features + column);
            for (int l = 0; l < n; ++l) sum[l] += weight * C(v[l]);
        }
        Few<T, n> to;
        for (int l = 0; l < n; ++l) to[l] = T(sum[l]);
        store(x + token * features + column, to);
    }
}

// A warp to an assignment.
template <typename T, int n>
__global__ void moe_dot_kernel(const T* rows, const T* x, const int64_t* places, T* out,
                               long assignments, int choices, long features) {
    using C = Compute<T>;
    const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
    for (long at = long(blockIdx.x) * warps + threadIdx.x / 32; at < assignments;
         at += long(gridDim.x) * warps) {
        C sum = 0;
        for (long column = lane * n; column < features; column += 32 * n) {
            const Few<T, n> a = load<n>(rows + places[at] * features + column);
            const Few<T, n> b = load<n>(x + at / choices * features + column);
            for (int l = 0; l < n; ++l) sum += C(a[l]) * C(b[l]);
        }
        sum = reduce_warp<Plus>(sum);
        if (lane == 0) out[at] = T(sum);
    }
}

DEVICE_KERNEL(moe_permute) {  // x (tokens, features), weights or None, places (tokens, k), rows
    const Array &x = arrays[0], &weights = arrays[1], &places = arrays[2], &rows = arrays[3];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(x.shape[1], {x.data, rows.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(moe_permute_kernel<T, n>, blocks_of_256(rows.size / n), 256, 0, stream,
                   x.as<const T>(), weights.as<const T>(), places.as<const int64_t>(), rows.as<T>(),
                   places.size, int(places.shape[1]), x.shape[1]);
        });
    });
}

DEVICE_KERNEL(moe_unpermute) {  // rows (tokens k, features), weights or None, places (tokens, k), x
    const Array &rows = arrays[0], &weights = arrays[1], &places = arrays[2], &x = arrays[3];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(x.shape[1], {x.data, rows.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(moe_unpermute_kernel<T, n>, blocks_of_256(x.size / n), 256, 0, stream,
                   rows.as<const T>(), weights.as<const T>(), places.as<const int64_t>(), x.as<T>(),
                   x.shape[0], int(places.shape[1]), x.shape[1]);
        });
    });
}

DEVICE_KERNEL(
    moe_dot) {  // rows (tokens k, features), x (tokens, features), places, out (tokens, k)
    const Array &rows = arrays[0], &x = arrays[1], &places = arrays[2], &out = arrays[3];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(x.shape[1], {x.data, rows.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(moe_dot_kernel<T, n>, blocks_of_256(out.size * 32), 256, 0, stream,
                   rows.as<const T>(), x.as<const T>(), places.as<const int64_t>(), out.as<T>(),
                   out.size, int(places.shape[1]), x.shape[1]);
        });
    });
}

constexpr int kMicro = 4, kSide = 16 * kMicro;

template <typename T>
struct Experts {
    Matrix<T> first;
    long stride;
    __device__ Matrix<T> operator[](long e) const {
        return {first.data + e * stride, first.row_stride, first.column_stride};
    }
};

template <typename T>
__device__ Matrix<T> from_row(const Matrix<T>& x, long row) {
    return {x.data + row * x.row_stride, x.row_stride, x.column_stride};
}

// out[r] = x[r] weight[e] for the rows r of group e. How many rows a group has only the device
// knows: there are as many blocks as there can be tiles, and each counts through the groups to its
// own.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_mm_kernel(Matrix<const T> x, Experts<const T> weight, Matrix<T> out,
                      const int64_t* ends, int groups, long n, long k) {
    long tile = blockIdx.x, begin = 0;
    for (int e = 0; e < groups; ++e) {
        const long rows = ends[e] - begin, tiles = (rows + kSide - 1) / kSide;
        if (tile < tiles) {
            Product<T, T> p{};
            p.m = rows, p.n = n, p.k = k, p.alpha = 1;
            p.a = from_row(x, begin), p.b = weight[e], p.out = from_row(out, begin);
            return multiply_tile<kMicro>(p, Corner(tile * kSide, blockIdx.y * long(kSide)));
        }
        tile -= tiles;
        begin = ends[e];
    }
}

// out[e] = x_eᵀ grad_e, of the rows of group e.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_outer_kernel(Matrix<const T> x, Matrix<const T> grad, Experts<T> out,
                         const int64_t* ends, long m, long n) {
    const int e = blockIdx.y;
    const long begin = e ? ends[e - 1] : 0;
    Product<T, T> p{};
    p.m = m, p.n = n, p.k = ends[e] - begin, p.alpha = 1;
    p.a = from_row(x, begin).transposed(), p.b = from_row(grad, begin), p.out = out[e];
    multiply_tile<kMicro>(p, Corner(n, kSide, kSide));
}

// x (rows, k), weight (groups, k, n), out (rows, n), at any strides; ends (groups), int64.
DEVICE_KERNEL(grouped_mm) {
    const Array &x = arrays[0], &weight = arrays[1], &ends = arrays[2], &out = arrays[3];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        const long rows = x.shape[0], groups = ends.size, n = out.shape[1];
        const Experts<const T> experts{matrix_of<const T>(weight), weight.strides[0]};
        launch(grouped_mm_kernel<T>, dim3(rows / kSide + unsigned(groups), ceil_div(n, kSide)),
               kThreads, 0, stream, matrix_of<const T>(x), experts, matrix_of<T>(out),
               ends.as<const int64_t>(), int(groups), n, x.shape[1]);
    });
}

// x (rows, m), grad (rows, n), out (groups, m, n), at any strides; ends (groups), int64.
DEVICE_KERNEL(grouped_outer) {
    const Array &x = arrays[0], &grad = arrays[1], &ends = arrays[2], &out = arrays[3];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        const long m = x.shape[1], n = grad.shape[1];
        launch(grouped_outer_kernel<T>,
               dim3(ceil_div(m, kSide) * ceil_div(n, kSide), unsigned(ends.size)), kThreads, 0,
               stream, matrix_of<const T>(x), matrix_of<const T>(grad),
               Experts<T>{matrix_of<T>(out), out.strides[0]}, ends.as<const int64_t>(), m, n);
    });
}

}  // namespace minitorch
