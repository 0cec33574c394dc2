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

struct Range {
    long begin, end;
};

// [0, count) in pieces that begin at multiples of `step` and grow shorter, down to `least`: so threads
// have few jumps, and all end at nearly the same time. Each round takes three quarters of what is left,
// a piece for each thread. How many threads there are decides about the pieces: only for loops whose
// results do not depend on those.
struct Shrinking {
    long count, step, least;
    long threads = num_threads();

    long pieces() const {
        long found = 0;
        in_rounds([&](long begin, long length) {
            const long here = ceil_div(count - begin, length);
            found += here < threads ? here : threads;
            return false;
        });
        return found;
    }
    Range piece(long number) const {
        Range found{};
        in_rounds([&](long begin, long length) {
            found.begin = begin + number * length;
            found.end = found.begin + length < count ? found.begin + length : count;
            return (number -= threads) < 0;
        });
        return found;
    }

    // stop(begin, length) for each round.
    template <typename Stop>
    void in_rounds(const Stop& stop) const {
        for (long begin = 0; begin < count;) {
            long length = 3 * (count - begin) / (4 * threads);
            if (length < least) length = least;
            length = ceil_div(length, step) * step;
            if (stop(begin, length)) return;
            begin += threads * length;
        }
    }
};

// The columns [begin, end), which are contiguous, are read from so many places at once, each of which
// goes on for as long as it can: from eight memory gives a third more than from one.
struct Places {
    long begin, end, apart;

    Places(Range columns, long count, long step) : begin(columns.begin), end(columns.end) {
        apart = ceil_div(end - begin, count);
        if (apart > step) apart = ceil_div(apart, step) * step;
    }
    long first(long place) const { return begin + place * apart; }
    long end_of(long place) const { return first(place + 1) < end ? first(place + 1) : end; }
};

// How many places, for so many rows of the result.
template <typename T>
constexpr long places_of(long rows) {
    return Lanes<Compute<T>>::count < 4 ? 2 : rows <= 2 ? 8 : rows <= 4 ? 4 : 2;
}

// Some columns of the result where B's are contiguous along k: every element is a product of two
// vectors. With Layout::pairs those are of pairs, and k is even. The processor fetches ahead for each
// of the places; being told as well, of what is so far ahead, gives another tenth.
template <typename T, typename O, long rows, Layout layout>
void dot_columns(Range columns, long m, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
                 const Epilogue<O, Compute<T>>& epilogue) {
    using C = Compute<T>;
    using Element = std::conditional_t<layout == Layout::pairs, Pair, T>;
    constexpr long lanes = Lanes<C>::count, together = places_of<T>(rows);
    constexpr long ahead = 1024 / sizeof(Element);
    const long depth = k * static_cast<long>(sizeof(T)) / static_cast<long>(sizeof(Element));
    const Places places(columns, together, lanes);
    const auto elements = [](const T* x) { return reinterpret_cast<const Element*>(x); };
    // Column j of each place, counted from its first, as the dots of this number.
    const auto multiply = [&](long j, long number, Vector<C>(&dots)[together][rows][lanes]) {
        const Element* from[together];
        for (long c = 0; c < together; ++c) {
            const long column = places.first(c) + j;
            from[c] = elements(b.at(0, column < places.end_of(c) ? column : places.begin + j));
        }
        Vector<C> sum[rows][together] = {};
        const auto add = [&](long p, const auto& get) __attribute__((always_inline)) {
            Vector<C> row[rows];
#pragma GCC unroll 8
            for (long r = 0; r < rows; ++r) row[r] = get(elements(a.at(r < m ? r : 0, 0)) + p);
#pragma GCC unroll 8
            for (long c = 0; c < together; ++c) {
                const Vector<C> column = get(from[c] + p);
#pragma GCC unroll 8
                for (long r = 0; r < rows; ++r) {
                    if constexpr (layout == Layout::pairs)
                        sum[r][c] = add_pairs(sum[r][c], row[r], column);
                    else
                        sum[r][c] += row[r] * column;
                }
            }
        };
        long p = 0;
        for (; p + lanes <= depth; p += lanes) {
#pragma GCC unroll 8
            for (long c = 0; c < together; ++c) __builtin_prefetch(from[c] + p + ahead);
            add(p, [](const Element* x) { return load(x); });
        }
        if (p < depth) add(p, [&](const Element* x) { return load_part(x, depth - p, C(0)); });
        for (long r = 0; r < rows; ++r)
            for (long c = 0; c < together; ++c) dots[c][r][number] = sum[r][c];
    };
    for (long j = 0; j < places.apart; j += lanes) {
        const long count = places.apart - j < lanes ? places.apart - j : lanes;
        Vector<C> dots[together][rows][lanes];
        for (long i = 0; i < count; ++i) multiply(j + i, i, dots);
        for (long c = 0; c < together; ++c) {
            const long column = places.first(c) + j, left = places.end_of(c) - column;
            if (left <= 0) break;
            for (long r = 0; r < m; ++r) {
                for (long i = count; i < lanes; ++i) dots[c][r][i] = Vector<C>{};
                turn_blocks<C, 1>(dots[c][r]);
                Vector<C> total = dots[c][r][0];
                for (long i = 1; i < lanes; ++i) total += dots[c][r][i];
                C sums[lanes];
                store(sums, total);
                finish(sums, lanes, {}, 1, left < count ? left : count,
                       {out.at(r, column), out.row, 1}, epilogue.at(r, column));
            }
        }
    }
}

template <typename T, typename O, long rows = kFewRows>
void dot_columns(Range columns, long m, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
                 const Epilogue<O, Compute<T>>& epilogue) {
    if constexpr (rows > 1)
        if (m <= rows / 2) return dot_columns<T, O, rows / 2>(columns, m, k, a, b, out, epilogue);
    if constexpr (kPaired<T>)
        if (k % 2 == 0)
            return dot_columns<T, O, rows, Layout::pairs>(columns, m, k, a, b, out, epilogue);
    dot_columns<T, O, rows, Layout::any>(columns, m, k, a, b, out, epilogue);
}

// What threads take at a time of n such columns.
template <typename T>
Shrinking pieces_of_columns(long n, long k) {
    return {n, Lanes<Compute<T>>::count, rows_per_piece(k)};
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
    if (b.row == 1 && a.column == 1) {
        const Shrinking pieces = pieces_of_columns<T>(n, k);
        return parallel_one_after_another(pieces.pieces(), [&](long i) {
            dot_columns<T, O>(pieces.piece(i), m, k, a, b, out, epilogue);
        });
    }
    if constexpr (rows > 1)
        if (m <= rows / 2) return few_rows<T, O, rows / 2>(m, n, k, a, b, out, epilogue);
    few_rows_by_tiles<T, O, rows>(m, n, k, a, b, out, epilogue);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
