// logsumexp and log_softmax of rows, and their gradients, a block to a row:
//
//     lse = log Σ exp(x),    dx = grad exp(x - lse)
//     out = x - lse,         dx = grad - exp(out) Σ grad
//
// Each reads a row from memory once for its sum; log_softmax finds it in the cache the second time.

#include "logsumexp.h"

namespace minitorch {

template <typename T, int n>
__global__ void logsumexp_kernel(const T* x, T* out, int columns) {
    const auto total = log_sum_of_row<n>(x + long(blockIdx.x) * columns, columns);
    if (threadIdx.x == 0) out[blockIdx.x] = T(total.value());
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

template <typename T, int n>
__global__ void log_softmax_kernel(const T* x, T* out, int columns) {
    using C = Compute<T>;
    const long begin = long(blockIdx.x) * columns;
    const auto total = log_sum_of_row<n>(x + begin, columns);
    const C log_sum = log(total.sum);
    for (int i = threadIdx.x * n; i < columns; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(x + begin + i);
        Few<T, n> to;
        for (int j = 0; j < n; ++j) to[j] = T((C(v[j]) - total.peak) - log_sum);
        store(out + begin + i, to);
    }
}

template <typename T, int n>
__global__ void log_softmax_backward_kernel(const T* grad, const T* out, T* dx, int columns) {
    using C = Compute<T>;
    const long begin = long(blockIdx.x) * columns;
    C total = 0;
    for (int i = threadIdx.x * n; i < columns; i += blockDim.x * n) {
        const Few<T, n> g = load<n>(grad + begin + i);
        for (int j = 0; j < n; ++j) total += C(g[j]);
    }
    total = reduce_block<Plus>(total, C(0));
    for (int i = threadIdx.x * n; i < columns; i += blockDim.x * n) {
        const Few<T, n> g = load<n>(grad + begin + i), v = load<n>(out + begin + i);
        Few<T, n> to;
        for (int j = 0; j < n; ++j) to[j] = T(C(g[j]) - exp(C(v[j])) * total);
        store(dx + begin + i, to);
    }
}

DEVICE_KERNEL(logsumexp) {  // x (rows, columns), contiguous; out (rows)
    const Array &x = arrays[0], &out = arrays[1];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(x.shape[1], {x.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(logsumexp_kernel<T, n>, unsigned(x.shape[0]), row_threads(x.shape[1] / n), 0,
                   stream, x.as<const T>(), out.as<T>(), int(x.shape[1]));
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
        by_width<T>(x.shape[1], {x.data, out.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(log_softmax_kernel<T, n>, unsigned(x.shape[0]), row_threads(x.shape[1] / n), 0,
                   stream, x.as<const T>(), out.as<T>(), int(x.shape[1]));
        });
    });
}

DEVICE_KERNEL(log_softmax_backward) {  // grad, out, dx (rows, columns), contiguous
    const Array &grad = arrays[0], &out = arrays[1], &dx = arrays[2];
    by_dtype(out, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(out.shape[1], {grad.data, out.data, dx.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(log_softmax_backward_kernel<T, n>, unsigned(out.shape[0]),
                   row_threads(out.shape[1] / n), 0, stream, grad.as<const T>(), out.as<const T>(),
                   dx.as<T>(), int(out.shape[1]));
        });
    });
}

}  // namespace minitorch
