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
// Some processors multiply pairs of bfloat16, twice as many at once. Panels may then hold pairs, of k
// and k + 1, and all is as if they were numbers, half as many.

#pragma once

#include <type_traits>
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

constexpr long ceil_div(long a, long b) {
    return (a + b - 1) / b;
}
constexpr long round_up(long a, long b) {
    return ceil_div(a, b) * b;
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

#if MT_VECTOR_BYTES == 64
template <typename Element>
using Vector64 [[gnu::vector_size(64)]] = Element;

// 16 bytes from each of `rows` / 4 places, `apart` bytes from each other: a quarter of a vector each.
template <long rows>
[[gnu::always_inline]] inline __m512i quarters(const char* from, long apart) {
    const auto place = [=](long i) __attribute__((always_inline)) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * apart));
    };
    __m512i out = _mm512_maskz_broadcast_i32x4(0xffff, place(0));
    out = _mm512_mask_broadcast_i32x4(out, 0x00f0, place(1));
    out = _mm512_mask_broadcast_i32x4(out, 0x0f00, place(2));
    if constexpr (rows == 16) out = _mm512_mask_broadcast_i32x4(out, 0xf000, place(3));
    return out;
}

// In each quarter, the first (or second) halves of both, an element of one after one of the other.
template <typename Element, bool second>
[[gnu::always_inline]] inline __m512i interleave(__m512i a, __m512i b) {
    constexpr int count = 64 / sizeof(Element), part = count / 4;
    return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
        return (__m512i)__builtin_shufflevector(
            (Vector64<Element>)a, (Vector64<Element>)b,
            (i / part * part + (second ? part / 2 : 0) + i % part / 2 + i % 2 * count)...);
    }(std::make_integer_sequence<int, count>());
}

// `out` gets a and b interleaved, 2 * pairs vectors: those of a[0] and b[0], then a[1] and b[1], ...
template <typename Element, long pairs>
[[gnu::always_inline]] inline void interleave_all(const __m512i* a, const __m512i* b, __m512i* out) {
#pragma GCC unroll 4
    for (long i = 0; i < pairs; ++i) {
        out[2 * i] = interleave<Element, false>(a[i], b[i]);
        out[2 * i + 1] = interleave<Element, true>(a[i], b[i]);
    }
}

// What vectors of a quarter from each row hold, turned: 4 columns of floats, or 8 of bfloat16, which
// are floats with 16 zeros below. row[i] holds rows i, i + 4, i + 8, ...
template <typename T>
[[gnu::always_inline]] inline void turn_quarters(const __m512i* row, __m512i* columns) {
    constexpr bool half = __is_same(T, bfloat16);
    using Once = std::conditional_t<half, uint16_t, uint32_t>;
    using Twice = std::conditional_t<half, uint32_t, uint64_t>;
    __m512i low[2], high[2];
    interleave_all<Once, 1>(row, row + 1, low);
    interleave_all<Once, 1>(row + 2, row + 3, high);
    if constexpr (half) {
        constexpr __m512i zeros[4] = {};
        __m512i two[4];
        interleave_all<Twice, 2>(low, high, two);
        interleave_all<uint16_t, 4>(zeros, two, columns);
    } else {
        interleave_all<Twice, 2>(low, high, columns);
    }
}

// `rows` rows of `from`, turned; to[p * full] receives column p, and the rows `full` further on are
// fetched. Quarters of a vector, each from a row of its own, take half as many shuffles as whole rows.
template <typename T, long rows, long full>
void turn_rows_by_quarters(Matrix<const T> from, long depth, float* to) {
    constexpr long at_once = 16 / sizeof(T);
    const long row = from.row * static_cast<long>(sizeof(T)), apart = 4 * row;
    const char* source[4];
#pragma GCC unroll 4
    for (long i = 0; i < 4; ++i) source[i] = reinterpret_cast<const char*>(from.at(i, 0));
    const char* ahead = source[0] + full * row;
    for (long p = 0; p < depth; p += at_once) {
        __m512i lines[4], columns[at_once];
        // Each time another four rows' lines: there are four times to a line.
        const char* later = ahead + p / at_once % 4 * apart;
#pragma GCC unroll 4
        for (long i = 0; i < 4; ++i) {
            lines[i] = quarters<rows>(source[i], apart);
            __builtin_prefetch(later);
            later += row;
            source[i] += 16;
            asm("" : "+r"(source[i]));  // or the compiler keeps a pointer for every row, and spills
        }
        ahead += 16;
        turn_quarters<T>(lines, columns);
#pragma GCC unroll 8
        for (long j = 0; j < at_once; ++j, to += full) {
            if constexpr (rows == 16)
                _mm512_storeu_si512(to, columns[j]);
            else
                _mm512_mask_storeu_epi32(to, (1u << rows) - 1, columns[j]);
        }
    }
}
#endif

// `rows` rows of a panel, at most a vector's lanes, `depth` a multiple of those; if not `all` of them
// are there, zeros stand for those beyond `width`.
template <typename T, typename C, long full, long rows, bool all>
void turn_rows(Matrix<const T> from, long width, long depth, C* to) {
    constexpr long lanes = Lanes<C>::count;
#if MT_VECTOR_BYTES == 64
    if constexpr (__is_same(C, float) && all)
        return turn_rows_by_quarters<T, rows, full>(from, depth, to);
#endif
    for (long p = 0; p < depth; p += lanes) {
        Vector<C> v[lanes];
#pragma GCC unroll 16
        for (long i = 0; i < lanes; ++i) {
            v[i] = i < (all ? rows : width) ? load(from.at(i, p)) : Vector<C>{};
            if (i < rows) __builtin_prefetch(from.at(i + full, p));
        }
        turn_blocks<C, 1>(v);
#pragma GCC unroll 16
        for (long j = 0; j < lanes; ++j)
            __builtin_memcpy(to + (p + j) * full, &v[j], rows * sizeof(C));  // no call: of a known length
    }
}

// One panel: `width` of at most `full` rows of `from` (rows, depth), turned to (depth, full) and
// filled up with zeros.
template <typename T, typename C, long full>
void pack_panel(Matrix<const T> from, long width, long depth, C* to) {
    constexpr long lanes = Lanes<C>::count, group = full < lanes ? full : lanes;
    long p = 0;
    if (from.column == 1) {
        p = depth / lanes * lanes;
        const auto turn = [&](auto count, long begin) {
            constexpr long rows = count;
            const Matrix<const T> some{from.at(begin, 0), from.row, 1};
            if (width >= begin + rows)
                turn_rows<T, C, full, rows, true>(some, rows, p, to + begin);
            else
                turn_rows<T, C, full, rows, false>(some, width - begin, p, to + begin);
        };
        long begin = 0;
        for (; begin + group <= full; begin += group)
            turn(std::integral_constant<long, group>(), begin);
        if constexpr (full % group) turn(std::integral_constant<long, full % group>(), begin);
    }
    for (; p < depth; ++p)
        for (long i = 0; i < full; ++i)
            to[p * full + i] = i < width ? load_one(from.at(i, p)) : C(0);
}

// Four columns of three quarters of a vector each, as three whole vectors.
template <typename C>
[[gnu::always_inline]] inline void store_quarters(const Vector<C> (&columns)[4], C* to) {
    constexpr long lanes = Lanes<C>::count, full = lanes / 4 * 3;
    const auto put = [&]<long... i>(auto vector, std::integer_sequence<long, i...>)
                         __attribute__((always_inline)) {
        constexpr long column = vector, begin = lanes / 4 * vector;  // lane i is number begin + i of it
        store(to + vector * lanes,
              (Vector<C>)__builtin_shufflevector(
                  columns[column], columns[column + 1],
                  (begin + i < full ? begin + i : lanes + begin + i - full)...));
    };
    put(std::integral_constant<long, 0>(), std::make_integer_sequence<long, lanes>());
    put(std::integral_constant<long, 1>(), std::make_integer_sequence<long, lanes>());
    put(std::integral_constant<long, 2>(), std::make_integer_sequence<long, lanes>());
}

// The same of (rows, depth) with consecutive elements of a column next to each other: a few panels
// at a time, so that more than a cache line is read from each place.
template <typename T, typename C, long full>
void pack_columns(Matrix<const T> from, long rows, long depth, C* to) {
    constexpr long lanes = Lanes<C>::count;
    constexpr long ahead = 16, line = 64 / sizeof(T);
    const long whole = rows / full * full;
    long p = 0;
    // With parts of lines written one at a time, (768, 512) turned by (768, 128) took 3% longer.
    if constexpr (kMasked && 4 * full == 3 * lanes && __is_same(T, C))
        for (; p + 4 <= depth; p += 4) {
            for (long i = 0; i < rows; i += line)
                for (long j = 0; j < 4; ++j)
                    __builtin_prefetch(from.at(i, p + j + ahead < depth ? p + j + ahead : p));
            C* row = to + p * full;
            for (long panel = 0; panel < rows; panel += full, row += depth * full) {
                Vector<C> columns[4];
                const long some = rows - panel < full ? rows - panel : full;
#pragma GCC unroll 4
                for (long j = 0; j < 4; ++j)
                    columns[j] = load_part(from.at(panel, p + j), some, C(0));
                store_quarters<C>(columns, row);
            }
        }
    for (; p < depth; ++p) {
        const T* source = from.at(0, p);
        const T* later = from.at(0, p + ahead < depth ? p + ahead : p);
        for (long i = 0; i < rows; i += line) __builtin_prefetch(later + i);
        C* row = to + p * full;
        for (long panel = 0; panel < whole; panel += full, source += full, row += depth * full) {
            long i = 0;
#pragma GCC unroll 4
            for (; i + lanes <= full; i += lanes) store(row + i, load(source + i));
            if constexpr (sizeof(T) == sizeof(C)) {
                __builtin_memcpy(row + i, source + i, full % lanes * sizeof(C));
            } else if constexpr (kMasked && full % lanes) {
                store_part(row + i, load_part(source + i, full % lanes, C(0)), full % lanes);
            } else {
#pragma GCC unroll 16
                for (; i < full; ++i) row[i] = load_one(source + i);
            }
        }
        for (long i = 0; whole < rows && i < full; i += lanes) {
            const long left = rows - whole - i, wide = full - i;
            const long some = left < 0 ? 0 : left < lanes ? left : lanes;
            const Vector<C> x = some == lanes ? load(source + i) : load_part(source + i, some, C(0));
            wide >= lanes ? store(row + i, x) : store_part(row + i, x, wide);
        }
    }
}

// Copy (rows, depth) into panels of `full` rows.
template <typename T, typename C, long full>
void pack_rows(Matrix<const T> from, long rows, long depth, C* to) {
    if (from.row == 1) return pack_columns<T, C, full>(from, rows, depth, to);
    for (long i = 0; i < rows; i += full)
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

// Where the micro-kernel's operands lie: in the matrices, perhaps; in panels; in panels of pairs; in
// panels for tile registers, or for those in pieces.
enum class Layout { any, panels, pairs, tiles, pieces };

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

// to[i * stride + j] = sum, or with `add` sum and keep[j] to[i * stride + j].
template <typename C, long rows, long vectors, Layout layout, bool add>
[[gnu::noinline]] void write_sums(long depth, const Operands<C>& from, C* to, long stride,
                                  const Vector<C>* keep) {
    constexpr long lanes = Lanes<C>::count;
    Vector<C> sum[rows][vectors];
    outer_products<C, rows, vectors, layout>(depth, from, sum, [](long) {});
#pragma GCC unroll 16
    for (long i = 0; i < rows; ++i, to += stride)
#pragma GCC unroll 2
        for (long v = 0; v < vectors; ++v) {
            if constexpr (add) sum[i][v] += load(to + v * lanes) * keep[v];
            store(to + v * lanes, sum[i][v]);
        }
}

// The tile of up to kRows rows and two vectors of columns. Rows up to the next third of kRows, and
// columns up to a whole vector, are read and written.
template <typename C, bool add, Layout layout = Layout::any>
void compute_tile(long rows, long columns, long depth, const Operands<C>& from, C* to, long stride,
                  const Vector<C>* keep) {
    const auto run = [&](auto height) {
        if (columns <= Lanes<C>::count)
            write_sums<C, height, 1, layout, add>(depth, from, to, stride, keep);
        else
            write_sums<C, height, 2, layout, add>(depth, from, to, stride, keep);
    };
    if (rows <= kThird)
        run(std::integral_constant<long, kThird>());
    else if (rows <= 2 * kThird)
        run(std::integral_constant<long, 2 * kThird>());
    else
        run(std::integral_constant<long, kRows>());
}
template <typename C, Layout layout = Layout::any>
void set_tile(long rows, long columns, long depth, const Operands<C>& from, C* to, long stride) {
    compute_tile<C, false, layout>(rows, columns, depth, from, to, stride, nullptr);
}
template <typename C, Layout layout = Layout::any>
void add_tile(long rows, long columns, long depth, const Operands<C>& from, C* to, long stride) {
    const Vector<C> all[2] = {broadcast<C>(1), broadcast<C>(1)};
    compute_tile<C, true, layout>(rows, columns, depth, from, to, stride, all);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
