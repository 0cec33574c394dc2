// A function of single numbers, applied to arrays of one shape, each thread moving 16 bytes at a
// time.
//
//     struct Square { template <typename C> __device__ C operator()(C x) const { return x * x; } };
//     DEVICE_KERNEL(square) { map_one<Square>(arrays, stream); }

#pragma once

#include "rows.h"

namespace minitorch {

template <typename Function, int n, typename T, typename... In>
__device__ void map_few(long i, T* out, const In*... in) {
    using C = Compute<T>;
    Few<T, n> to;
    [&](const auto&... few) {
        for (int j = 0; j < n; ++j) to[j] = T(Function()(C(Compute<In>(few[j]))...));
    }(load<n>(in + i)...);
    store(out + i, to);
}

template <typename Function, int n, typename T, typename... In>
__global__ void map_kernel(long count, T* out, const In*... in) {
    const long thread = long(blockIdx.x) * blockDim.x + threadIdx.x;
    const long threads = long(gridDim.x) * blockDim.x;
    for (long i = thread * n; i + n <= count; i += threads * n) map_few<Function, n>(i, out, in...);
    for (long i = count / n * n + thread; i < count; i += threads)
        map_few<Function, 1>(i, out, in...);
}

// Of contiguous arrays of one shape: one or two, then the result.
template <typename Function>
void map_one(const Array* arrays, cudaStream_t stream) {
    const Array &x = arrays[0], &out = arrays[1];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(0, {x.data, out.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(map_kernel<Function, n, T, T>, blocks_of_256(x.size / n + 1), 256, 0, stream,
                   x.size, out.as<T>(), x.as<const T>());
        });
    });
}

template <typename Function>
void map_two(const Array* arrays, cudaStream_t stream) {
    const Array &grad = arrays[0], &x = arrays[1], &out = arrays[2];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        by_width<T>(0, {grad.data, x.data, out.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(map_kernel<Function, n, T, T, T>, blocks_of_256(x.size / n + 1), 256, 0, stream,
                   x.size, out.as<T>(), grad.as<const T>(), x.as<const T>());
        });
    });
}

}  // namespace minitorch
