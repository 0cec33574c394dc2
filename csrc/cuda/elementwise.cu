// Sums, and conversions from one float type to another.
//
// A conversion is rounded to the nearest, ties to even; from float64 to 16 bits by way of float32,
// as in PyTorch.

#include "map.h"

namespace minitorch {

struct Add {
    template <typename C>
    __device__ C operator()(C a, C b) const {
        return a + b;
    }
};

struct Same {
    template <typename C>
    __device__ C operator()(C x) const {
        return x;
    }
};

DEVICE_KERNEL(add) {  // a, b, out, contiguous, of one shape and dtype; out may be a or b
    map_two<Add>(arrays, stream);
}

DEVICE_KERNEL(cast) {  // x, out, contiguous, of one shape
    const Array &x = arrays[0], &out = arrays[1];
    by_dtype(x, [&](auto from) {
        by_dtype(out, [&](auto to) {
            using From = decltype(from);
            using To = decltype(to);
            using Small = std::conditional_t<(sizeof(From) < sizeof(To)), From, To>;
            by_width<Small>(0, {x.data, out.data}, [&](auto width) {
                constexpr int n = decltype(width)::value;
                launch(map_kernel<Same, n, To, From>, blocks_of_256(x.size / n + 1), 256, 0, stream,
                       x.size, out.as<To>(), x.as<const From>());
            });
        });
    });
}

template <typename To>
__global__ void cast_rows_kernel(const float* x, To* out, long columns, long out_stride) {
    const float* const from = x + blockIdx.x * columns;
    To* const to = out + blockIdx.x * out_stride;
    for (long i = threadIdx.x * 2; i < columns; i += blockDim.x * 2) {
        Vector<To, 2> pair;
        pair[0] = To(from[i]);
        if (i + 1 == columns) {
            to[i] = pair[0];
        } else {
            pair[1] = To(from[i + 1]);
            pair.store(to + i);
        }
    }
}

// x (rows, columns), contiguous, float32; out, of 16 bits, rows at multiples of 4 bytes.
DEVICE_KERNEL(cast_rows) {
    const Array &x = arrays[0], &out = arrays[1];
    by_dtype(out, [&](auto kind) {
        using T = decltype(kind);
        if constexpr (sizeof(T) == 2)
            launch(cast_rows_kernel<T>, unsigned(x.shape[0]), 256, 0, stream, x.as<const float>(),
                   out.as<T>(), x.shape[1], out.strides[0]);
    });
}

}  // namespace minitorch
