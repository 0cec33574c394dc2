// The rules of optimizers, each over all parameters of a model in one sweep, and the norm of all
// their gradients.
//
// A rule turns a vector of a parameter, of its gradient and of what is kept for it (m, v, b) into
// new ones. The sweep reads and writes each array once, so that memory is all that it waits for; on
// the way it scales the gradient (what clipping by norm asks for) and writes the new parameter a
// second time in bfloat16, where a copy for matrix products is wanted.
//
// Source: Loshchilov and Hutter 2019, algorithm 2, in PyTorch's form (AdamW); Sutskever et al. 2013
// in PyTorch's form (SGD); Chen et al. 2023, program 1 (Lion); Jordan et al. 2024 (Muon's direction).

#pragma once

#include "../array.h"
#include "../threads.h"
#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

template <typename T>
Vector<T> square_roots(Vector<T> x) {
    for (long lane = 0; lane < Lanes<T>::count; ++lane) x[lane] = square_root(T(x[lane]));
    return x;
}

// m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g²
// p = keep p - rate m / (sqrt(v) unbias + eps)
// keep = 1 - lr decay,   rate = lr / (1 - beta1^t),   unbias = (1 - beta2^t)^-1/2
template <typename T>
struct AdamW {
    static constexpr int kStates = 2, kNumbers = 6;
    T beta1, beta2, keep, rate, unbias, eps;
    T new1, new2;  // 1 - beta, rounded once: in float 1 - 0.999f is wrong in the fifth digit

    explicit AdamW(const double* n)
        : beta1(n[0]), beta2(n[1]), keep(n[2]), rate(n[3]), unbias(n[4]), eps(n[5]),
          new1(1 - n[0]), new2(1 - n[1]) {}

    Vector<T> operator()(Vector<T> p, Vector<T> g, Vector<T>* state) const {
        const Vector<T> m = beta1 * state[0] + new1 * g;
        const Vector<T> v = beta2 * state[1] + new2 * (g * g);
        state[0] = m;
        state[1] = v;
        return p * keep - rate * m / (square_roots<T>(v) * unbias + eps);
    }
};

// g = g + decay p,   b = momentum b + fresh g
// p = p - lr b, or with Nesterov p - lr (g + momentum b)
template <typename T>
struct Momentum {
    static constexpr int kStates = 1, kNumbers = 5;
    T lr, decay, momentum, fresh;
    bool nesterov;

    explicit Momentum(const double* n)
        : lr(n[0]), decay(n[1]), momentum(n[2]), fresh(n[3]), nesterov(n[4] != 0) {}

    Vector<T> operator()(Vector<T> p, Vector<T> g, Vector<T>* state) const {
        g += decay * p;
        const Vector<T> b = momentum * state[0] + fresh * g;
        state[0] = b;
        return p - lr * (nesterov ? g + momentum * b : b);
    }
};

// p = p - lr (g + decay p)
template <typename T>
struct Descent {
    static constexpr int kStates = 0, kNumbers = 2;
    T lr, decay;

    explicit Descent(const double* n) : lr(n[0]), decay(n[1]) {}

    Vector<T> operator()(Vector<T> p, Vector<T> g, Vector<T>*) const {
        return p - lr * (g + decay * p);
    }
};

// p = keep p - lr sign(beta1 m + (1 - beta1) g),   m = beta2 m + (1 - beta2) g
template <typename T>
struct Lion {
    static constexpr int kStates = 1, kNumbers = 4;
    T beta1, beta2, keep, lr, new1, new2;

    explicit Lion(const double* n)
        : beta1(n[0]), beta2(n[1]), keep(n[2]), lr(n[3]), new1(1 - n[0]), new2(1 - n[1]) {}

    Vector<T> operator()(Vector<T> p, Vector<T> g, Vector<T>* state) const {
        const Vector<T> c = beta1 * state[0] + new1 * g;
        const Vector<T> sign = c > T(0) ? broadcast<T>(1) : c < T(0) ? broadcast<T>(-1) : c;
        state[0] = beta2 * state[0] + new2 * g;
        return p * keep - lr * sign;
    }
};

// g = (1 - momentum) g,   b = momentum b + g,   p = b, or with Nesterov g + momentum b
// What p was does not matter: it is where a step goes, for Muon.
template <typename T>
struct Direction {
    static constexpr int kStates = 1, kNumbers = 2;
    T momentum, fresh;
    bool nesterov;

    explicit Direction(const double* n) : momentum(n[0]), fresh(1 - n[0]), nesterov(n[1] != 0) {}

    Vector<T> operator()(Vector<T>, Vector<T> g, Vector<T>* state) const {
        g *= fresh;
        state[0] = momentum * state[0] + g;
        return nesterov ? g + momentum * state[0] : state[0];
    }
};

// p = p + rate (g - p): a mean p that follows g.
template <typename T>
struct Follow {
    static constexpr int kStates = 0, kNumbers = 1;
    T rate;

    explicit Follow(const double* n) : rate(n[0]) {}

    Vector<T> operator()(Vector<T> p, Vector<T> g, Vector<T>*) const {
        return p + rate * (g - p);
    }
};

// The rule over `count` elements. copy: bfloat16 for the new p, or null.
template <typename T, typename Rule>
void apply_rule(const Rule& rule, T scale, T* p, const T* grad, bfloat16* copy, T* const* states,
                long count) {
    for_each_vector<T>(count, [&](long, auto get, auto put) {
        Vector<T> state[Rule::kStates + 1];
        for (int s = 0; s < Rule::kStates; ++s) state[s] = get(states[s]);
        const Vector<T> next = rule(get(p), get(grad) * scale, state);
        put(p, next);
        for (int s = 0; s < Rule::kStates; ++s) put(states[s], state[s]);
        if constexpr (__is_same(T, float)) {
            if (copy) put(copy, next);
        }
    });
}

// As many elements as there are lanes of double, widened.
inline Vector<double> load_wide(const double* from) {
    return load(from);
}
inline Vector<double> load_wide(const float* from) {
    typedef float Half __attribute__((vector_size(MT_VECTOR_BYTES / 2)));
    Half stored;
    __builtin_memcpy(&stored, from, sizeof stored);
    return __builtin_convertvector(stored, Vector<double>);
}
inline Vector<double> load_wide(const bfloat16* from) {
    typedef uint16_t Quarter __attribute__((vector_size(MT_VECTOR_BYTES / 4)));
    typedef uint32_t Bits __attribute__((vector_size(MT_VECTOR_BYTES / 2)));
    typedef float Half __attribute__((vector_size(MT_VECTOR_BYTES / 2)));
    Quarter stored;
    __builtin_memcpy(&stored, from, sizeof stored);
    return __builtin_convertvector((Half)(__builtin_convertvector(stored, Bits) << 16),
                                   Vector<double>);
}

// Σ x² in double, so that no square overflows or vanishes; conversion is hidden behind memory. Read from
// eight places at once: more comes than from one.
template <typename T>
double sum_of_squares(const T* x, long count) {
    constexpr long lanes = Lanes<double>::count, places = 8;
    const long apart = count / (places * lanes) * lanes;
    Vector<double> sums[places] = {};
    for (long i = 0; i < apart; i += lanes)
#pragma GCC unroll 8
        for (long place = 0; place < places; ++place) {
            const Vector<double> a = load_wide(x + place * apart + i);
            sums[place] += a * a;
        }
    Vector<double> sum{};
    for (const Vector<double>& one : sums) sum += one;
    double total = sum_of_lanes<double>(sum);
    for (long i = places * apart; i < count; ++i) total += double(load_one(x + i)) * load_one(x + i);
    return total;
}

}  // namespace minitorch::MT_INSTRUCTION_SET
