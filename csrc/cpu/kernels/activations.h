// Activations, their gradients, or both, elementwise, in one pass:
//
//     silu(x) = x s(x)                  silu'(x) = s (1 + x (1 - s))         s: the logistic function
//     gelu(x) = x s(2 u(x))             gelu'(x) = s + 2 x u' s (1 - s)
//     u = sqrt(2 / pi) (x + 0.044715 x³)
//     gelu(x) = x Φ(x)                  gelu'(x) = Φ(x) + x exp(-x²/2) / sqrt(2 pi)
//     swiglu(x, y) = silu(x) y
//
// the first gelu being GPT-2's approximation, 0.5 x (1 + tanh(u)), since 0.5 (1 + tanh(u)) = s(2 u).
// Source: Hendrycks and Gimpel 2016, section 2; Elfwing et al. 2017; Shazeer 2020.

#pragma once

#include "../array.h"
#include "../threads.h"
#include "functions.h"

namespace minitorch::MT_INSTRUCTION_SET {

// f(x) and f'(x). Most of what either takes is in both.
template <typename C>
struct ValueAndSlope {
    Vector<C> value, slope;
};

template <typename C>
struct Silu {
    ValueAndSlope<C> both(Vector<C> x) const {
        const Vector<C> s = sigmoid<C>(x);
        return {x * s, s * (C(1) + x * (C(1) - s))};
    }
    Vector<C> value(Vector<C> x) const { return both(x).value; }
    Vector<C> slope(Vector<C> x) const { return both(x).slope; }
};

template <typename C>
struct GeluTanh {
    static constexpr C kRoot = 0.797884560802865355879892119868763737;  // sqrt(2 / pi)
    static constexpr C kCubic = 0.044715;

    ValueAndSlope<C> both(Vector<C> x) const {
        const Vector<C> square = x * x;
        const Vector<C> s = sigmoid<C>(x * (2 * kRoot + 2 * kRoot * kCubic * square));
        const Vector<C> inner = 2 * kRoot + 6 * kRoot * kCubic * square;  // 2 u'
        const Vector<C> value = x * s;
        return {value, s + value * inner * (C(1) - s)};
    }
    Vector<C> value(Vector<C> x) const { return both(x).value; }
    Vector<C> slope(Vector<C> x) const { return both(x).slope; }
};

template <typename C>
struct Gelu {
    ValueAndSlope<C> both(Vector<C> x) const {
        Vector<C> bell, below;
        normal<C>(x, bell, below);
        // 1 / sqrt(2 pi)
        return {x * below, below + x * bell * C(0.398942280401432677939946059934381868)};
    }
    Vector<C> value(Vector<C> x) const { return both(x).value; }
    Vector<C> slope(Vector<C> x) const { return both(x).slope; }
};

template <typename T>
void swiglu(const T* gate, const T* up, T* out, long count) {
    using C = Compute<T>;
    for_each_vector<C>(count, [&](long, auto get, auto put) {
        put(out, Silu<C>().value(get(gate)) * get(up));
    });
}

template <typename T>
void swiglu_backward(const T* grad, const T* gate, const T* up, T* dgate, T* dup, long count) {
    using C = Compute<T>;
    for_each_vector<C>(count, [&](long, auto get, auto put) {
        const Vector<C> g = get(grad), x = get(gate), s = sigmoid<C>(x);
        put(dgate, g * get(up) * (s * (C(1) + x * (C(1) - s))));
        put(dup, g * x * s);
    });
}

// out[i] = f(x[i]), vector by vector; `f` takes and gives vectors, from as many arrays as come.
template <typename T, typename F, typename... From>
void map(long count, F f, T* out, const From*... from) {
    constexpr long lanes = Lanes<Compute<T>>::count;
    parallel_ranges(count, rows_per_piece(1), [&](long begin, long end) {
        long i = begin;
        for (; i + lanes <= end; i += lanes) store(out + i, f(load(from + i)...));
        if (i < end) store_part(out + i, f(load_part(from + i, end - i, Compute<T>(0))...), end - i);
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
