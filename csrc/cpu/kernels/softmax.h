// Softmax over the last dimension, in one visit of each row:
//
//     out = exp(scale x - m) / sum(exp(scale x - m)),   m = max(scale x)
//
// Three passes over the row, which stays in the first-level cache: the maximum; the exponentials
// and their sum; the division. NumPy makes the same passes over the whole array, each through
// memory.

#pragma once

#include "../array.h"
#include "../threads.h"
#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

// x, out: (rows, columns), contiguous; out may be x. A row of -inf alone, or with a NaN, gives NaN.
template <typename T>
void softmax(const T* x, T* out, long rows, long columns, T scale) {
    constexpr long lanes = Lanes<T>::count;
    const long whole = columns - columns % lanes;
    const long rest = columns - whole;

    for (long row = 0; row < rows; ++row, x += columns, out += columns) {
        Vector<T> running_max = broadcast(-kInfinity<T>);
        for (long i = 0; i < whole; i += lanes)
            running_max = maximum<T>(load(x + i) * scale, running_max);
        T largest = largest_lane<T>(running_max);
        for (long i = whole; i < columns; ++i) {
            const T scaled = x[i] * scale;
            largest = scaled > largest ? scaled : largest;
        }

        // The compiler may fuse the product into the difference, which then can exceed 0 a little.
        const auto exponential = [=](Vector<T> values) {
            const Vector<T> exponent = values * scale - largest;
            return exp_nonpositive<T>(exponent > T(0) ? Vector<T>{} : exponent);
        };
        Vector<T> sums{};
        for (long i = 0; i < whole; i += lanes) {
            const Vector<T> e = exponential(load(x + i));
            store(out + i, e);
            sums += e;
        }
        T total = sum_of_lanes<T>(sums);
        if (rest) {
            const Vector<T> e = exponential(load_part(x + whole, rest, T(0)));
            store_part(out + whole, e, rest);
            for (long lane = 0; lane < rest; ++lane) total += e[lane];
        }

        const T inverse = T(1) / total;
        for (long i = 0; i < whole; i += lanes) store(out + i, load(out + i) * inverse);
        for (long i = whole; i < columns; ++i) out[i] *= inverse;
    }
}

// dx = scale out (grad - Σ grad out), row by row: the Jacobian is diag(out) - out outᵀ.
template <typename T>
void softmax_backward(const T* grad, const T* out, T* dx, long rows, long columns, T scale) {
    constexpr long lanes = Lanes<T>::count;
    const long whole = columns - columns % lanes;
    for (long row = 0; row < rows; ++row, grad += columns, out += columns, dx += columns) {
        Vector<T> products{};
        for (long i = 0; i < whole; i += lanes) products += load(grad + i) * load(out + i);
        T total = sum_of_lanes<T>(products);
        for (long i = whole; i < columns; ++i) total += grad[i] * out[i];
        for (long i = 0; i < whole; i += lanes)
            store(dx + i, scale * load(out + i) * (load(grad + i) - total));
        for (long i = whole; i < columns; ++i) dx[i] = scale * out[i] * (grad[i] - total);
    }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
