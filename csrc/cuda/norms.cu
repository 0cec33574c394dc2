// Layer norm and RMS norm of rows, alone or of x + residual, and their gradients. With the mean and
// the variance of a row (RMS: mean 0, variance the mean of x²),
//
//     rstd = 1 / sqrt(variance + eps),   n = (x - mean) rstd,   out = n weight + bias
//     dx = rstd (g - mean(g) - n mean(g n)) + dsum,   g = grad weight      (RMS: no mean(g))
//     dweight = Σ grad n,   dbias = Σ grad                                 over all rows
//
// Forward: a team to a row, which is read once and then kept in shared memory; the variance is made
// from differences to the mean, as E[x²] - E[x]² cancels. Backward: a block walks the rows r,
// r + blocks, ... and adds up their share of dweight and dbias, each thread that of its own
// columns; a second kernel adds the blocks' shares, always in the same order.
//
// Source: Ba et al. 2016; Zhang and Sennrich 2019; the split backward as in Triton's tutorial on
// it.

#include "team.h"

namespace minitorch {

constexpr long kKeptBytes = 40 * 1024;  // of shared memory, by the sums of the backward

template <typename T, int n, typename Team, bool centred>
__global__ void norm_kernel(Row row, const T* x, const T* residual, const Compute<T>* weight,
                            const Compute<T>* bias, T* out, T* sum, Compute<T>* means,
                            Compute<T>* rstds, Compute<T> eps) {
    using C = Compute<T>;
    SHARED_DYNAMIC(T, kept);
    Team team(row);
    const Part part = team.template part<n>();
    const long begin = team.row() * row.columns + part.begin;
    const int first = threadIdx.x * n, step = blockDim.x * n;

    C total = 0;
    for (int i = first; i < part.size; i += step) {
        Few<T, n> v = load<n>(x + begin + i);
        if (residual) {
            const Few<T, n> other = load<n>(residual + begin + i);
            for (int j = 0; j < n; ++j) v[j] = T(C(v[j]) + C(other[j]));
            store(sum + begin + i, v);
        }
        if (row.keep) store(kept + i, v);
        for (int j = 0; j < n; ++j) total += centred ? C(v[j]) : C(v[j]) * C(v[j]);
    }
    total = team.template reduce<Plus>(total, C(0)) / C(row.columns);

    const T* const from = row.keep ? kept : (residual ? sum : x) + begin;
    C mean = 0, variance = total;
    if constexpr (centred) {
        mean = total;
        variance = 0;
        for (int i = first; i < part.size; i += step) {
            const Few<T, n> v = load<n>(from + i);
            for (int j = 0; j < n; ++j) variance += (C(v[j]) - mean) * (C(v[j]) - mean);
        }
        variance = team.template reduce<Plus>(variance, C(0)) / C(row.columns);
    }
    const C rstd = C(1) / sqrt(variance + eps);
    if (team.leads()) {
        if constexpr (centred) means[team.row()] = mean;
        rstds[team.row()] = rstd;
    }
    for (int i = first; i < part.size; i += step) {
        const Few<T, n> v = load<n>(from + i);
        Few<C, n> y;
        for (int j = 0; j < n; ++j) y[j] = (C(v[j]) - mean) * rstd;
        if (weight) {
            const Few<C, n> w = load<n>(weight + part.begin + i);
            for (int j = 0; j < n; ++j) y[j] *= w[j];
        }
        if (bias) {
            const Few<C, n> b = load<n>(bias + part.begin + i);
            for (int j = 0; j < n; ++j) y[j] += b[j];
        }
        Few<T, n> to;
        for (int j = 0; j < n; ++j) to[j] = T(y[j]);
        store(out + begin + i, to);
    }
}

template <typename T, int n, bool centred>
__global__ void norm_backward_kernel(const T* grad, const T* x, const Compute<T>* weight,
                                     const Compute<T>* means, const Compute<T>* rstds,
                                     const T* dsum, T* dx, Compute<T>* shares, long rows,
                                     int columns, bool keep) {
    using C = Compute<T>;
    SHARED_DYNAMIC(C, kept);
    constexpr int sums = centred ? 2 : 1;
    C* const share = shares + long(blockIdx.x) * sums * columns;
    C* const dweight = keep ? kept : share;
    C* const dbias = dweight + columns;
    const int first = threadIdx.x * n, step = blockDim.x * n;

    for (int i = first; i < columns; i += step) {
        store(dweight + i, Few<C, n>{});
        if constexpr (centred) store(dbias + i, Few<C, n>{});
    }
    for (long r = blockIdx.x; r < rows; r += gridDim.x) {
        const long begin = r * columns;
        const C mean = centred ? means[r] : C(0), rstd = rstds[r];
        C total = 0, along = 0;  // Σ g, Σ g n
        for (int i = first; i < columns; i += step) {
            const Few<T, n> g = load<n>(grad + begin + i), v = load<n>(x + begin + i);
            const Few<C, n> w = weight ? load<n>(weight + i) : Few<C, n>{};
            Few<C, n> dw = load<n>(dweight + i), db;
            if constexpr (centred) db = load<n>(dbias + i);
            for (int j = 0; j < n; ++j) {
                const C normal = (C(v[j]) - mean) * rstd, scaled = C(g[j]) * (weight ? w[j] : C(1));
                total += scaled;
                along += scaled * normal;
                dw[j] += C(g[j]) * normal;
                if constexpr (centred) db[j] += C(g[j]);
            }
            store(dweight + i, dw);
            if constexpr (centred) store(dbias + i, db);
        }
        total = centred ? reduce_block<Plus>(total, C(0)) / C(columns) : C(0);
        along = reduce_block<Plus>(along, C(0)) / C(columns);
        for (int i = first; i < columns; i += step) {
            const Few<T, n> g = load<n>(grad + begin + i), v = load<n>(x + begin + i);
            const Few<C, n> w = weight ? load<n>(weight + i) : Few<C, n>{};
            const Few<T, n> more = dsum ? load<n>(dsum + begin + i) : Few<T, n>{};
            Few<T, n> to;
            for (int j = 0; j < n; ++j) {
                const C normal = (C(v[j]) - mean) * rstd, scaled = C(g[j]) * (weight ? w[j] : C(1));
                const C d = rstd * (scaled - total - normal * along);
                to[j] = T(dsum ? d + C(more[j]) : d);
            }
            store(dx + begin + i, to);
        }
    }
    if (keep)
        for (int i = first; i < columns; i += step) {
            store(share + i, load<n>(dweight + i));
            if constexpr (centred) store(share + columns + i, load<n>(dbias + i));
        }
}

// The sum of rows, in their order within each of the eight interleaved parts. Blocks of 32 x 8.
template <typename C>
__global__ void sum_shares_kernel(const C* shares, C* out, int count, int columns) {
    SHARED(C, sums, [8][33]);
    const int column = blockIdx.x * 32 + threadIdx.x;
    C total = 0;
    if (column < columns)
        for (long i = threadIdx.y; i < count; i += 8) total += shares[i * columns + column];
    sums[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    for (int i = 1; i < 8; ++i) total += sums[i][threadIdx.x];
    out[column] = total;
}

template <bool centred>
static void norm(const Array* arrays, const double* numbers, cudaStream_t stream) {
    const Array &x = arrays[0], &residual = arrays[1], &weight = arrays[2], &bias = arrays[3];
    const Array &out = arrays[4], &sum = arrays[5], &means = arrays[6], &rstds = arrays[7];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        by_team<T>(x.shape[0], x.shape[1],
                   {x.data, residual.data, weight.data, bias.data, out.data, sum.data}, 1,
                   [&](auto team, auto width, auto&& run) {
                       constexpr int n = decltype(width)::value;
                       run(norm_kernel<T, n, TeamOf<decltype(team)>, centred>, stream,
                           x.as<const T>(), residual.as<const T>(), weight.as<const C>(),
                           bias.as<const C>(), out.as<T>(), sum.as<T>(), means.as<C>(),
                           rstds.as<C>(), C(numbers[0]));
                   });
    });
}

template <bool centred>
static void norm_backward(const Array* arrays, cudaStream_t stream) {
    const Array &grad = arrays[0], &x = arrays[1], &weight = arrays[2], &means = arrays[3];
    const Array &rstds = arrays[4], &dsum = arrays[5], &dx = arrays[6];
    const Array &shares = arrays[7], &sums = arrays[8];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const long columns = x.shape[1], bytes = shares.shape[1] * long(sizeof(C));
        const bool keep = bytes <= kKeptBytes;
        by_width<T>(columns, {grad.data, x.data, weight.data, dsum.data, dx.data, shares.data},
                    [&](auto width) {
                        constexpr int n = decltype(width)::value;
                        launch(norm_backward_kernel<T, n, centred>, unsigned(shares.shape[0]),
                               row_threads(columns / n), keep ? size_t(bytes) : 0, stream,
                               grad.as<const T>(), x.as<const T>(), weight.as<const C>(),
                               means.as<const C>(), rstds.as<const C>(), dsum.as<const T>(),
                               dx.as<T>(), shares.as<C>(), x.shape[0], int(columns), keep);
                    });
        launch(sum_shares_kernel<C>, ceil_div(sums.size, 32), dim3(32, 8), 0, stream,
               shares.as<const C>(), sums.as<C>(), int(shares.shape[0]), int(sums.size));
    });
}

// x, residual or None, weight, bias, out, sum or None, mean, rstd; eps. Rows are contiguous;
// weights and statistics in what sums are made in.
DEVICE_KERNEL(layer_norm) {
    norm<true>(arrays, numbers, stream);
}
DEVICE_KERNEL(rms_norm) {
    norm<false>(arrays, numbers, stream);
}

// grad, x, weight, mean, rstd, dsum or None, dx, shares (blocks, k columns), sums (k columns):
// dweight and, in layer norm, dbias.
DEVICE_KERNEL(layer_norm_backward) {
    norm_backward<true>(arrays, stream);
}
DEVICE_KERNEL(rms_norm_backward) {
    norm_backward<false>(arrays, stream);
}

}  // namespace minitorch
