// AdamW over all parameters of a model in one sweep, and the norm of all their gradients.
//
//     g = scale grad                                      scale: what clipping by norm asks for
//     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g²
//     p = p (1 - lr decay) - rate m / (sqrt(v) unbias + eps)
//     rate = lr / (1 - beta1^t),     unbias = (1 - beta2^t)^-1/2
//
// Source: Loshchilov and Hutter 2019, algorithm 2, in PyTorch's form.

#pragma once

#include "../array.h"
#include "../threads.h"
#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

template <typename T>
struct AdamW {
    T scale, beta1, beta2, keep, rate, unbias, eps;
    T new1, new2;  // 1 - beta, rounded once: in float 1 - 0.999f is wrong in the fifth digit

    void operator()(T* p, const T* grad, T* m, T* v, long count) const {
        constexpr long lanes = Lanes<T>::count;
        long i = 0;
        for (; i + lanes <= count; i += lanes) {
            const Vector<T> g = load(grad + i) * scale;
            const Vector<T> first = beta1 * load(m + i) + new1 * g;
            const Vector<T> second = beta2 * load(v + i) + new2 * (g * g);
            store(m + i, first);
            store(v + i, second);
            Vector<T> root;
            for (long lane = 0; lane < lanes; ++lane) root[lane] = square_root(T(second[lane]));
            store(p + i, load(p + i) * keep - rate * first / (root * unbias + eps));
        }
        for (; i < count; ++i) {
            const T g = grad[i] * scale;
            m[i] = beta1 * m[i] + new1 * g;
            v[i] = beta2 * v[i] + new2 * (g * g);
            p[i] = p[i] * keep - rate * m[i] / (square_root(v[i]) * unbias + eps);
        }
    }
};

// Σ x², each lane's partial sum in double.
template <typename T>
double sum_of_squares(const T* x, long count) {
    constexpr long lanes = Lanes<Compute<T>>::count;
    constexpr long run = 64 * lanes;  // after so many, partial sums in T go into the double
    double total = 0;
    long i = 0;
    while (i + lanes <= count) {
        Vector<Compute<T>> sums[2] = {};
        const long stop = i + run < count ? i + run : count;
        for (; i + 2 * lanes <= stop; i += 2 * lanes) {
            const auto a = load(x + i), b = load(x + i + lanes);
            sums[0] += a * a;
            sums[1] += b * b;
        }
        for (; i + lanes <= stop; i += lanes) {
            const auto a = load(x + i);
            sums[0] += a * a;
        }
        total += sum_of_lanes<Compute<T>>(sums[0] + sums[1]);
    }
    for (; i < count; ++i) total += double(load_one(x + i)) * load_one(x + i);
    return total;
}

}  // namespace minitorch::MT_INSTRUCTION_SET
