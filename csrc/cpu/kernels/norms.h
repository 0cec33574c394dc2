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

// Σ term(vector of x) over a row; the lanes beyond its end are not counted.
template <typename T, typename F>
Compute<T> row_sum(const T* x, long columns, F term) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    Vector<C> a{}, b{}, c{}, d{};
    long i = 0;
    for (; i + 4 * lanes <= columns; i += 4 * lanes) {
        a += term(load(x + i));
        b += term(load(x + i + lanes));
        c += term(load(x + i + 2 * lanes));
        d += term(load(x + i + 3 * lanes));
    }
    for (; i + lanes <= columns; i += lanes) a += term(load(x + i));
    if (const long rest = columns - i; rest > 0)
        b += first_lanes<C>(term(load_part(x + i, rest, C(0))), rest, C(0));
    return sum_of_lanes<C>((a + b) + (c + d));
}

// The reciprocal of the standard deviation, and the mean, which is 0 without `centred`.
template <typename T, bool centred>
void statistics(const T* x, long columns, Compute<T> eps, Compute<T>& mean, Compute<T>& rstd) {
    using C = Compute<T>;
    mean = 0;
    if constexpr (centred) mean = row_sum(x, columns, [](Vector<C> v) { return v; }) / C(columns);
    const C squares = row_sum(x, columns, [mean](Vector<C> v) {
        const Vector<C> d = v - mean;
        return d * d;
    });
    rstd = C(1) / square_root(squares / C(columns) + eps);
}

// x, out (rows, columns); weight, bias (columns,) or null; means, rstds (rows,), means unused if
// not centred. With a residual, x + residual is normalised instead of x, and written to sum.
template <typename T, bool centred, typename W>
void norm(const T* x, const T* residual, const W* weight, const W* bias, T* out, T* sum,
          Compute<T>* means, Compute<T>* rstds, long rows, long columns, Compute<T> eps) {
    using C = Compute<T>;
    parallel_ranges(rows, rows_per_piece(columns), [=](long begin, long end) {
        for (long row = begin; row < end; ++row) {
            const T* from = x + row * columns;
            if (residual) {
                const T* other = residual + row * columns;
                T* total = sum + row * columns;
                for_each_vector<C>(columns, [&](long, auto get, auto put) {
                    put(total, get(from) + get(other));
                });
                from = total;
            }
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

// dweight, dbias (columns,); dbias may be null. dsum (rows, columns) or null is added to dx: what
// comes back to x + residual where that was kept.
template <typename T, bool centred>
void norm_backward(const T* grad, const T* x, const Compute<T>* weight, const Compute<T>* means,
                   const Compute<T>* rstds, const T* dsum, T* dx, Compute<T>* dweight,
                   Compute<T>* dbias, long rows, long columns) {
    using C = Compute<T>;
    // At most 32 pieces: as many partial sums have to be added.
    const long least = (rows + 31) / 32, worth = rows_per_piece(columns);
    const long rows_of_piece = least > worth ? least : worth;
    const long pieces = (rows + rows_of_piece - 1) / rows_of_piece;
    C* partial = scratch<C>(4, 2 * pieces * columns);

    parallel_for(pieces, [=](long piece) {
        C* weight_sum = partial + 2 * piece * columns;
        C* bias_sum = weight_sum + columns;
        __builtin_memset(weight_sum, 0, sizeof(C) * 2 * columns);
        const long first = piece * rows_of_piece;
        const long last = first + rows_of_piece < rows ? first + rows_of_piece : rows;
        for (long row = first; row < last; ++row) {
            const T* g_row = grad + row * columns;
            const T* x_row = x + row * columns;
            const T* d_row = dsum + row * columns;
            T* to = dx + row * columns;
            const C mean = centred ? means[row] : C(0), rstd = rstds[row];
            Vector<C> sum_g{}, sum_gn{};
            for_each_vector<C>(columns, [&](long, auto get, auto put) {
                const Vector<C> upstream = get(g_row);
                const Vector<C> n = (get(x_row) - mean) * rstd;
                const Vector<C> g = weight ? upstream * get(weight) : upstream;
                if constexpr (centred) sum_g += g;
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
                Vector<C> slope = rstd * (g - mean_g - n * mean_gn);
                if (dsum) slope += get(d_row);
                put(to, slope);
            });
        }
    });
    parallel_ranges(columns, rows_per_piece(2 * pieces), [=](long begin, long end) {
        for (long i = begin; i < end; ++i) {
            dweight[i] = 0;
            if (dbias) dbias[i] = 0;
        }
        for (long piece = 0; piece < pieces; ++piece)
            for (long i = begin; i < end; ++i) {
                dweight[i] += partial[2 * piece * columns + i];
                if (dbias) dbias[i] += partial[(2 * piece + 1) * columns + i];
            }
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
