// The matrix product, with whatever strides, and what follows it fused into its last write:
//
//     out = alpha A B (+ out)  + bias + residual          A (m, k), B (k, n), out (m, n)
//
// Large products are made of tiles, as in BLIS (Van Zee and van de Geijn 2015). A is copied into
// panels of kRows rows and B into panels of kColumns columns, each cut along the middle dimension
// into pieces of at most kDepth, in the order in which the micro-kernel reads them; this is also
// where transposed operands are turned, and where bfloat16 becomes float. The micro-kernel keeps a
// tile of kRows x kColumns sums in registers and adds one outer product to it for every k:
//
//     tile[i][j] += a[i] * b[j]                           a: one column of A, b: one row of B
//
// so that 2 kRows kColumns operations read kRows + kColumns numbers, from a near cache. A thread takes a block of tiles, whose sums stay in its second-level cache from one piece
// of the middle dimension to the next. Blocks follow from the problem alone.
//
// With few rows there is nothing to gain from packing: all of B is read once, whatever is done, and
// memory decides. `few_rows` reads B where it is.

#pragma once

#include <utility>

#include "../array.h"
#include "../threads.h"
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
template <typename C>
constexpr long kColumns = 2 * Lanes<C>::count;

// The depth of a piece: a panel of B then has 48 KiB. Half of that would stay in a first-level cache
// of 32 KiB, but twice as many passes over the sums cost more than reading it from the second.
template <typename C>
constexpr long kDepth = 48 * 1024 / (kColumns<C> * sizeof(C));

// Panels in a block: what a thread works on at a time, in the second-level cache.
constexpr long kBlockRows = 20;
constexpr long kBlockColumns = 8;
constexpr long kLeastBlocks = 16;

// What is packed at a time holds at most so many numbers.
constexpr long kLargestPacked = 1 << 23;

template <typename O, typename C>
struct Epilogue {
    C alpha = 1;
    bool accumulate = false;
    const O* bias = nullptr;            // (n,), contiguous
    Matrix<const O> residual{};         // (m, n), column stride 1, or null

    bool plain() const { return alpha == 1 && !accumulate && !bias && !residual.data; }
};

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
        for (; p + lanes <= depth; p += lanes) {
            for (long begin = 0; begin < full; begin += lanes) {
                Vector<C> v[lanes];
#pragma GCC unroll 16
                for (long i = 0; i < lanes; ++i)
                    v[i] = begin + i < width ? load(from.at(begin + i, p)) : Vector<C>{};
                turn_blocks<C, 1>(v);
                const long part = full - begin < lanes ? full - begin : lanes;
#pragma GCC unroll 16
                for (long j = 0; j < lanes; ++j) {
                    C* row = to + (p + j) * full + begin;
                    if (part == lanes)
                        store(row, v[j]);
                    else
                        __builtin_memcpy(row, &v[j], part * sizeof(C));
                }
            }
        }
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
    for (long p = 0; p < depth; ++p) {
        const T* source = from.at(0, p);
        for (long panel = 0; panel < panels; ++panel, source += full) {
            C* row = to + (panel * depth + p) * full;
            long i = 0;
#pragma GCC unroll 4
            for (; i + lanes <= full; i += lanes) store(row + i, load(source + i));
#pragma GCC unroll 16
            for (; i < full; ++i) row[i] = load_one(source + i);
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

// to[i * stride + j] (+)= row i, column j of A B, of one panel of each, by `depth` outer products.
template <typename C, long rows, long vectors, bool add>
[[gnu::noinline]] void micro_kernel(long depth, const C* a, const C* b, C* to, long stride) {
    constexpr long lanes = Lanes<C>::count;
    Vector<C> sum[rows][vectors];
#pragma GCC unroll 16
    for (long i = 0; i < rows; ++i) {
        __builtin_prefetch(to + i * stride, 1);
        __builtin_prefetch(to + i * stride + (vectors * lanes - 1), 1);
#pragma GCC unroll 2
        for (long v = 0; v < vectors; ++v) sum[i][v] = Vector<C>{};
    }
    for (long p = 0; p < depth; ++p, a += kRows, b += kColumns<C>) {
        Vector<C> row[vectors];
#pragma GCC unroll 2
        for (long v = 0; v < vectors; ++v) row[v] = load(b + v * lanes);
        __builtin_prefetch(a + 16 * kRows);
#pragma GCC unroll 16
        for (long i = 0; i < rows; ++i) {
            Vector<C> factor = broadcast(a[i]);
            in_register<C>(factor);  // or the compiler reads it from memory for each vector
#pragma GCC unroll 2
            for (long v = 0; v < vectors; ++v) sum[i][v] += factor * row[v];
        }
    }
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
        micro_kernel<C, kRows, 1, add>(depth, a, b, to, stride);
    else if (rows > kRows / 2)
        micro_kernel<C, kRows, 2, add>(depth, a, b, to, stride);
    else
        micro_kernel<C, kRows / 2, 2, add>(depth, a, b, to, stride);
}

// What is left to do with the sums of a tile: a block of `rows` rows and `columns` columns, with
// `stride` from one row to the next, goes through the epilogue to its place (i, j) in out.
template <typename O, typename C>
void finish(const C* sums, long stride, long rows, long columns, long i, long j, Matrix<O> out,
            const Epilogue<O, C> epilogue) {
    constexpr long lanes = Lanes<C>::count;
    for (long r = 0; r < rows; ++r, ++i, sums += stride) {
        O* to = out.at(i, j);
        const O* bias = epilogue.bias + j;
        const O* residual = epilogue.residual.at(i, j);
        const auto value = [&](Vector<C> x, const auto& get) {
            x *= epilogue.alpha;
            if (epilogue.accumulate) x += get(to);
            if (epilogue.bias) x += get(bias);
            if (epilogue.residual.data) x += get(residual);
            return x;
        };
        long v = 0;
        for (; v + lanes <= columns; v += lanes)
            store(to + v, value(load(sums + v), [&](const O* x) { return load(x + v); }));
        if (const long rest = columns - v; rest > 0)
            store_part(to + v,
                       value(load_part(sums + v, rest, C(0)),
                             [&](const O* x) { return load_part(x + v, rest, C(0)); }),
                       rest);
    }
}

// A and B in panels. B's are packed when they are needed where only one block of rows needs them.
template <typename T>
struct Packing {
    using C = Compute<T>;
    Matrix<const T> a, b;
    long m, n, k, depth;
    C* packed_a;
    C* packed_b;  // null: not in advance
    C* a_sums;    // (m,): the sums of A's rows; or null

    long row_panels() const { return ceil_div(m, kRows); }
    long column_panels() const { return ceil_div(n, kColumns<C>); }
    long depth_at(long p) const { return k - p < depth ? k - p : depth; }

    // Where the piece that begins at p of a panel is.
    C* a_piece(long panel, long p) const {
        return packed_a + (p * row_panels() + panel * depth_at(p)) * kRows;
    }
    C* b_piece(long panel, long p) const {
        return packed_b + (p * column_panels() + panel * depth_at(p)) * kColumns<C>;
    }

    // The panels [begin, end) of A, and what their rows sum up to.
    void pack_a(long begin, long end) const {
        const long i = begin * kRows, rows = (end * kRows < m ? end * kRows : m) - i;
        for (long p = 0; p < k; p += depth) {
            C* to = a_piece(begin, p);
            pack_rows<T, C, kRows>({a.at(i, p), a.row, a.column}, rows, depth_at(p), to);
            if (a_sums)
                for (long panel = begin; panel < end; ++panel, to += depth_at(p) * kRows)
                    add_sums(panel, to, depth_at(p), p == 0);
        }
    }
    void add_sums(long panel, const C* packed, long count, bool first) const {
        C sums[kRows] = {};
        for (long p = 0; p < count; ++p, packed += kRows)
            for (long r = 0; r < kRows; ++r) sums[r] += packed[r];
        for (long r = 0; r < kRows && panel * kRows + r < m; ++r) {
            C& to = a_sums[panel * kRows + r];
            to = first ? sums[r] : to + sums[r];
        }
    }
    void pack_b(long panel, long panels, long p, C* to) const {
        constexpr long columns = kColumns<C>;
        const long j = panel * columns;
        pack_rows<T, C, columns>({b.at(p, j), b.column, b.row},
                                 n - j < panels * columns ? n - j : panels * columns, depth_at(p),
                                 to);
    }

    void pack_all() const {
        constexpr long group = 8;  // panels
        const long a_groups = ceil_div(row_panels(), group);
        const long b_groups = packed_b ? ceil_div(column_panels(), group) : 0;
        parallel_ranges(a_groups + b_groups, rows_per_piece(k * kRows * group),
                        [&](long begin, long end) {
            for (long i = begin; i < end; ++i) {
                if (i < a_groups) {
                    const long stop = (i + 1) * group;
                    pack_a(i * group, stop < row_panels() ? stop : row_panels());
                    continue;
                }
                const long panel = (i - a_groups) * group;
                for (long p = 0; p < k; p += depth) pack_b(panel, group, p, b_piece(panel, p));
            }
        });
    }
};

struct Block {
    long first_row, last_row, first_column, last_column;  // in panels
};

template <typename T, typename O>
void block_product(const Packing<T>& panels, Block block, Matrix<O> out,
                   const Epilogue<O, Compute<T>>& epilogue) {
    using C = Compute<T>;
    constexpr long columns = kColumns<C>;
    const long width = (block.last_column - block.first_column) * columns;
    const long height = (block.last_row - block.first_row) * kRows;
    const bool plain = __is_same(O, C) && epilogue.plain();
    // Sums are kept apart while there are more to come, and for an epilogue.
    C* sums = panels.depth < panels.k ? scratch<C>(2, height * width) : nullptr;
    C* own_piece = panels.packed_b ? nullptr : scratch<C>(3, columns * panels.depth);
    alignas(64) C tile[kRows * columns];
    for (long p = 0; p == 0 || p < panels.k; p += panels.depth) {
        const long depth = panels.depth_at(p);
        const bool last = p + panels.depth >= panels.k;
        for (long across = block.first_column; across < block.last_column; ++across) {
            const long j = across * columns;
            const long columns_left = panels.n - j < columns ? panels.n - j : columns;
            if (own_piece) panels.pack_b(across, 1, p, own_piece);
            const C* b = own_piece ? own_piece : panels.b_piece(across, p);
            for (long down = block.first_row; down < block.last_row; ++down) {
                const long i = down * kRows;
                const long rows = panels.m - i < kRows ? panels.m - i : kRows;
                const C* a = panels.a_piece(down, p);
                C* to = tile;
                long stride = columns;
                if (sums) {
                    stride = width;
                    to = sums + (down - block.first_row) * kRows * width +
                         (across - block.first_column) * columns;
                }
                if (p > 0) {
                    compute_tile<C, true>(rows, columns_left, depth, a, b, to, stride);
                } else if (last && plain && rows == kRows && columns_left == columns) {
                    if constexpr (__is_same(O, C))
                        compute_tile<C, false>(rows, columns, depth, a, b, out.at(i, j), out.row);
                    continue;
                } else {
                    compute_tile<C, false>(rows, columns_left, depth, a, b, to, stride);
                }
                if (last) finish(to, stride, rows, columns_left, i, j, out, epilogue);
            }
        }
    }
}

template <typename T, typename O>
void packed_product(long m, long n, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
                    const Epilogue<O, Compute<T>>& epilogue, Compute<T>* a_sums) {
    using C = Compute<T>;
    const long depth = k ? ceil_div(k, ceil_div(k, kDepth<C>)) : 1;
    Packing<T> panels{a, b, m, n, k, depth, nullptr, nullptr, a_sums};
    const long row_panels = panels.row_panels(), column_panels = panels.column_panels();

    long block_rows = row_panels <= 2 * kBlockRows ? row_panels : kBlockRows;
    long block_columns = kBlockColumns;
    const auto blocks = [&] {
        return ceil_div(row_panels, block_rows) * ceil_div(column_panels, block_columns);
    };
    while (blocks() < kLeastBlocks && block_rows * block_columns * k > (1 << 12)) {
        if (block_columns > 1 && block_columns * 3 >= block_rows)
            block_columns = ceil_div(block_columns, 2);
        else
            block_rows = ceil_div(block_rows, 2);
    }
    const long blocks_down = ceil_div(row_panels, block_rows);
    const long blocks_across = ceil_div(column_panels, block_columns);

    panels.packed_a = scratch<C>(0, row_panels * kRows * k + 64);
    if (blocks_down > 1) panels.packed_b = scratch<C>(1, column_panels * kColumns<C> * k + 64);
    panels.pack_all();
    parallel_for(blocks_down * blocks_across, [&](long number) {
        const long down = number % blocks_down * block_rows;
        const long across = number / blocks_down * block_columns;
        const long last_row = down + block_rows, last_column = across + block_columns;
        block_product(panels,
                      Block{down, last_row < row_panels ? last_row : row_panels, across,
                            last_column < column_panels ? last_column : column_panels},
                      out, epilogue);
    });
}

// A few rows of A (m, at most `rows`) against all of B, which is read where it is.
constexpr long kFewRows = 8;

// B's columns contiguous along k: every element of the result is a product of two vectors.
template <typename T, typename O, long rows>
void few_rows_by_dots(long m, long n, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
                      const Epilogue<O, Compute<T>>& epilogue) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    constexpr long together = rows <= 4 ? 4 : 2;
    parallel_ranges(n, ceil_div(rows_per_piece(k), together) * together,
                    [&](long begin, long end) {
        for (long j = begin; j < end; j += together) {
            const long count = end - j < together ? end - j : together;
            const T* from[together];
            for (long c = 0; c < together; ++c) from[c] = b.at(0, j + (c < count ? c : 0));
            Vector<C> sum[rows][together] = {};
            long p = 0;
            for (; p + lanes <= k; p += lanes) {
                Vector<C> column[together];
#pragma GCC unroll 4
                for (long c = 0; c < together; ++c) column[c] = load(from[c] + p);
#pragma GCC unroll 8
                for (long r = 0; r < rows; ++r) {
                    const Vector<C> left = load(a.at(r < m ? r : 0, p));
#pragma GCC unroll 4
                    for (long c = 0; c < together; ++c) sum[r][c] += left * column[c];
                }
            }
            for (long r = 0; r < m; ++r)
                for (long c = 0; c < count; ++c) {
                    C total = sum_of_lanes<C>(sum[r][c]);
                    for (long q = p; q < k; ++q)
                        total += load_one(a.at(r, q)) * load_one(from[c] + q);
                    finish(&total, 1, 1, 1, r, j + c, out, epilogue);
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
    parallel_ranges(n, ceil_div(rows_per_piece(k), width) * width, [&](long begin, long end) {
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
                finish(reinterpret_cast<const C*>(sum[r]), width, 1, left < width ? left : width, r,
                       j, out, epilogue);
        }
    });
}

template <typename T, typename O, long rows = kFewRows>
void few_rows(long m, long n, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
              const Epilogue<O, Compute<T>>& epilogue) {
    if constexpr (rows > 1)
        if (m <= rows / 2) return few_rows<T, O, rows / 2>(m, n, k, a, b, out, epilogue);
    if (b.row == 1 && a.column == 1)
        few_rows_by_dots<T, O, rows>(m, n, k, a, b, out, epilogue);
    else
        few_rows_by_tiles<T, O, rows>(m, n, k, a, b, out, epilogue);
}

// out's column stride must be 1, and residual's. a_sums (m,), if it is not null, receives the sums of
// A's rows, which come with packing it.
template <typename T, typename O>
void product(long m, long n, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
             Epilogue<O, Compute<T>> epilogue, Compute<T>* a_sums = nullptr) {
    if (!a_sums && m <= kFewRows && ((b.row == 1 && a.column == 1) || b.column == 1))
        return few_rows<T, O>(m, n, k, a, b, out, epilogue);
    const long most = k < kLargestPacked / 512 ? kLargestPacked / (k + 1) / 256 * 256 : 256;
    for (long i = 0; i < m; i += most)
        for (long j = 0; j < n; j += most) {
            Epilogue<O, Compute<T>> part = epilogue;
            if (part.bias) part.bias += j;
            if (part.residual.data) part.residual.data = part.residual.at(i, j);
            packed_product<T, O>(m - i < most ? m - i : most, n - j < most ? n - j : most, k,
                                 {a.at(i, 0), a.row, a.column}, {b.at(0, j), b.row, b.column},
                                 {out.at(i, j), out.row, 1}, part,
                                 a_sums && j == 0 ? a_sums + i : nullptr);
        }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
