// logsumexp and log_softmax of rows, and their gradients, a team to a row:
//
//     lse = log Σ exp(x),    dx = grad exp(x - lse)
//     out = x - lse,         dx = grad - exp(out) Σ grad
//
// Each reads a row from memory once; a team keeps what it needs a second time.

#include "logsumexp.h"

namespace minitorch {

template <typename T, int n, typename Team>
__global__ void logsumexp_kernel(Row row, const T* x, T* out) {
    Team team(row);
    const Part part = team.template part<n>();
    const T* const from = x + team.row() * row.columns + part.begin;
    const auto total = log_sum_of_row<n>(team, from, part.size, static_cast<T*>(nullptr));
    if (team.leads()) out[team.row()] = T(total.value());
}

template <typename T, int n>
__global__ void logsumexp_backward_kernel(const T* grad, const T* x, const T* out, T* dx,
                                          int columns) {
    using C = Compute<T>;
    const long begin = long(blockIdx.x) * columns;
    const C scale = C(grad[blockIdx.x]), total = C(out[blockIdx.x]);
    const C shift = total == -C(INFINITY) ? C(0) : total;
    for (int i = threadIdx.x * n; i < columns; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(x + begin + i);
        Few<T, n> to;
        for (int j = 0; j < n; ++j) to[j] = T(scale * exp(C(v[j]) - shift));
        store(dx + begin + i, to);
    }
}

template <typename T, int n, typename Team>
__global__ void log_softmax_kernel(Row row, const T* x, T* out) {
    using C = Compute<T>;
    SHARED_DYNAMIC(T, kept);
    Team team(row);
    const Part part = team.template part<n>();
    const long begin = team.row() * row.columns + part.begin;
    const auto total = log_sum_of_row<n>(team, x + begin, part.size, row.keep ? kept : nullptr);
    const T* const from = row.keep ? kept : x + begin;
    const C log_sum = log(total.sum);
    for (int i = threadIdx.x * n; i < part.size; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(from + i);
        Few<T, n> to;
        for (int j = 0; j < n; ++j) to[j] = T((C(v[j]) - total.peak) - log_sum);
        store(out + begin + i, to);
    }
}

template <typename T, int n, typename Team>
__global__ void log_softmax_backward_kernel(Row row, const T* grad, const T* out, T* dx) {
    using C = Compute<T>;
    SHARED_DYNAMIC(T, kept);
    Team team(row);
    const Part part = team.template part<n>();
    const long begin = team.row() * row.columns + part.begin;
    C total = 0;
    for (int i = threadIdx.x * n; i < part.size; i += blockDim.x * n) {
        const Few<T, n> g = load<n>(grad + begin + i);
        if (row.keep) store(kept + i, g);
        for (int j = 0; j < n; ++j) total += C(g[j]);
    }
    total = team.template reduce<Plus>(total, C(0));
    const T* const from = row.keep ? kept : grad + begin;
    for (int i = threadIdx.x * n; i < part.size; i += blockDim.x * n) {
        const Few<T, n> g = load<n>(from + i), v = load<n>(out + begin + i);
        Few<T, n> to;
        for (int j = 0; j < n; ++j) to[j] = T(C(g[j]) - exp(C(v[j])) * total);
        store(dx + begin + i, to);
    }
}

DEVICE_KERNEL(logsumexp) {  // x (rows, columns), contiguous; out (rows)
    const Array &x = arrays[0], &out = arrays[1];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_team<T>(x.shape[0], x.shape[1], {x.data}, 0, [&](auto team, auto width, auto&& run) {
            constexpr int n = decltype(width)::value;
            run(logsumexp_kernel<T, n, TeamOf<decltype(team)>>, stream, x.as<const T>(),
                out.as<T>());
        });
    });
}

DEVICE_KERNEL(logsumexp_backward) {  // grad (rows), x (rows, columns), out (rows), dx like x
    const Array &grad = arrays[0], &x = arrays[1], &out = arrays[2], &dx = arrays[3];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(x.shape[1], {x.data, dx.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(logsumexp_backward_kernel<T, n>, unsigned(x.shape[0]),
                   row_threads(x.shape[1] / n), 0, stream, grad.as<const T>(), x.as<const T>(),
                   out.as<const T>(), dx.as<T>(), int(x.shape[1]));
        });
    });
}

DEVICE_KERNEL(log_softmax) {  // x, out (rows, columns), contiguous
    const Array &x = arrays[0], &out = arrays[1];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_team<T>(x.shape[0], x.shape[1], {x.data, out.data}, 1,
                   [&](auto team, auto width, auto&& run) {
                       constexpr int n = decltype(width)::value;
                       run(log_softmax_kernel<T, n, TeamOf<decltype(team)>>, stream,
                           x.as<const T>(), out.as<T>());
                   });
    });
}

DEVICE_KERNEL(log_softmax_backward) {  // grad, out, dx (rows, columns), contiguous
    const Array &grad = arrays[0], &out = arrays[1], &dx = arrays[2];
    by_dtype(out, [&](auto kind) {
        using T = decltype(kind);
        by_team<T>(out.shape[0], out.shape[1], {grad.data, out.data, dx.data}, 1,
                   [&](auto team, auto width, auto&& run) {
                       constexpr int n = decltype(width)::value;
                       run(log_softmax_backward_kernel<T, n, TeamOf<decltype(team)>>, stream,
                           grad.as<const T>(), out.as<const T>(), dx.as<T>());
                   });
    });
}

}  // namespace minitorch
