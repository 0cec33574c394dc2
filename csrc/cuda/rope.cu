// Rotary position embedding: pairs of features turned by the angle of their position,
//
//     (a, b) -> (a cos - b sin, b cos + a sin),
//
// where i and i + features/2 are a pair, or, interleaved, 2i and 2i + 1. With -sin it is its own
// transpose. A thread turns as many neighbouring pairs as fill 16 bytes with their first halves.
//
// Source: Su et al. 2021, equation 34.

#include "rows.h"

namespace minitorch {

// (outer, inner, time, features), the features side by side.
template <typename T>
struct Features {
    T* data;
    long outer, inner, time;  // strides
    __device__ T* operator()(long o, long i, long t) const {
        return data + o * outer + i * inner + t * time;
    }
};

template <typename T, int n, bool interleaved>
__global__ void rope_kernel(Features<const T> x, Features<T> out, const Compute<T>* cosines,
                            const Compute<T>* sines, long total, long inner, long time, long half,
                            Compute<T> sign) {
    using C = Compute<T>;
    const long threads = long(gridDim.x) * blockDim.x, steps = half / n;
    for (long i = long(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += threads) {
        const long pair = i % steps * n, row = i / steps, t = row % time, slice = row / time;
        const T* from = x(slice / inner, slice % inner, t);
        T* to = out(slice / inner, slice % inner, t);
        const Few<C, n> c = load<n>(cosines + t * half + pair),
                        s = load<n>(sines + t * half + pair);
        if constexpr (interleaved) {
            Few<T, 2 * n> v;
            if constexpr (n == 1)
                v = {{from[2 * pair], from[2 * pair + 1]}};
            else
                v = load<2 * n>(from + 2 * pair);
            for (int j = 0; j < n; ++j) {
                const C a = C(v[2 * j]), b = C(v[2 * j + 1]);
                v[2 * j] = T(a * c[j] - b * sign * s[j]);
                v[2 * j + 1] = T(b * c[j] + a * sign * s[j]);
            }
            if constexpr (n == 1)
                to[2 * pair] = v[0], to[2 * pair + 1] = v[1];
            else
                store(to + 2 * pair, v);
        } else {
            Few<T, n> v = load<n>(from + pair), w = load<n>(from + half + pair);
            for (int j = 0; j < n; ++j) {
                const C a = C(v[j]), b = C(w[j]);
                v[j] = T(a * c[j] - b * sign * s[j]);
                w[j] = T(b * c[j] + a * sign * s[j]);
            }
            store(to + pair, v);
            store(to + half + pair, w);
        }
    }
}

// x, out (outer, inner, time, features), of any strides but for the features; cos, sin (time,
// features / 2), contiguous; whether interleaved, whether inverse. out may be x.
DEVICE_KERNEL(rope) {
    const Array &x = arrays[0], &out = arrays[1], &cosines = arrays[2], &sines = arrays[3];
    const bool interleaved = numbers[0] != 0, inverse = numbers[1] != 0;
    const long half = x.shape[3] / 2;
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        constexpr int whole = 16 / sizeof(T);
        const auto fits = [](const Array& a) {
            return is_aligned<T>(a.data, a.strides[0], a.strides[1], a.strides[2]);
        };
        const bool wide = half % whole == 0 && fits(x) && fits(out) &&
                          is_aligned<C>(cosines.data) && is_aligned<C>(sines.data);
        const auto run = [&](auto kernel, int n) {
            const long total = x.shape[0] * x.shape[1] * x.shape[2] * (half / n);
            launch(kernel, blocks_of_256(total), 256, 0, stream,
                   Features<const T>{x.as<const T>(), x.strides[0], x.strides[1], x.strides[2]},
                   Features<T>{out.as<T>(), out.strides[0], out.strides[1], out.strides[2]},
                   cosines.as<const C>(), sines.as<const C>(), total, x.shape[1], x.shape[2], half,
                   C(inverse ? -1 : 1));
        };
        if (wide)
            return run(interleaved ? rope_kernel<T, whole, true> : rope_kernel<T, whole, false>,
                       whole);
        run(interleaved ? rope_kernel<T, 1, true> : rope_kernel<T, 1, false>, 1);
    });
}

}  // namespace minitorch
