// Softmax along the last dimension, and its gradient:
//
//     s = exp(scale x - m) / Σ exp(scale x - m),   m = max(scale x)
//     dx = scale s (grad - Σ grad s)
//
// One block to a row. Its threads walk the row side by side, so that a warp reads neighbouring
// numbers, and meet twice: for the maximum and for the sum.

#include "device.h"
#include "reduce.h"

namespace minitorch {

template <typename T>
__global__ void softmax_kernel(const T* x, T* out, int columns, Compute<T> scale) {
    using C = Compute<T>;
    const T* row = x + long(blockIdx.x) * columns;
    T* to = out + long(blockIdx.x) * columns;
    C peak = -INFINITY;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) peak = max(peak, C(row[i]) * scale);
    peak = reduce_block<Larger>(peak, C(-INFINITY));
    C sum = 0;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += exp(C(row[i]) * scale - peak);
    sum = reduce_block<Plus>(sum, C(0));
    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        to[i] = T(exp(C(row[i]) * scale - peak) / sum);
}

template <typename T>
__global__ void softmax_backward_kernel(const T* grad, const T* out, T* dx, int columns,
                                        Compute<T> scale) {
    using C = Compute<T>;
    const long begin = long(blockIdx.x) * columns;
    C dot = 0;
    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        dot += C(grad[begin + i]) * C(out[begin + i]);
    dot = reduce_block<Plus>(dot, C(0));
    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        dx[begin + i] = T(scale * C(out[begin + i]) * (C(grad[begin + i]) - dot));
}

static int threads_for(long columns) {
    return columns <= 64 ? 32 : columns <= 1024 ? 128 : 512;
}

DEVICE_KERNEL(softmax) {  // x, out (rows, columns), contiguous; scale
    const Array &x = arrays[0], &out = arrays[1];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        launch(softmax_kernel<T>, unsigned(x.shape[0]), threads_for(x.shape[1]), 0, stream,
               x.as<const T>(), out.as<T>(), int(x.shape[1]), Compute<T>(numbers[0]));
    });
}

DEVICE_KERNEL(softmax_backward) {  // grad, out, dx (rows, columns), contiguous; scale
    const Array &grad = arrays[0], &out = arrays[1], &dx = arrays[2];
    by_dtype(grad, [&](auto kind) {
        using T = decltype(kind);
        launch(softmax_backward_kernel<T>, unsigned(grad.shape[0]), threads_for(grad.shape[1]), 0,
               stream, grad.as<const T>(), out.as<const T>(), dx.as<T>(), int(grad.shape[1]),
               Compute<T>(numbers[0]));
    });
}

}  // namespace minitorch
