// Functions of single numbers, and their gradients in one pass:
//
//     gelu       x Φ(x),                   grad (Φ(x) + x φ(x)),  Φ(x) = erfc(-x / √2) / 2
//     gelu_tanh  x (1 + tanh u) / 2,       u = √(2/π) (x + 0.044715 x³)
//     silu       x s,                      grad s (1 + x (1 - s)),  s = 1 / (1 + exp(-x))
//     swiglu     silu(gate) up,            grad up silu'(gate)  and  grad silu(gate)
//     exp, log, tanh, sigmoid, erf
//
// Nothing but memory limits them: each thread moves 16 bytes at a time, and keeps nothing. swiglu
// takes rows that lie apart, as those of the halves of one array do.
//
// Source: Hendrycks and Gimpel 2016; Shazeer 2020, "GLU variants improve transformer".

#include "map.h"

namespace minitorch {

struct Sigmoid {
    template <typename C>
    __device__ C operator()(C x) const {
        return C(1) / (C(1) + exp(-x));
    }
};

struct Gelu {
    template <typename C>
    __device__ C operator()(C x) const {
        return x * distribution(x);
    }
    template <typename C>
    __device__ C operator()(C grad, C x) const {
        const C density = C(0.3989422804014327) * exp(C(-0.5) * x * x);
        return grad * (distribution(x) + x * density);
    }
    template <typename C>
    __device__ static C distribution(C x) {
        return C(0.5) * erfc(x * C(-0.7071067811865476));
    }
};

struct GeluTanh {
    template <typename C>
    __device__ C operator()(C x) const {
        return C(0.5) * x * (C(1) + bent(x));
    }
    template <typename C>
    __device__ C operator()(C grad, C x) const {
        const C t = bent(x), slope = C(kRoot) * (C(1) + C(3 * kCubic) * x * x);
        return grad * C(0.5) * (C(1) + t + x * (C(1) - t * t) * slope);
    }

private:
    static constexpr double kRoot = 0.7978845608028654, kCubic = 0.044715;
    template <typename C>
    __device__ static C bent(C x) {
        return tanh(C(kRoot) * x * (C(1) + C(kCubic) * x * x));
    }
};

struct Silu {
    template <typename C>
    __device__ C operator()(C x) const {
        return x * Sigmoid()(x);
    }
    template <typename C>
    __device__ C operator()(C grad, C x) const {
        const C s = Sigmoid()(x);
        return grad * s * (C(1) + x * (C(1) - s));
    }
};

struct Exp {
    template <typename C>
    __device__ C operator()(C x) const {
        return exp(x);
    }
};
struct Log {
    template <typename C>
    __device__ C operator()(C x) const {
        return log(x);
    }
};
struct Tanh {
    template <typename C>
    __device__ C operator()(C x) const {
        return tanh(x);
    }
};
struct Erf {
    template <typename C>
    __device__ C operator()(C x) const {
        return erf(x);
    }
};

DEVICE_KERNEL(exp) {
    map_one<Exp>(arrays, stream);
}  // x, out
DEVICE_KERNEL(log) {
    map_one<Log>(arrays, stream);
}
DEVICE_KERNEL(tanh) {
    map_one<Tanh>(arrays, stream);
}
DEVICE_KERNEL(sigmoid) {
    map_one<Sigmoid>(arrays, stream);
}
DEVICE_KERNEL(erf) {
    map_one<Erf>(arrays, stream);
}
DEVICE_KERNEL(silu) {
    map_one<Silu>(arrays, stream);
}
DEVICE_KERNEL(gelu) {
    map_one<Gelu>(arrays, stream);
}
DEVICE_KERNEL(gelu_tanh) {
    map_one<GeluTanh>(arrays, stream);
}
DEVICE_KERNEL(silu_backward) {
    map_two<Silu>(arrays, stream);
}  // grad, x, out
DEVICE_KERNEL(gelu_backward) {
    map_two<Gelu>(arrays, stream);
}
DEVICE_KERNEL(gelu_tanh_backward) {
    map_two<GeluTanh>(arrays, stream);
}

// Where the rows of an array begin.
template <typename T>
struct Rows {
    T* data;
    long stride;
    __device__ T* operator()(long row, long column) const { return data + row * stride + column; }
};

template <typename T, int n>
__global__ void swiglu_kernel(Rows<const T> gate, Rows<const T> up, Rows<T> out, long rows,
                              long columns) {
    using C = Compute<T>;
    const long threads = long(gridDim.x) * blockDim.x, steps = columns / n;
    for (long i = long(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * steps; i += threads) {
        const long row = i / steps, column = i % steps * n;
        const Few<T, n> g = load<n>(gate(row, column)), u = load<n>(up(row, column));
        Few<T, n> to;
        for (int j = 0; j < n; ++j) to[j] = T(Silu()(C(g[j])) * C(u[j]));
        store(out(row, column), to);
    }
}

template <typename T, int n>
__global__ void swiglu_backward_kernel(Rows<const T> grad, Rows<const T> gate, Rows<const T> up,
                                       Rows<T> dgate, Rows<T> dup, long rows, long columns) {
    using C = Compute<T>;
    const long threads = long(gridDim.x) * blockDim.x, steps = columns / n;
    for (long i = long(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * steps; i += threads) {
        const long row = i / steps, column = i % steps * n;
        const Few<T, n> d = load<n>(grad(row, column));
        const Few<T, n> g = load<n>(gate(row, column)), u = load<n>(up(row, column));
        Few<T, n> to_gate, to_up;
        for (int j = 0; j < n; ++j) {
            to_gate[j] = T(Silu()(C(d[j]) * C(u[j]), C(g[j])));
            to_up[j] = T(C(d[j]) * Silu()(C(g[j])));
        }
        store(dgate(row, column), to_gate);
        store(dup(row, column), to_up);
    }
}

template <typename T>
static Rows<T> rows_of(const Array& array) {
    return {array.as<T>(), array.shape[0] > 1 ? array.strides[0] : array.shape[1]};
}

// n as in by_width, of arrays (rows, columns) with contiguous rows.
template <typename T, typename Body>
static void by_width_of_rows(const Array* arrays, int count, Body&& body) {
    bool aligned = true;
    for (int i = 0; i < count; ++i)
        aligned &= is_aligned<T>(arrays[i].data, arrays[i].shape[1], rows_of<T>(arrays[i]).stride);
    if (aligned) return body(std::integral_constant<int, 16 / sizeof(T)>());
    body(std::integral_constant<int, 1>());
}

DEVICE_KERNEL(swiglu) {  // gate, up, out (rows, columns); rows contiguous
    const Array& out = arrays[2];
    by_dtype(out, [&](auto kind) {
        using T = decltype(kind);
        by_width_of_rows<T>(arrays, 3, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(swiglu_kernel<T, n>, blocks_of_256(out.size / n), 256, 0, stream,
                   rows_of<const T>(arrays[0]), rows_of<const T>(arrays[1]), rows_of<T>(out),
                   out.shape[0], out.shape[1]);
        });
    });
}

DEVICE_KERNEL(swiglu_backward) {  // grad, gate, up, dgate, dup, likewise
    const Array& grad = arrays[0];
    by_dtype(grad, [&](auto kind) {
        using T = decltype(kind);
        by_width_of_rows<T>(arrays, 5, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(swiglu_backward_kernel<T, n>, blocks_of_256(grad.size / n), 256, 0, stream,
                   rows_of<const T>(grad), rows_of<const T>(arrays[1]), rows_of<const T>(arrays[2]),
                   rows_of<T>(arrays[3]), rows_of<T>(arrays[4]), grad.shape[0], grad.shape[1]);
        });
    });
}

}  // namespace minitorch
