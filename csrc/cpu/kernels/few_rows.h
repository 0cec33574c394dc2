// The product of a few rows of A and all of B, whose every element is read once: memory decides. B
// is read where it is.

#pragma once

#include "matmul.h"

namespace minitorch::MT_INSTRUCTION_SET {

// Columns of B that a thread takes at a time, a multiple of `step`: four times what is worth it,
// since at every jump to another place the processor has to find out again what to fetch ahead.
inline long columns_at_once(long k, long step) {
    return ceil_div(4 * rows_per_piece(k), step) * step;
}

// body(begin, end) over [0, count) in pieces that begin at multiples of `step` and grow shorter,
// down to `least`: so threads have few jumps, and all end at nearly the same time. How many threads
// there are decides about the pieces: only for loops whose results do not depend on those.
template <typename Body>
void parallel_shrinking(long count, long step, long least, Body&& body) {
    constexpr long kMost = 2048;
    long ends[kMost], pieces = 0;
    for (long end = 0; end < count; ++pieces) {
        long length = 3 * (count - end) / (4 * num_threads());
        if (length < least) length = least;
        end += (length + step - 1) / step * step;
        if (end > count || pieces == kMost - 1) end = count;
        ends[pieces] = end;
    }
    parallel_for(pieces, [&](long i) { body(i ? ends[i - 1] : 0L, ends[i]); });
}

// How many columns apart the columns are that are read at once: so that each of the places that
// memory is read from goes on for a while, and what comes next is some 24 KiB away.
inline long columns_apart(long bytes_of_column, long most) {
    constexpr long kWhile = 6000;
    long apart = 1;
    while (apart < most && apart * bytes_of_column < kWhile) apart *= 2;
    return apart;
}

// B's columns contiguous along k: every element of the result is a product of two vectors. With
// Layout::pairs those are of pairs, and k is even.
//
// From four places at once memory gives a fifth to a third more than from one, and more from eight
// if the columns are long: the processor fetches ahead for each of them, and is told of the columns
// to come as well.
template <typename T, typename O, long rows, Layout layout>
void few_rows_by_dots(long m, long n, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
                      const Epilogue<O, Compute<T>>& epilogue) {
    using C = Compute<T>;
    using Element = std::conditional_t<layout == Layout::pairs, Pair, T>;
    constexpr long lanes = Lanes<C>::count;
    constexpr bool long_columns = sizeof(T) == 4 && lanes >= 16;
    constexpr long together = rows == 1 && long_columns ? 8 : rows <= 4 && lanes >= 4 ? 4 : 2;
    const long depth = k * static_cast<long>(sizeof(T)) / static_cast<long>(sizeof(Element));
    const long apart = columns_apart(k * static_cast<long>(sizeof(T)), lanes / together);
    const auto elements = [](const T* x) { return reinterpret_cast<const Element*>(x); };
    parallel_shrinking(n, lanes, rows_per_piece(k), [&](long begin, long end) {
        // Of the columns from j on, `first`, first + apart, ...
        const auto multiply = [&](long j, long first, Vector<C>(&dots)[rows][lanes]) {
            const Element* from[together];
            for (long c = 0; c < together; ++c) {
                const long column = j + first + c * apart;
                from[c] = elements(b.at(0, column < end ? column : j));
            }
            const bool more =
                j + first + together * apart < end;  // the next piece may be another's
            const long ahead = more ? elements(b.at(0, together * apart)) - elements(b.data) : 0;
            Vector<C> sum[rows][together] = {};
            const auto add = [&](long p, const auto& get) __attribute__((always_inline)) {
                Vector<C> column[together];
#pragma GCC unroll 8
                for (long c = 0; c < together; ++c) column[c] = get(from[c] + p);
#pragma GCC unroll 8
                for (long r = 0; r < rows; ++r) {
                    const Vector<C> left = get(elements(a.at(r < m ? r : 0, 0)) + p);
#pragma GCC unroll 8
                    for (long c = 0; c < together; ++c) {
                        if constexpr (layout == Layout::pairs)
                            sum[r][c] = add_pairs(sum[r][c], left, column[c]);
                        else
                            sum[r][c] += left * column[c];
                    }
                }
            };
            long p = 0;
            for (; p + lanes <= depth; p += lanes) {
                for (long c = 0; c < together; ++c) __builtin_prefetch(from[c] + p + ahead);
                add(p, [](const Element* x) { return load(x); });
            }
            if (p < depth) add(p, [&](const Element* x) { return load_part(x, depth - p, C(0)); });
            for (long r = 0; r < rows; ++r)
                for (long c = 0; c < together; ++c) dots[r][first + c * apart] = sum[r][c];
        };
        for (long j = begin; j < end; j += lanes) {
            const long count = end - j < lanes ? end - j : lanes;
            Vector<C> dots[rows][lanes] = {};
            for (long first = 0; first < count; first += together * apart)
                for (long i = first; i < first + apart; ++i) multiply(j, i, dots);
            for (long r = 0; r < m; ++r) {
                turn_blocks<C, 1>(dots[r]);
                Vector<C> total = dots[r][0];
                for (long i = 1; i < lanes; ++i) total += dots[r][i];
                C sums[lanes];
                store(sums, total);
                finish(sums, lanes, {}, 1, count, {out.at(r, j), out.row, 1}, epilogue.at(r, j));
            }
        }
    });
}

// B's rows contiguous: a tile of the result in registers, one row of B after another.
template <typename T, typename O, long rows>
void few_rows_by_tiles(long m, long n, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
                       const Epilogue<O, Compute<T>>& epilogue) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    constexpr long vectors = rows == 1 ? 8 : rows <= 2 ? 4 : 2;
    constexpr long width = vectors * lanes;
    parallel_ranges(n, columns_at_once(k, width), [&](long begin, long end) {
        for (long j = begin; j < end; j += width) {
            const long left = end - j;
            Vector<C> sum[rows][vectors] = {};
            for (long p = 0; p < k; ++p) {
                Vector<C> row[vectors];
#pragma GCC unroll 8
                for (long v = 0; v < vectors; ++v) {
                    const long rest = left - v * lanes;
                    row[v] = rest >= lanes ? load(b.at(p, j + v * lanes))
                             : rest > 0    ? load_part(b.at(p, j + v * lanes), rest, C(0))
                                           : Vector<C>{};
                }
#pragma GCC unroll 8
                for (long r = 0; r < rows; ++r) {
                    const C factor = load_one(a.at(r < m ? r : 0, p));
#pragma GCC unroll 8
                    for (long v = 0; v < vectors; ++v) sum[r][v] += factor * row[v];
                }
            }
            for (long r = 0; r < m; ++r)
                finish(reinterpret_cast<const C*>(sum[r]), width, {}, 1,
                       left < width ? left : width, {out.at(r, j), out.row, 1}, epilogue.at(r, j));
        }
    });
}

template <typename T, typename O, long rows>
void few_rows(long m, long n, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
              const Epilogue<O, Compute<T>>& epilogue) {
    if constexpr (rows > 1)
        if (m <= rows / 2) return few_rows<T, O, rows / 2>(m, n, k, a, b, out, epilogue);
    if (b.row == 1 && a.column == 1) {
        if constexpr (kPaired<T>)
            if (k % 2 == 0)
                return few_rows_by_dots<T, O, rows, Layout::pairs>(m, n, k, a, b, out, epilogue);
        few_rows_by_dots<T, O, rows, Layout::any>(m, n, k, a, b, out, epilogue);
    } else
        few_rows_by_tiles<T, O, rows>(m, n, k, a, b, out, epilogue);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
