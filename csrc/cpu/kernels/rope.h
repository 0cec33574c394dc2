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

template <typename T>
void rotate_neighbours(const T* x, T* out, const Compute<T>* cosine, const Compute<T>* sine,
                       long half, Compute<T> sign) {
    for (long i = 0; i < half; ++i) {
        const Compute<T> a = load_one(x + 2 * i), b = load_one(x + 2 * i + 1);
        const Compute<T> c = cosine[i], s = sign * sine[i];
        store_one(out + 2 * i, Compute<T>(a * c - b * s));
        store_one(out + 2 * i + 1, Compute<T>(b * c + a * s));
    }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
