// The matrix product, with whatever strides, and what follows it fused into its last write:
//
//     out = f(alpha A B + out + bias) + residual          A (m, k), B (k, n), out (m, n)
//
// Large products are made of the tiles of tiles.h, tile_registers.h or pieces.h. The middle dimension is
// cut into pieces of at most kDepth (kTileSteps, kPiecesSteps), whose products are added up. The smaller operand is
// packed whole: by each thread for itself if it is small, else by all together. A thread takes a group
// of panels of the larger one and packs them, a piece at a time, into its second-level cache, where they
// are used at once. Pieces and groups follow from the problem alone.
//
// Small products read the matrices where they lie: packing would cost as much as computing. So does
// one of few columns with A's rows. Where a matrix ends a mask says what is read and written.

#pragma once

#include "../array.h"
#include "../threads.h"
#include "epilogue.h"
#include "pieces.h"
#include "tile_registers.h"
#include "tiles.h"

namespace minitorch::MT_INSTRUCTION_SET {

// The depth of a piece: a panel of B then has 64 KiB. A quarter of that would stay in a first-level
// cache of 32 KiB, but four times as many passes over the sums cost more than reading it from the
// second.
template <typename C>
constexpr long kDepth = 64 * 1024 / (kColumns<C> * sizeof(C));

// Whether pairs of T can be multiplied. Few rows, for which memory decides, always are, if k is even.
template <typename T>
constexpr bool kPaired = false;
#if defined(__AVX512BF16__) || defined(MT_PAIRS)
template <>
constexpr bool kPaired<bfloat16> = true;
#endif

// Whether panels hold pairs, where they can. AMD's processors (from Zen 4 on) begin the product of two
// vectors of pairs as often as that of two of numbers, which is twice the work. On Intel's (Sapphire
// Rapids) products by pairs were measured to take 1.3 to 2 times as long as those by numbers.
inline bool pairs_pay() {
#if defined(__AVX512BF16__) && !defined(MT_PAIRS)
    return __builtin_cpu_is("amd");
#else
    return true;
#endif
}

// Panels that a thread packs at a time, at most; the number of groups is a multiple of the last.
constexpr long kGroupRows = 20;
constexpr long kGroupColumns = 8;
constexpr long kLeastGroups = 8;
// And of what is packed whole.
constexpr long kPackedAtOnce = 8;
// Bytes of B's panels that stay in the second-level cache beside a group of A's.
constexpr long kNearBytes = 256 * 1024;

// What is packed whole holds at most so many numbers.
constexpr long kLargestPacked = 1 << 23;

// What is packed whole and takes at most so many bytes, each thread packs for itself. That takes less
// time than to fetch what another core has just packed, and nobody waits: on two threads of a Sapphire
// Rapids a product of 128 in all directions went from 48 us to 34, (768, 128) by (128, 128) from 150 to
// 135, and of 512 in all directions (1.05 MB) from 1600 to 1493.
constexpr long kOwnBytes = 1 << 21;

// Products of at most so many multiplications are computed where the matrices lie.
constexpr long kSmall = 1 << 18;
// Numbers are cut into pieces only where each that is read or written takes part in so many
// multiplications, on average, and not where more than an eighth of the tiles would be empty.
constexpr long kLeastUses = 44;
inline bool pieces_pay(long m, long n, long k) {
    return m * n * k >= kLeastUses * (m * k + k * n + m * n) &&
           7 * round_up(m, 16) * round_up(n, 16) <= 8 * m * n;
}
// With so few columns rows of A are not packed.
constexpr long kNarrow = 256;

template <typename T, typename O, Layout panels>
struct Product {
    using C = Compute<T>;
    static constexpr bool in_pieces = panels == Layout::pieces;
    static constexpr bool in_registers = panels == Layout::tiles || in_pieces;
    // Whether out can hold sums that are not complete.
    static constexpr bool in_place = __is_same(O, C) && !in_registers;
    // Those of a panel, the k of a step along it, the numbers' room that these take, and that after it.
    static constexpr long panel_rows = in_registers ? kTileRows : kRows;
    static constexpr long columns = in_registers ? kTileRows : kColumns<C>;
    static constexpr long together = in_registers ? kTileDepth : panels == Layout::pairs ? 2 : 1;
    static constexpr long breadth = in_registers ? (in_pieces ? kPieces : 1) * kTileDepth / 2 : 1;
    static constexpr long after = in_pieces ? kMagnitude : 0;
    struct None {};
    using Registers = std::conditional_t<in_registers, TileRegisters, None>;

    long m, n, k, depth;  // depth: a multiple of `together`, or more than k
    Matrix<const T> a, b;
    Matrix<O> out;
    Epilogue<O, C> epilogue;
    C* a_sums;  // (m,): receives the sums of A's rows; or null

    long row_panels() const { return ceil_div(m, panel_rows); }
    long column_panels() const { return ceil_div(n, columns); }
    long depth_at(long p) const { return k - p < depth ? k - p : depth; }
    long steps_at(long p) const { return ceil_div(depth_at(p), together); }
    // Of a panel, in numbers.
    long size_at(long p, long width) const { return steps_at(p) * breadth * width + after; }

    // The tile at (i, j), of the piece that begins at p. `sums` is where those of earlier pieces are
    // kept, if not in out.
    template <Layout layout>
    void tile(long i, long j, long p, const Operands<C>& from, Matrix<C> sums) const {
        const long rows = m - i < panel_rows ? m - i : panel_rows;
        const long width = n - j < columns ? n - j : columns;
        if (i - j - width >= epilogue.wanted - 1) return;
        const long count = layout == Layout::any ? depth_at(p) : steps_at(p);
        const bool last = p + depth >= k;
        const Matrix<O> to{out.at(i, j), out.row, 1};
        const auto rest = [&] {
            Epilogue<O, C> part;
            if (last) part = epilogue.at(i, j);
            part.alpha = epilogue.alpha;
            if constexpr (in_place) part.accumulate = false;
            return part;
        };
        if constexpr (layout == Layout::tiles || layout == Layout::pieces)
            if (last)
                for (long r = 0; r < rows; ++r) {
                    __builtin_prefetch(to.at(r, 0), 1);
                    __builtin_prefetch(to.at(r, width - 1), 1);
                }
        if constexpr (layout == Layout::tiles) {
            alignas(64) C buffer[kTileRows * kTileRows];
            if (!sums.data) sums = {buffer, kTileRows, 1};
            multiply_panels(rows, width, count, from.a, from.b, sums.data, sums.row, p > 0);
            if (last) finish<O, C>(sums.data, sums.row, {}, rows, width, to, rest());
            return;
        }
        if constexpr (layout == Layout::pieces) {
            alignas(64) C here[kTileRows * kTileRows];
            if (fits_in_pieces(magnitude_of(from.a, count), magnitude_of(from.b, count)))
                multiply_pieces(rows, width, count, from.a, from.b, here);
            else
                multiply_whole(i, j, p, here);
            Matrix<const C> before{};
            if (p > 0) before = {sums.data, sums.row, 1};
            if (last)
                finish<O, C>(here, kTileRows, before, rows, width, to, rest());
            else
                finish<C, C>(here, kTileRows, before, rows, width, sums, {epilogue.alpha});
            return;
        }
        Matrix<const C> old{};
        if constexpr (in_place) {
            if (p > 0 || epilogue.accumulate) old = {to.data, to.row, 1};
        } else {
            if (p > 0) old = {sums.data, sums.row, 1};
            if (!last)
                return multiply_part<C, layout>(rows, width, count, from,
                                                {sums.data, sums.row, epilogue.alpha, old});
        }
        if (!last || (epilogue.linear() && (in_place || !epilogue.accumulate))) {
            // Field by field: a copy of an Epilogue, read sooner in wide pieces than it is written in
            // narrow ones, waits until the sums of the tile before are in the cache.
            Target<O, C> target{to.data, to.row, epilogue.alpha, old};
            if (last && epilogue.bias) target.bias = epilogue.bias + j;
            if (last && epilogue.residual.data)
                target.residual = {epilogue.residual.at(i, j), epilogue.residual.row, 1};
            if (rows == kRows && width == columns)
                return multiply_tile<O, C, kRows, 2, layout>(count, from, target);
            if constexpr (kMasked && layout == Layout::any)
                if (from.last)
                    return multiply_edge<O, C, layout, true>(rows, width, count, from, target);
            return multiply_edge<O, C, layout>(rows, width, count, from, target);
        }
        alignas(64) C buffer[kRows * columns];
        multiply_part<C, layout>(rows, width, count, from, {buffer, columns});
        finish(buffer, columns, old, rows, width, to, rest());
    }

    // In `to` (32, 32), the product of a tile's numbers, which do not fit in pieces.
    void multiply_whole(long i, long j, long p, C* to) const {
        constexpr long height = round_up(kTileRows, kRows), step = kTileDepth;
        alignas(64) C rows_of_a[height * step], columns_of_b[columns * step], tile[height * columns] = {};
        for (long end = p + depth_at(p); p < end; p += step) {
            const long deep = end - p < step ? end - p : step;
            pack_rows<T, C, kRows>({a.at(i, p), a.row, a.column}, m - i < kTileRows ? m - i : kTileRows,
                                   deep, rows_of_a);
            pack_rows<T, C, kColumns<C>>({b.at(p, j), b.column, b.row},
                                         n - j < columns ? n - j : columns, deep, columns_of_b);
            for (long r = 0; r < height && r < m - i; r += kRows)
                for (long c = 0; c < columns && c < n - j; c += kColumns<C>)
                    add_tile<C, Layout::panels>(
                        kRows, kColumns<C>, deep,
                        Operands<C>::panels(rows_of_a + r * deep, columns_of_b + c * deep),
                        tile + r * columns + c, columns);
        }
        __builtin_memcpy(to, tile, sizeof(C) * kTileRows * columns);
    }

    // `count` panels of A, or of B, from a number on, of the piece that begins at p.
    template <Layout layout>
    void pack_a(long panel, long count, long p, C* to) const {
        const long i = panel * panel_rows;
        const Matrix<const T> from{a.at(i, p), a.row, a.column};
        const long rows = m - i < count * panel_rows ? m - i : count * panel_rows;
        if constexpr (layout == Layout::tiles) {
            pack_tile_rows(from, rows, depth_at(p), to);
        } else if constexpr (layout == Layout::pieces) {
            pack_pieces<false>(from, rows, depth_at(p), to);
        } else {
            pack<layout, kRows>(from, rows, depth_at(p), to);
        }
        if (a_sums)
            for (long last = panel + count; panel < last; ++panel, to += size_at(p, panel_rows))
                add_sums<layout>(panel, to, p);
    }
    template <Layout layout>
    void pack_b(long panel, long count, long p, C* to) const {
        const long j = panel * columns;
        pack<layout, columns>({b.at(p, j), b.column, b.row},
                              n - j < count * columns ? n - j : count * columns, depth_at(p), to);
    }
    template <Layout layout, long full>
    static void pack(Matrix<const T> from, long rows, long depth, C* to) {
        if constexpr (layout == Layout::tiles)
            pack_tile_columns(from, rows, depth, to);
        else if constexpr (layout == Layout::pieces)
            pack_pieces<true>(from, rows, depth, to);
        else if constexpr (layout == Layout::pairs)
            pack_pairs<full>(from, rows, depth, to);
        else
            pack_rows<T, C, full>(from, rows, depth, to);
    }
    template <Layout layout>
    void add_sums(long panel, const C* packed, long p) const {
        C sums[panel_rows] = {};
        if constexpr (layout == Layout::tiles)
            add_tile_rows(steps_at(p), packed, sums);
        else if constexpr (layout == Layout::pieces)
            add_sums_of_pieces(panel, packed, p, sums);
        else
            for (long step = 0; step < steps_at(p); ++step, packed += kRows)
                for (long r = 0; r < kRows; ++r) {
                    if constexpr (layout == Layout::pairs) {
                        const Pair pair = __builtin_bit_cast(Pair, packed[r]);
                        sums[r] += widen(pair.first) + widen(pair.second);
                    } else {
                        sums[r] += packed[r];
                    }
                }
        for (long r = 0; r < panel_rows && panel * panel_rows + r < m; ++r) {
            C& to = a_sums[panel * panel_rows + r];
            to = p == 0 ? sums[r] : to + sums[r];
        }
    }

    void add_sums_of_pieces(long panel, const C* packed, long p, C* sums) const {
        const long steps = steps_at(p);
        if (fits_in_pieces(magnitude_of(packed, steps), 1))
            for (long i = kPieces - 1; i >= 0; --i)
                add_tile_rows(steps, packed + i * kTileStep, sums, kPiecesStep);
        else
            for (long r = 0, i = panel * panel_rows; r < panel_rows && i + r < m; ++r)
                for (long j = p; j < p + depth_at(p); ++j) sums[r] += *a.at(i + r, j);
    }

    // Of an operand that is packed whole: where the piece of a panel is that begins at p.
    C* piece(C* whole, long count, long width, long panel, long p) const {
        return whole + count * (p / together * breadth * width + p / depth * after) +
               panel * size_at(p, width);
    }
    // Of so many panels packed whole.
    long whole_size(long count, long width) const {
        return count * (ceil_div(k, together) * breadth * width + ceil_div(k, depth) * after);
    }
    // All pieces of its panels from `begin` on, a few panels at a time.
    template <typename Pack>
    void pack_whole(C* whole, long count, long width, long begin, long end, const Pack& pack) const {
        for (long p = 0; p < k; p += depth)
            for (long panel = begin; panel < end; panel += kPackedAtOnce)
                pack(panel, end - panel < kPackedAtOnce ? end - panel : kPackedAtOnce, p,
                     piece(whole, count, width, panel, p));
    }

    // body(begin, end, first) over `count` panels in groups of `most` at most, as many as several threads
    // can share evenly, and all of one size, give or take a panel.
    template <typename Body>
    static void in_groups(long count, long most, const Body& body) {
        const long shared = ceil_div(ceil_div(count, most), kLeastGroups) * kLeastGroups;
        const long groups = shared < count ? shared : count;
        parallel_for(groups, [&](long i, bool first) {
            body(i * count / groups, (i + 1) * count / groups, first);
        });
    }
    // The same as body(begin, end, whole), with the other operand, of so many panels, packed whole.
    template <typename Pack, typename Body>
    void in_groups(long count, long most, long others, long width, const Pack& pack,
                   const Body& body) const {
        const long room = whole_size(others, width) + 64;
        const bool own = room * long(sizeof(C)) <= kOwnBytes && !a_sums;  // which are added up once
        C* const shared = own ? nullptr : scratch<C>(0, room);
        if (shared)
            parallel_ranges(ceil_div(others, kPackedAtOnce), rows_per_piece(k * width * kPackedAtOnce),
                            [&](long begin, long end) {
                end *= kPackedAtOnce;
                pack_whole(shared, others, width, begin * kPackedAtOnce, end < others ? end : others,
                           pack);
            });
        in_groups(count, most, [&](long begin, long end, bool first) {
            C* const whole = own ? scratch<C>(0, room) : shared;
            if (own && first) pack_whole(whole, others, width, 0, others, pack);
            body(begin, end, whole);
        });
    }
    // Room for the sums of so many tiles, if out cannot hold them, and where one of them has its own.
    C* kept_sums(long tiles) const {
        return !in_place && depth < k ? scratch<C>(2, tiles * panel_rows * columns) : nullptr;
    }
    static Matrix<C> kept(C* sums, long tile) {
        return {sums ? sums + tile * panel_rows * columns : nullptr, columns, 1};
    }

    // A packed whole, B by groups of columns.
    void by_columns() const {
        const long down = row_panels(), across = column_panels();
        const auto pack = [&](auto... which) { pack_a<panels>(which...); };
        in_groups(across, kGroupColumns, down, panel_rows, pack, [&](long begin, long end, C* whole) {
            [[maybe_unused]] const Registers registers;
            C* group = scratch<C>(1, (end - begin) * size_at(0, columns) + 64);
            const long width = end - begin;
            C* sums = kept_sums(down * width);
            for (long p = 0; p == 0 || p < k; p += depth) {
                pack_b<panels>(begin, width, p, group);
                for (long i = 0; i < down; ++i)
                    for (long j = 0; j < width; ++j)
                        tile<panels>(i * panel_rows, (begin + j) * columns, p,
                                     Operands<C>::panels(piece(whole, down, panel_rows, i, p),
                                                         group + j * size_at(p, columns)),
                                     kept(sums, i * width + j));
            }
        });
    }

    // B packed whole, A by groups of rows.
    void by_rows() const {
        const long down = row_panels(), across = column_panels();
        const long near_bytes = (depth / together * breadth * columns + after) * long(sizeof(C));
        const long near_panels = near_bytes < kNearBytes ? kNearBytes / near_bytes : 1;
        const long most = kGroupRows / (panel_rows / kRows);
        const auto pack = [&](auto... which) { pack_b<panels>(which...); };
        in_groups(down, most, across, columns, pack, [&](long begin, long end, C* whole) {
            [[maybe_unused]] const Registers registers;
            C* group = scratch<C>(1, (end - begin) * size_at(0, panel_rows) + 64);
            const long height = end - begin;
            C* sums = kept_sums(height * across);
            for (long p = 0; p == 0 || p < k; p += depth) {
                pack_a<panels>(begin, height, p, group);
                for (long near = 0; near < across; near += near_panels)
                    for (long i = 0; i < height; ++i)
                        for (long j = near; j < across && j < near + near_panels; ++j)
                            tile<panels>((begin + i) * panel_rows, j * columns, p,
                                         Operands<C>::panels(group + i * size_at(p, panel_rows),
                                                             piece(whole, across, columns, j, p)),
                                         kept(sums, i * across + j));
            }
        });
    }

    // One panel of rows, A's elements read where they lie if the registers' rows are there; else
    // from `edge`, packed. b_of(j, from) says where B's panel of this number is.
    template <typename B>
    void rows_of_tiles(long panel, long p, C* edge, const B& b_of) const {
        const long i = panel * kRows, rows = m - i < kRows ? m - i : kRows;
        Operands<C> from{edge, 1, kRows, nullptr, 0};
        bool lies = false;
        if constexpr (__is_same(T, C)) {
            lies = rows == kRows || (epilogue.linear() && (rows == kThird || rows == 2 * kThird));
            if (lies) from.a = a.at(i, p), from.a_row = a.row, from.a_step = a.column;
        }
        if (!lies) pack_a<Layout::any>(panel, 1, p, edge);
        for (long j = 0; j < column_panels(); ++j) {
            b_of(j, from);
            tile<Layout::any>(i, j * columns, p, from, {});
        }
    }

    // On one thread, of one piece. Panels of B are packed only where it ends, or where its elements do
    // not lie as they are read.
    void unpacked() const {
        const bool lies = __is_same(T, C) && b.column == 1;
        const long whole = !lies ? 0 : kMasked && epilogue.linear() ? column_panels() : n / columns;
        const long packed = column_panels() - whole;
        C* panels_of_b = scratch<C>(1, packed * columns * k + 64);
        if (packed) pack_b<Layout::any>(whole, packed, 0, panels_of_b);
        C* edge = scratch<C>(0, kRows * k + 64);
        for (long panel = 0; panel < row_panels(); ++panel)
            rows_of_tiles(panel, 0, edge, [&](long j, Operands<C>& from) {
                if constexpr (__is_same(T, C))
                    if (j < whole) {
                        const long width = n - j * columns;
                        from.b = b.at(0, j * columns), from.b_step = b.row;
                        from.last = width >= columns ? 0 : (width - 1) % Lanes<C>::count + 1;
                        return;
                    }
                from.b = panels_of_b + (j - whole) * columns * k, from.b_step = columns;
            });
    }

    // B packed whole, A read where it lies: few columns are too few uses of a packed panel.
    void by_rows_in_place() const {
        const long down = row_panels(), across = column_panels();
        const auto pack = [&](auto... which) { pack_b<Layout::any>(which...); };
        in_groups(down, 1, across, columns, pack, [&](long begin, long end, C* whole) {
            C* edge = scratch<C>(1, kRows * depth + 64);
            for (long p = 0; p == 0 || p < k; p += depth)
                for (long panel = begin; panel < end; ++panel)
                    rows_of_tiles(panel, p, edge, [&](long j, Operands<C>& from) {
                        from.b = piece(whole, across, columns, j, p), from.b_step = columns;
                    });
        });
    }
};

// With so few rows memory decides, and B is read once, where it is: few_rows.h.
constexpr long kFewRows = 8;
template <typename T, typename O, long rows = kFewRows>
void few_rows(long m, long n, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
              const Epilogue<O, Compute<T>>& epilogue);

// Whether a matrix of one column is as good as a row.
template <typename T>
bool lies_along(Matrix<T> x) {
    return !x.data || x.row == 1;
}

// A product longer than kLong is the sum of parts of kPart: what is packed whole stays in the caches then,
// and takes little memory. (256, 50257) by (50257, 768) was a seventh faster in float, a third in bfloat16.
constexpr long kLong = 1 << 13;
constexpr long kPart = 1 << 11;

// A product whose operands are packed.
template <Layout panels, typename T, typename O>
void in_panels(long m, long n, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
               const Epilogue<O, Compute<T>>& epilogue, Compute<T>* a_sums) {
    using P = Product<T, O, panels>;
    if constexpr (__is_same(O, Compute<T>))  // out can hold sums that are not complete
        if (k > kLong && !a_sums && !epilogue.residual.data) {
            Epilogue<O, O> plain, last = epilogue;
            plain.alpha = epilogue.alpha, plain.accumulate = epilogue.accumulate, last.accumulate = true;
            for (long p = 0; p < k; p += kPart, plain.accumulate = true) {
                const bool more = p + kPart < k;
                in_panels<panels, T, O>(m, n, more ? kPart : k - p, {a.at(0, p), a.row, a.column},
                                        {b.at(p, 0), b.row, b.column}, out, more ? plain : last, nullptr);
            }
            return;
        }
    constexpr long together = P::together;
    constexpr long most_steps = P::in_pieces      ? kPiecesSteps
                                : P::in_registers ? kTileSteps
                                                  : kDepth<Compute<T>>;
    const long pieces = ceil_div(k, together * most_steps);
    const long depth = k ? ceil_div(k, together * pieces) * together : together;
    const long most = k < kLargestPacked / 512 ? kLargestPacked / (k + 1) / 256 * 256 : 256;
    if constexpr (panels == Layout::panels && __is_same(T, Compute<T>)) {
        constexpr long page = 4096 / sizeof(T);  // rows so far apart displace each other in the cache
        if (!a_sums && a.column == 1 && a.row % page && n <= kNarrow)
            return P{m, n, k, depth, a, b, out, epilogue, nullptr}.by_rows_in_place();
    }
    if (m <= n) {
        for (long i = 0; i < m; i += most)
            P{m - i < most ? m - i : most, n, k, depth, {a.at(i, 0), a.row, a.column}, b,
              {out.at(i, 0), out.row, 1}, epilogue.at(i, 0), a_sums ? a_sums + i : nullptr}
                .by_columns();
    } else {
        for (long j = 0; j < n; j += most)
            P{m, n - j < most ? n - j : most, k, depth, a, {b.at(0, j), b.row, b.column},
              {out.at(0, j), out.row, 1}, epilogue.at(0, j), j ? nullptr : a_sums}
                .by_rows();
    }
}

// out's column stride must be 1, and those of the epilogue's matrices. a_sums (m,), if it is not
// null, receives the sums of A's rows, which come with packing it.
template <typename T, typename O>
void product(long m, long n, long k, Matrix<const T> a, Matrix<const T> b, Matrix<O> out,
             const Epilogue<O, Compute<T>>& epilogue, Compute<T>* a_sums = nullptr) {
    if (!a_sums && m <= kFewRows && ((b.row == 1 && a.column == 1) || b.column == 1))
        return few_rows<T, O>(m, n, k, a, b, out, epilogue);
    if (!a_sums && n == 1 && out.row == 1 && !epilogue.bias && lies_along(epilogue.residual) &&
        lies_along(epilogue.before) && (a.row == 1 || (a.column == 1 && b.row == 1)))
        return few_rows<T, O>(1, m, k, b.transposed(), a.transposed(), out, epilogue);
    if (!a_sums && m * n * k <= kSmall)
        return Product<T, O, Layout::panels>{m, n, k, k + 1, a, b, out, epilogue, nullptr}.unpacked();
    if constexpr (kTileRegisters && __is_same(T, bfloat16))
        if (tile_registers_serve())
            return in_panels<Layout::tiles>(m, n, k, a, b, out, epilogue, a_sums);
    if constexpr (kTileRegisters && __is_same(T, float))
        if (tile_registers_serve() && pieces_pay(m, n, k))
            return in_panels<Layout::pieces>(m, n, k, a, b, out, epilogue, a_sums);
    if constexpr (kPaired<T>)
        if (pairs_pay()) return in_panels<Layout::pairs>(m, n, k, a, b, out, epilogue, a_sums);
    in_panels<Layout::panels>(m, n, k, a, b, out, epilogue, a_sums);
}

// Compiled once, in matmul.cpp: it is the longest of all to compile.
#define PRODUCT(T, O)                                                                             \
    template void product<T, O>(long, long, long, Matrix<const T>, Matrix<const T>, Matrix<O>,    \
                                const Epilogue<O, Compute<T>>&, Compute<T>*)
extern PRODUCT(float, float);
extern PRODUCT(double, double);
extern PRODUCT(bfloat16, bfloat16);
extern PRODUCT(bfloat16, float);

}  // namespace minitorch::MT_INSTRUCTION_SET
