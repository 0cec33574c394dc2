// Softmax and its relatives along one dimension of an array (outer, columns, inner):
//
//     softmax:      s = exp(scale x - m) / Σ exp(scale x - m),   m = max(scale x)
//     log_softmax:  scale x - l,   l = m + log Σ exp(scale x - m);   logsumexp: l
//
//     softmax:      dx = scale s (grad - Σ grad s),   since the Jacobian is diag(s) - s sᵀ
//     log_softmax:  dx = grad - exp(out) Σ grad
//     logsumexp:    dx = grad exp(x - out), 0 where out is -inf
//
// With inner = 1 a row is visited vector by vector. It is read from memory once: maximum and sum go
// together, block by block, what was summed before being scaled down when a larger maximum comes
// (Milakov and Gimelshein 2018). With a larger inner, neighbouring columns are the lanes of a
// vector, and nothing is copied or transposed.

#pragma once

#include "../array.h"
#include "../threads.h"
#include "functions.h"

namespace minitorch::MT_INSTRUCTION_SET {

// exp of what should not exceed 0, and does by a rounding error.
template <typename T>
Vector<T> exp_rounded(Vector<T> x) {
    return exp_nonpositive<T>(x > T(0) ? Vector<T>{} : x);
}

// What is subtracted before exp: the maximum, or 0 where that is infinite.
template <typename C>
C finite_or_zero(C peak) {
    return peak - peak == C(0) ? peak : C(0);
}

// f(i, values) over the vectors of x[0, count) times scale, the last one filled up with -inf.
template <typename T, typename F>
void for_each_scaled(const T* x, long count, Compute<T> scale, F f) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    long i = 0;
    for (; i + lanes <= count; i += lanes) f(i, load(x + i) * scale);
    if (i < count) {
        const Vector<C> tail = load_part(x + i, count - i, C(0)) * scale;
        f(i, first_lanes<C>(tail, count - i, -kInfinity<C>));
    }
}

template <typename T>
Compute<T> row_peak(const T* x, long count, Compute<T> scale) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    Vector<C> a = broadcast(-kInfinity<C>), b = a, c = a, d = a;
    long i = 0;
    for (; i + 4 * lanes <= count; i += 4 * lanes) {
        a = maximum<C>(load(x + i) * scale, a);
        b = maximum<C>(load(x + i + lanes) * scale, b);
        c = maximum<C>(load(x + i + 2 * lanes) * scale, c);
        d = maximum<C>(load(x + i + 3 * lanes) * scale, d);
    }
    a = maximum<C>(maximum<C>(a, b), maximum<C>(c, d));
    for_each_scaled(x + i, count - i, scale,
                    [&](long, Vector<C> values) { a = maximum<C>(values, a); });
    return largest_lane<C>(a);
}

// The maximum of scale x, and the sum of exp(scale x - finite_or_zero(peak)). A NaN makes the sum
// NaN; a row of -inf alone has the sum 0, a row with +inf an infinite one.
template <typename T>
void row_statistics(const T* x, long columns, Compute<T> scale, Compute<T>& peak, Compute<T>& sum) {
    using C = Compute<T>;
    constexpr long kBlock = 2048;
    peak = -kInfinity<C>;
    Vector<C> sums{};
    for (long begin = 0; begin < columns; begin += kBlock) {
        const long count = begin + kBlock < columns ? kBlock : columns - begin;
        const C largest = row_peak(x + begin, count, scale);
        if (largest > peak) {
            if (begin) sums *= exp_nonpositive<C>(broadcast<C>(finite_or_zero(peak) - largest))[0];
            peak = largest;
        }
        const C shift = finite_or_zero(peak);
        for_each_scaled(x + begin, count, scale, [&](long, Vector<C> values) {
            sums += exp_rounded<C>(values - shift);
        });
    }
    sum = sum_of_lanes<C>(sums);
    if (peak == kInfinity<C>) {
        sum = peak;
        for (long i = 0; i < columns; ++i)
            if (load_one(x + i) != load_one(x + i)) sum = load_one(x + i);
    }
}

// x, out: (rows, columns); out may be x. A row of -inf alone, or with NaN or +inf, gives NaN.
template <typename T>
void softmax_rows(const T* x, T* out, long rows, long columns, Compute<T> scale) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    // Exponentials wait for their sum in out, or, where that would round them, in a row of their own.
    C* row_of_wide = nullptr;
    if constexpr (!__is_same(T, C)) row_of_wide = scratch<C>(0, columns + lanes);
    for (long row = 0; row < rows; ++row, x += columns, out += columns) {
        C* wide = row_of_wide;
        if constexpr (__is_same(T, C)) wide = out;
        const C peak = row_peak(x, columns, scale);
        Vector<C> sums{};
        for_each_scaled(x, columns, scale, [&](long i, Vector<C> values) {
            const Vector<C> e = exp_rounded<C>(values - peak);
            sums += e;
            if (i + lanes <= columns)
                store(wide + i, e);
            else
                store_part(wide + i, e, columns - i);
        });
        const C inverse = C(1) / sum_of_lanes<C>(sums);
        long i = 0;
        for (; i + lanes <= columns; i += lanes) store(out + i, load(wide + i) * inverse);
        if (const long rest = columns - i)
            store_part(out + i, load_part(wide + i, rest, C(0)) * inverse, rest);
    }
}

template <typename T>
void log_softmax_rows(const T* x, T* out, long rows, long columns, Compute<T> scale) {
    using C = Compute<T>;
    for (long row = 0; row < rows; ++row, x += columns, out += columns) {
        C peak, sum;
        row_statistics(x, columns, scale, peak, sum);
        const C log_sum = log_of(sum + (peak - peak));  // NaN where the maximum is infinite
        for_each_vector<C>(columns, [&](long, auto get, auto put) {
            put(out, (get(x) * scale - peak) - log_sum);
        });
    }
}

template <typename T>
void logsumexp_rows(const T* x, T* out, long rows, long columns, Compute<T> scale) {
    for (long row = 0; row < rows; ++row, x += columns) {
        Compute<T> peak, sum;
        row_statistics(x, columns, scale, peak, sum);
        store_one(out + row, Compute<T>(log_of(sum) + finite_or_zero(peak)));
    }
}

// dx[i] = f(values of grad, values of out) after total = Σ g(values of grad, values of out).
template <typename T, typename G, typename F>
void backward_rows(const T* grad, const T* out, T* dx, long rows, long columns, G g, F f) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    const long whole = columns - columns % lanes, rest = columns - whole;
    for (long row = 0; row < rows; ++row, grad += columns, out += columns, dx += columns) {
        Vector<C> a{}, b{};
        long i = 0;
        for (; i + 2 * lanes <= columns; i += 2 * lanes) {
            a += g(load(grad + i), load(out + i));
            b += g(load(grad + i + lanes), load(out + i + lanes));
        }
        for (; i < whole; i += lanes) a += g(load(grad + i), load(out + i));
        // Beyond the end grad is 0, and so is g.
        if (rest) a += g(load_part(grad + whole, rest, C(0)), load_part(out + whole, rest, C(0)));
        const C total = sum_of_lanes<C>(a + b);
        for (i = 0; i < whole; i += lanes)
            store(dx + i, f(load(grad + i), load(out + i), total));
        if (rest)
            store_part(dx + whole,
                       f(load_part(grad + whole, rest, C(0)), load_part(out + whole, rest, C(0)), total),
                       rest);
    }
}

template <typename T>
void softmax_backward_rows(const T* grad, const T* out, T* dx, long rows, long columns,
                           Compute<T> scale) {
    using V = Vector<Compute<T>>;
    backward_rows(
        grad, out, dx, rows, columns, [](V g, V s) { return g * s; },
        [=](V g, V s, Compute<T> total) { return scale * s * (g - total); });
}

template <typename T>
void log_softmax_backward_rows(const T* grad, const T* out, T* dx, long rows, long columns) {
    using V = Vector<Compute<T>>;
    backward_rows(
        grad, out, dx, rows, columns, [](V g, V) { return g; },
        [](V g, V y, Compute<T> total) { return g - exp_rounded<Compute<T>>(y) * total; });
}

// grad, out: (rows,). A row of -inf alone has no gradient.
template <typename T>
void logsumexp_backward_rows(const T* grad, const T* x, const T* out, T* dx, long rows,
                             long columns) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    for (long row = 0; row < rows; ++row, x += columns, dx += columns) {
        const C factor = load_one(grad + row), total = load_one(out + row);
        const C shift = total == -kInfinity<C> ? C(0) : total;
        for_each_scaled(x, columns, C(1), [&](long i, Vector<C> values) {
            const Vector<C> slope = factor * exp_rounded<C>(values - shift);
            if (i + lanes <= columns)
                store(dx + i, slope);
            else
                store_part(dx + i, slope, columns - i);
        });
    }
}

// The vectors of one column each of a block (columns, inner): f(get, put, count), where get(array,
// column) and put(array, column, values) move `count` lanes at a time.
template <typename C, typename F>
void for_each_lane_group(long begin, long end, long inner, F f) {
    constexpr long lanes = Lanes<C>::count;
    for (long at = begin; at < end; at += lanes) {
        const long count = end - at < lanes ? end - at : lanes;
        f(
            [=](const auto* from, long column) {
                from += column * inner + at;
                return count == lanes ? load(from) : load_part(from, count, C(0));
            },
            [=](auto* to, long column, Vector<C> values) {
                to += column * inner + at;
                if (count == lanes)
                    store(to, values);
                else
                    store_part(to, values, count);
            });
    }
}

// x, out: (columns, inner), of which the inner positions [begin, end) are computed.
template <typename T, bool logarithm>
void softmax_strided(const T* x, T* out, long columns, long inner, long begin, long end,
                     Compute<T> scale) {
    using C = Compute<T>;
    for_each_lane_group<C>(begin, end, inner, [&](auto get, auto put) {
        Vector<C> peak = broadcast(-kInfinity<C>), sum{};
        for (long j = 0; j < columns; ++j) peak = maximum<C>(get(x, j) * scale, peak);
        for (long j = 0; j < columns; ++j) sum += exp_rounded<C>(get(x, j) * scale - peak);
        const Vector<C> inverse = C(1) / sum, log_sum = log<C>(sum);
        for (long j = 0; j < columns; ++j) {
            const Vector<C> exponent = get(x, j) * scale - peak;
            if constexpr (logarithm)
                put(out, j, exponent - log_sum);
            else
                put(out, j, exp_rounded<C>(exponent) * inverse);
        }
    });
}

template <typename T, bool logarithm>
void softmax_backward_strided(const T* grad, const T* out, T* dx, long columns, long inner,
                              long begin, long end, Compute<T> scale) {
    using C = Compute<T>;
    for_each_lane_group<C>(begin, end, inner, [&](auto get, auto put) {
        Vector<C> total{};
        for (long j = 0; j < columns; ++j)
            total += logarithm ? get(grad, j) : get(grad, j) * get(out, j);
        for (long j = 0; j < columns; ++j) {
            if constexpr (logarithm)
                put(dx, j, get(grad, j) - exp_rounded<C>(get(out, j)) * total);
            else
                put(dx, j, scale * get(out, j) * (get(grad, j) - total));
        }
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
