// Rotary position embedding: pairs of features are turned by an angle that grows with the position,
//
//     (a, b) -> (a cos - b sin, b cos + a sin)
//
// a and b being feature i and i + head_dim / 2, or, interleaved, 2 i and 2 i + 1. The gradient is
// turned back: the same with -sin. Source: Su et al. 2021, equation 34.

#pragma once

#include "../array.h"
#include "../threads.h"
#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

// One row x of 2 * half features; cosine, sine (half,). out may be x.
template <typename T>
void rotate_halves(const T* x, T* out, const Compute<T>* cosine, const Compute<T>* sine, long half,
                   Compute<T> sign) {
    using C = Compute<T>;
    for_each_vector<C>(half, [&](long, auto get, auto put) {
        const Vector<C> a = get(x), b = get(x + half), c = get(cosine), s = sign * get(sine);
        put(out, a * c - b * s);
        put(out + half, b * c + a * s);
    });
}

// The first half of the lanes, each twice.
template <typename C>
Vector<C> doubled(Vector<C> x) {
    return [&]<long... i>(std::integer_sequence<long, i...>) {
        return __builtin_shufflevector(x, x, (i / 2)...);
    }(std::make_integer_sequence<long, Lanes<C>::count>());
}
// Every lane in its neighbour's place.
template <typename C>
Vector<C> swapped(Vector<C> x) {
    return [&]<long... i>(std::integer_sequence<long, i...>) {
        return __builtin_shufflevector(x, x, (i ^ 1)...);
    }(std::make_integer_sequence<long, Lanes<C>::count>());
}

template <typename T>
void rotate_neighbours(const T* x, T* out, const Compute<T>* cosine, const Compute<T>* sine,
                       long half, Compute<T> sign) {
    using C = Compute<T>;
    constexpr long pairs = Lanes<C>::count / 2;
    Vector<C> signs{};  // -, +, -, +, ...
    for (long lane = 0; lane < 2 * pairs; ++lane) signs[lane] = lane % 2 ? sign : -sign;
    long i = 0;
    for (; i + pairs <= half; i += pairs) {
        const Vector<C> both = load(x + 2 * i);
        const Vector<C> c = doubled<C>(load_part(cosine + i, pairs, C(0)));
        const Vector<C> s = doubled<C>(load_part(sine + i, pairs, C(0)));
        store(out + 2 * i, both * c + swapped<C>(both) * (signs * s));
    }
    for (; i < half; ++i) {
        const C a = load_one(x + 2 * i), b = load_one(x + 2 * i + 1);
        const C c = cosine[i], s = sign * sine[i];
        store_one(out + 2 * i, C(a * c - b * s));
        store_one(out + 2 * i + 1, C(b * c + a * s));
    }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
