// Softmax along the last dimension, and its gradient:
//
//     s = exp(scale x - m) / Σ exp(scale x - m),   m = max(scale x)
//     dx = scale s (grad - Σ grad s)
//
// A team to a row, which it reads from memory once and keeps, if there is room. Its threads walk
// side by side, so that a warp reads neighbouring numbers, and meet twice: for the maximum and for
// the sum.

#include "team.h"

namespace minitorch {

template <typename T, int n, typename Team>
__global__ void softmax_kernel(Row row, const T* x, T* out, Compute<T> scale) {
    using C = Compute<T>;
    SHARED_DYNAMIC(T, kept);
    Team team(row);
    const Part part = team.template part<n>();
    const long begin = team.row() * row.columns + part.begin;
    C peak = -INFINITY;
    for (int i = threadIdx.x * n; i < part.size; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(x + begin + i);
        if (row.keep) store(kept + i, v);
        for (int j = 0; j < n; ++j) peak = max(peak, C(v[j]) * scale);
    }
    peak = team.template reduce<Larger>(peak, C(-INFINITY));
    const T* const from = row.keep ? kept : x + begin;
    C sum = 0;
    for (int i = threadIdx.x * n; i < part.size; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(from + i);
        for (int j = 0; j < n; ++j) sum += exp(C(v[j]) * scale - peak);
    }
    sum = team.template reduce<Plus>(sum, C(0));
    for (int i = threadIdx.x * n; i < part.size; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(from + i);
        Few<T, n> to;
        for (int j = 0; j < n; ++j) to[j] = T(exp(C(v[j]) * scale - peak) / sum);
        store(out + begin + i, to);
    }
}

// Keeps two rows: those of grad and of out.
template <typename T, int n, typename Team>
__global__ void softmax_backward_kernel(Row row, const T* grad, const T* out, T* dx,
                                        Compute<T> scale) {
    using C = Compute<T>;
    SHARED_DYNAMIC(T, kept);
    Team team(row);
    const Part part = team.template part<n>();
    const long begin = team.row() * row.columns + part.begin;
    T* const kept_out = kept + largest_part(row, n);
    C dot = 0;
    for (int i = threadIdx.x * n; i < part.size; i += blockDim.x * n) {
        const Few<T, n> g = load<n>(grad + begin + i), s = load<n>(out + begin + i);
        if (row.keep) {
            store(kept + i, g);
            store(kept_out + i, s);
        }
        for (int j = 0; j < n; ++j) dot += C(g[j]) * C(s[j]);
    }
    dot = team.template reduce<Plus>(dot, C(0));
    const T* const grads = row.keep ? kept : grad + begin;
    const T* const outs = row.keep ? kept_out : out + begin;
    for (int i = threadIdx.x * n; i < part.size; i += blockDim.x * n) {
        const Few<T, n> g = load<n>(grads + i), s = load<n>(outs + i);
        Few<T, n> to;
        for (int j = 0; j < n; ++j) to[j] = T(scale * C(s[j]) * (C(g[j]) - dot));
        store(dx + begin + i, to);
    }
}

DEVICE_KERNEL(softmax) {  // x, out (rows, columns), contiguous; scale
    const Array &x = arrays[0], &out = arrays[1];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_team<T>(x.shape[0], x.shape[1], {x.data, out.data}, 1,
                   [&](auto team, auto width, auto&& run) {
                       constexpr int n = decltype(width)::value;
                       run(softmax_kernel<T, n, TeamOf<decltype(team)>>, stream, x.as<const T>(),
                           out.as<T>(), Compute<T>(numbers[0]));
                   });
    });
}

DEVICE_KERNEL(softmax_backward) {  // grad, out, dx (rows, columns), contiguous; scale
    const Array &grad = arrays[0], &out = arrays[1], &dx = arrays[2];
    by_dtype(grad, [&](auto kind) {
        using T = decltype(kind);
        by_team<T>(grad.shape[0], grad.shape[1], {grad.data, out.data, dx.data}, 2,
                   [&](auto team, auto width, auto&& run) {
                       constexpr int n = decltype(width)::value;
                       run(softmax_backward_kernel<T, n, TeamOf<decltype(team)>>, stream,
                           grad.as<const T>(), out.as<const T>(), dx.as<T>(),
                           Compute<T>(numbers[0]));
                   });
    });
}

}  // namespace minitorch
