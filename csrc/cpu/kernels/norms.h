// Layer norm and RMS norm over rows, forward and backward.
//
//     n = (x - mean) rstd                rstd = 1 / sqrt(variance + eps);   RMS norm: mean = 0
//     out = n weight + bias
//     dx = rstd (g - mean(g) - n mean(g n)),   g = grad weight;             RMS norm: no mean(g)
//     dweight = Σ grad n,   dbias = Σ grad     over the rows
//
// A row stays in the first-level cache while it is read two or three times. The sums over rows are
// made by each piece of rows for itself, and then added piece by piece: the same bits with any
// number of threads. Source: Ba et al. 2016; Zhang and Sennrich 2019.

#pragma once

#include "../array.h"
#include "../threads.h"
#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

// f(i, get) for each vector of a row, get(pointer) giving its elements; the last may be a part.
template <typename C, typename F>
void for_each_vector(long columns, F&& f) {
    constexpr long lanes = Lanes<C>::count;
    long i = 0;
    for (; i + lanes <= columns; i += lanes)
        f(i, [i](const auto* from) { return load(from + i); },
          [i](auto* to, Vector<C> x) { store(to + i, x); });
    if (const long rest = columns - i; rest > 0)
        f(i, [=](const auto* from) { return load_part(from + i, rest, C(0)); },
          [=](auto* to, Vector<C> x) { store_part(to + i, x, rest); });
}

// The reciprocal of the standard deviation, and the mean, which is 0 without `centred`.
template <typename T, bool centred>
void statistics(const T* x, long columns, Compute<T> eps, Compute<T>& mean, Compute<T>& rstd) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    mean = 0;
    if constexpr (centred) {
        Vector<C> sum{};
        for_each_vector<C>(columns, [&](long, auto get, auto) { sum += get(x); });
        mean = sum_of_lanes<C>(sum) / C(columns);
    }
    Vector<C> squares{};
    long i = 0;
    for (; i + lanes <= columns; i += lanes) {
        const Vector<C> d = load(x + i) - mean;
        squares += d * d;
    }
    C total = sum_of_lanes<C>(squares);
    for (; i < columns; ++i) {
        const C d = load_one(x + i) - mean;
        total += d * d;
    }
    rstd = C(1) / square_root(total / C(columns) + eps);
}

// x, out (rows, columns); weight, bias (columns,) or null; means, rstds (rows,), means unused if
// not centred.
template <typename T, bool centred>
void norm(const T* x, const T* weight, const T* bias, T* out, Compute<T>* means, Compute<T>* rstds,
          long rows, long columns, Compute<T> eps) {
    using C = Compute<T>;
    parallel_ranges(rows, rows_per_piece(columns), [=](long begin, long end) {
        for (long row = begin; row < end; ++row) {
            const T* from = x + row * columns;
            T* to = out + row * columns;
            C mean, rstd;
            statistics<T, centred>(from, columns, eps, mean, rstd);
            if constexpr (centred) means[row] = mean;
            rstds[row] = rstd;
            for_each_vector<C>(columns, [&](long, auto get, auto put) {
                Vector<C> y = (get(from) - mean) * rstd;
                if (weight) y *= get(weight);
                if (bias) y += get(bias);
                put(to, y);
            });
        }
    });
}

// dweight, dbias (columns,) of the compute type; dbias may be null.
template <typename T, bool centred>
void norm_backward(const T* grad, const T* x, const T* weight, const Compute<T>* means,
                   const Compute<T>* rstds, T* dx, Compute<T>* dweight, Compute<T>* dbias,
                   long rows, long columns) {
    using C = Compute<T>;
    // At most 32 pieces: as many partial sums have to be added.
    const long least = (rows + 31) / 32, worth = rows_per_piece(columns);
    const long rows_of_piece = least > worth ? least : worth;
    const long pieces = (rows + rows_of_piece - 1) / rows_of_piece;
    C* partial = scratch<C>(4, 2 * pieces * columns);
    __builtin_memset(partial, 0, sizeof(C) * 2 * pieces * columns);

    parallel_for(pieces, [=](long piece) {
        C* weight_sum = partial + 2 * piece * columns;
        C* bias_sum = weight_sum + columns;
        const long first = piece * rows_of_piece;
        const long last = first + rows_of_piece < rows ? first + rows_of_piece : rows;
        for (long row = first; row < last; ++row) {
            const T* g_row = grad + row * columns;
            const T* x_row = x + row * columns;
            T* to = dx + row * columns;
            const C mean = centred ? means[row] : C(0), rstd = rstds[row];
            Vector<C> sum_g{}, sum_gn{};
            for_each_vector<C>(columns, [&](long, auto get, auto put) {
                const Vector<C> upstream = get(g_row);
                const Vector<C> n = (get(x_row) - mean) * rstd;
                const Vector<C> g = weight ? upstream * get(weight) : upstream;
                sum_g += g;
                sum_gn += g * n;  // beyond the end g is 0
                put(weight_sum, get(weight_sum) + upstream * n);
                if (dbias) put(bias_sum, get(bias_sum) + upstream);
            });
            const C mean_g = centred ? sum_of_lanes<C>(sum_g) / C(columns) : C(0);
            const C mean_gn = sum_of_lanes<C>(sum_gn) / C(columns);
            for_each_vector<C>(columns, [&](long, auto get, auto put) {
                const Vector<C> upstream = get(g_row);
                const Vector<C> n = (get(x_row) - mean) * rstd;
                const Vector<C> g = weight ? upstream * get(weight) : upstream;
                put(to, rstd * (g - mean_g - n * mean_gn));
            });
        }
    });
    __builtin_memset(dweight, 0, sizeof(C) * columns);
    if (dbias) __builtin_memset(dbias, 0, sizeof(C) * columns);
    for (long piece = 0; piece < pieces; ++piece)
        for (long i = 0; i < columns; ++i) {
            dweight[i] += partial[2 * piece * columns + i];
            if (dbias) dbias[i] += partial[(2 * piece + 1) * columns + i];
        }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
