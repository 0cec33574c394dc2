// Tiles of a matrix product: how operands are packed, and the micro-kernel.
//
// A is copied into panels of kRows rows and B into panels of kColumns columns, in the order in which
// the micro-kernel reads them; this is also where transposed operands are turned, and where bfloat16
// becomes float. The micro-kernel keeps a tile of kRows x kColumns sums in registers and adds one
// outer product to it for every k:
//
//     tile[i][j] += a[i] * b[j]                           a: one column of A, b: one row of B
//
// so that 2 kRows kColumns operations read kRows + kColumns numbers, from a near cache. Source: BLIS,
// Van Zee and van de Geijn 2015.
//
// Some processors multiply pairs of bfloat16, twice as many at once. Panels then hold pairs, of k and
// k + 1, and all is as if they were numbers, half as many.

#pragma once

#include <utility>

#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

// A matrix somewhere in memory: element (i, j) at data[i * row + j * column].
template <typename T>
struct Matrix {
    T* data;
    long row;
    long column;

    T* at(long i, long j) const { return data + i * row + j * column; }
    Matrix transposed() const { return {data, column, row}; }
};

// The register tile: 24 of AVX-512's 32 registers hold sums, 12 of the 16 that the others have.
#if MT_VECTOR_BYTES == 64
constexpr long kRows = 12;
#elif MT_VECTOR_BYTES == 32
constexpr long kRows = 6;
#else
constexpr long kRows = 4;
#endif
// Smaller tiles, where a matrix ends, have one or two of these.
constexpr long kThird = kRows / 3;
template <typename C>
constexpr long kColumns = 2 * Lanes<C>::count;

inline long ceil_div(long a, long b) {
    return (a + b - 1) / b;
}

// Exchange between two rows of a matrix what is on the wrong side of its diagonal blocks: of every
// 2 * step columns, the second half of `low` and the first half of `high`.
template <typename C, long step, long... i>
[[gnu::always_inline]] inline void exchange(Vector<C>& low, Vector<C>& high, std::integer_sequence<long, i...>) {
    constexpr long lanes = sizeof...(i);
    const Vector<C> first =
        __builtin_shufflevector(low, high, (i / step % 2 ? lanes + i - step : i)...);
    high = __builtin_shufflevector(low, high, (i / step % 2 ? lanes + i : i + step)...);
    low = first;
}

template <typename C, long step>
[[gnu::always_inline]] inline void turn_blocks(Vector<C>* rows) {
    constexpr long lanes = Lanes<C>::count;
    if constexpr (step < lanes) {
#pragma GCC unroll 16
        for (long i = 0; i < lanes; ++i)
            if (i / step % 2 == 0)
                exchange<C, step>(rows[i], rows[i + step],
                                  std::make_integer_sequence<long, lanes>());
        turn_blocks<C, 2 * step>(rows);
    }
}

// One panel: `width` of at most `full` rows of `from` (rows, depth), turned to (depth, full) and
// filled up with zeros.
template <typename T, typename C, long full>
void pack_panel(Matrix<const T> from, long width, long depth, C* to) {
    constexpr long lanes = Lanes<C>::count;
    long p = 0;
    if (from.column == 1) {
        const auto turn = [&](auto all) __attribute__((always_inline)) {
            for (; p + lanes <= depth; p += lanes) {
#pragma GCC unroll 2
                for (long begin = 0; begin < full; begin += lanes) {
                    Vector<C> v[lanes];
#pragma GCC unroll 16
                    for (long i = 0; i < lanes; ++i) {
                        const bool some = begin + i < (all ? full : width);
                        v[i] = some ? load(from.at(begin + i, p)) : Vector<C>{};
                        if (begin + i < full) __builtin_prefetch(from.at(begin + i + full, p));
                    }
                    turn_blocks<C, 1>(v);
#pragma GCC unroll 16
                    for (long j = 0; j < lanes; ++j) {
                        C* row = to + (p + j) * full + begin;
                        if (begin + lanes <= full)
                            store(row, v[j]);
                        else  // of a length that the compiler knows: no call
                            __builtin_memcpy(row, &v[j], full % lanes * sizeof(C));
                    }
                }
            }
        };
        width < full ? turn(std::false_type()) : turn(std::true_type());
    }
    for (; p < depth; ++p)
        for (long i = 0; i < full; ++i)
            to[p * full + i] = i < width ? load_one(from.at(i, p)) : C(0);
}

// The same of (rows, depth) with consecutive elements of a column next to each other: a few panels
// at a time, so that more than a cache line is read from each place.
template <typename T, typename C, long full>
void pack_columns(Matrix<const T> from, long panels, long depth, C* to) {
    constexpr long lanes = Lanes<C>::count;
    constexpr long ahead = 16, line = 64 / sizeof(T);
    for (long p = 0; p < depth; ++p) {
        const T* source = from.at(0, p);
        const T* later = from.at(0, p + ahead < depth ? p + ahead : p);
        for (long i = 0; i < panels * full; i += line) __builtin_prefetch(later + i);
        for (long panel = 0; panel < panels; ++panel, source += full) {
            C* row = to + (panel * depth + p) * full;
            long i = 0;
#pragma GCC unroll 4
            for (; i + lanes <= full; i += lanes) store(row + i, load(source + i));
            if constexpr (__is_same(T, C)) {
                __builtin_memcpy(row + i, source + i, full % lanes * sizeof(C));
            } else {
#pragma GCC unroll 16
                for (; i < full; ++i) row[i] = load_one(source + i);
            }
        }
    }
}

// Copy (rows, depth) into panels of `full` rows.
template <typename T, typename C, long full>
void pack_rows(Matrix<const T> from, long rows, long depth, C* to) {
    long i = 0;
    if (from.row == 1) {
        i = rows / full * full;
        pack_columns<T, C, full>(from, rows / full, depth, to);
    }
    for (; i < rows; i += full)
        pack_panel<T, C, full>({from.at(i, 0), from.row, from.column},
                               rows - i < full ? rows - i : full, depth, to + i * depth);
}

// The same with pairs along the depth, in panels of half of it, rounded up.
template <long full>
void pack_pairs(Matrix<const bfloat16> from, long rows, long depth, float* to) {
    constexpr long lanes = Lanes<float>::count;
    if (from.column == 1 && from.row % 2 == 0 && depth % 2 == 0)
        return pack_rows<Pair, float, full>(
            {reinterpret_cast<const Pair*>(from.data), from.row / 2, 1}, rows, depth / 2, to);
    for (long i = 0; i < rows; i += full)
        for (long p = 0; p < depth; p += 2, to += full) {
            const long width = rows - i < full ? rows - i : full;
            const bool both = p + 1 < depth;
            long j = 0;
            if (from.row == 1 && both)
                for (; j + lanes <= width; j += lanes) {
                    Vector<bfloat16> first, second;
                    __builtin_memcpy(&first, from.at(i + j, p), sizeof first);
                    __builtin_memcpy(&second, from.at(i + j, p + 1), sizeof second);
                    store(to + j, pairs(first, second));
                }
            for (; j < full; ++j) {
                const bool some = j < width;
                const Pair pair{some ? *from.at(i + j, p) : bfloat16{},
                                some && both ? *from.at(i + j, p + 1) : bfloat16{}};
                to[j] = load_one(&pair);
            }
        }
}

// What the micro-kernel reads: A's element (i, p) at a[i * a_row + p * a_step], B's (p, j) at
// b[p * b_step + j]; `last` columns of B's last vector are there to be read, if that is not whole.
template <typename C>
struct Operands {
    const C* a;
    long a_row, a_step;
    const C* b;
    long b_step;
    long last = 0;

    static Operands panels(const C* a, const C* b) { return {a, 1, kRows, b, kColumns<C>}; }
};

// Where the micro-kernel's operands lie: in the matrices, perhaps; in panels; in panels of pairs.
enum class Layout { any, panels, pairs };

// sum = A B, of `rows` rows and `vectors` vectors of columns.
// `touch(i)` is called for every row near the end, to fetch what the sums will be stored to: a few
// lines at a time, since the processor waits when it has ten or so on their way.
template <typename C, long rows, long vectors, Layout layout, bool masked = false, typename Touch>
[[gnu::always_inline]] inline void outer_products(long depth, const Operands<C>& from,
                                                  Vector<C> (&sum)[rows][vectors],
                                                  const Touch& touch) {
    constexpr long lanes = Lanes<C>::count;
    constexpr long ahead = 8, steps_for_row = 4;
    constexpr bool packed = layout != Layout::any;
    const long a_row = packed ? 1 : from.a_row, a_step = packed ? kRows : from.a_step;
    const long b_step = packed ? kColumns<C> : from.b_step;
    const C* b = from.b;
    const C* a[(rows + 2) / 3];  // three rows from each: the processor multiplies by 1 and 2 alone
#pragma GCC unroll 4
    for (long i = 0; i < rows; i += 3) a[i / 3] = from.a + i * a_row;
#pragma GCC unroll 16
    for (long i = 0; i < rows; ++i)
#pragma GCC unroll 2
        for (long v = 0; v < vectors; ++v) sum[i][v] = Vector<C>{};
    const auto steps = [&](long count) __attribute__((always_inline)) {
        for (; count > 0; --count, b += b_step) {
            Vector<C> row[vectors];
#pragma GCC unroll 2
            for (long v = 0; v < vectors; ++v) {
                row[v] = masked && v == vectors - 1 ? load_part(b + v * lanes, from.last, C(0))
                                                    : load(b + v * lanes);
                __builtin_prefetch(b + ahead * b_step + v * lanes);
            }
#pragma GCC unroll 16
            for (long i = 0; i < rows; ++i) {
                Vector<C> factor = broadcast(a[i / 3][i % 3 * a_row]);
                in_register<C>(factor);  // or the compiler reads it from memory for each vector
#pragma GCC unroll 2
                for (long v = 0; v < vectors; ++v) {
                    if constexpr (layout == Layout::pairs)
                        sum[i][v] = add_pairs(sum[i][v], factor, row[v]);
                    else
                        sum[i][v] += factor * row[v];
                }
            }
#pragma GCC unroll 4
            for (long i = 0; i < rows; i += 3) a[i / 3] += a_step;
        }
    };
    if (depth >= rows * steps_for_row) {
        for (long i = 0; i < rows; ++i) {
            touch(i);
            steps(steps_for_row);
        }
        steps(depth - rows * steps_for_row);
    } else {
        steps(depth);
    }
}

// to[i * stride + j] (+)= the product of two panels.
template <typename C, long rows, long vectors, bool add>
[[gnu::noinline]] void panel_product(long depth, const C* a, const C* b, C* to, long stride) {
    constexpr long lanes = Lanes<C>::count;
    Vector<C> sum[rows][vectors];
    outer_products<C, rows, vectors, Layout::panels>(depth, Operands<C>::panels(a, b), sum, [](long) {});
#pragma GCC unroll 16
    for (long i = 0; i < rows; ++i, to += stride)
#pragma GCC unroll 2
        for (long v = 0; v < vectors; ++v) {
            if constexpr (add) sum[i][v] += load(to + v * lanes);
            store(to + v * lanes, sum[i][v]);
        }
}

// The tile of up to kRows rows and two vectors of columns; panels hold zeros where the matrices
// end, so that more than is asked for may be written.
template <typename C, bool add>
void compute_tile(long rows, long columns, long depth, const C* a, const C* b, C* to, long stride) {
    if (columns <= Lanes<C>::count)
        panel_product<C, kRows, 1, add>(depth, a, b, to, stride);
    else if (rows > kRows / 2)
        panel_product<C, kRows, 2, add>(depth, a, b, to, stride);
    else
        panel_product<C, kRows / 2, 2, add>(depth, a, b, to, stride);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
