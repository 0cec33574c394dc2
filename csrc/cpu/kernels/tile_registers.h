// Registers that hold a tile of a matrix: AMX, on Intel's processors from Sapphire Rapids on. There
// are eight, of 16 rows of 64 bytes, and one instruction multiplies two of them:
//
//     C (16, 16) += A (16, 32) B (32, 16)                A and B bfloat16, C float32
//
// A lies row by row. A row of B holds pairs, of k and k + 1, one for each column. Numbers too small to
// be normal count as zero. Source: Intel's Software Developer's Manual, volume 2, TDPBF16PS.
//
// Operands are read from panels of 32 rows of A, or 32 columns of B. A panel goes along the depth in
// steps of 32, of which A's and B's have kTileStep floats' room each, a pair in a float's:
//
//     A's panel (steps, 32 rows, 16 pairs)               B's panel (steps, 16 pairs, 32 columns)
//
// Products are of 2 by 2 tiles, four for four tiles that are read. To ask for what comes next between
// products, and not beside the reading, was measured to make it a quarter to a third faster when
// the processor is busy, and no slower when it is not.

#pragma once

#include "tiles.h"

#if defined(__AMX_BF16__)
#include "../processor.h"
#endif

namespace minitorch::MT_INSTRUCTION_SET {

constexpr long kTileRows = 32;   // of a panel of A, and columns of one of B
constexpr long kTileDepth = 32;  // of a step
constexpr long kTileStep = kTileRows * kTileDepth / 2;
// Of a piece of the depth, at most. Panels of a quarter of that would stay in the first-level cache, and
// sums would be read and written four times as often: that cost more.
constexpr long kTileSteps = 64;

#if defined(__AMX_BF16__)

constexpr bool kTileRegisters = true;

inline bool tile_registers_serve() {
    return uses_tile_registers();
}

// While one of these lives, its thread may multiply tiles.
struct TileRegisters {
    TileRegisters() {
        alignas(64) static constexpr struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shapes;
        _tile_loadconfig(&shapes);
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

// The product of panels, in `to` (32, 32) with `stride` from a row to the next; with `add` it is added
// to what is there. Only the first 16 * down rows and 16 * across columns are computed. What comes next
// of the panel that is not near is asked for.
template <long down, long across, bool b_near>
[[gnu::noinline]] void multiply_panels(long steps, const float* a, const float* b, float* to,
                                       long stride, bool add) {
    constexpr long line = 64, b_row = 2 * line, half = kTileStep / 2;
    const long row = stride * static_cast<long>(sizeof(float));
    float* const below = to + 16 * stride;
    asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
    if (add) {
        _tile_loadd(0, to, row);
        if constexpr (across == 2) _tile_loadd(1, to + 16, row);
        if constexpr (down == 2) _tile_loadd(2, below, row);
        if constexpr (down == 2 && across == 2) _tile_loadd(3, below + 16, row);
    } else {
        _tile_zero(0);
        if constexpr (across == 2) _tile_zero(1);
        if constexpr (down == 2) _tile_zero(2);
        if constexpr (down == 2 && across == 2) _tile_zero(3);
    }
    // [tile products]
    const auto fetch = [&](long lines) __attribute__((always_inline)) {
        constexpr long ahead = 2 * kTileStep, floats = line / sizeof(float);
        const float* const far = b_near ? a : b;
#pragma GCC unroll 8
        for (long i = lines; i < lines + 8; ++i) __builtin_prefetch(far + ahead + i * floats);
    };
    for (; steps > 0; --steps, a += kTileStep, b += kTileStep) {
        _tile_loadd(4, a, line);
        _tile_loadd(6, b, b_row);
        if constexpr (across == 2) _tile_loadd(7, b + 16, b_row);
        if constexpr (down == 2) _tile_loadd(5, a + half, line);
        _tile_dpbf16ps(0, 4, 6);
        fetch(0);
        if constexpr (across == 2) _tile_dpbf16ps(1, 4, 7);
        fetch(8);
        if constexpr (down == 2) _tile_dpbf16ps(2, 5, 6);
        fetch(16);
        if constexpr (down == 2 && across == 2) _tile_dpbf16ps(3, 5, 7);
        fetch(24);
    }
    // [/tile products]
    _tile_stored(0, to, row);
    if constexpr (across == 2) _tile_stored(1, to + 16, row);
    if constexpr (down == 2) _tile_stored(2, below, row);
    if constexpr (down == 2 && across == 2) _tile_stored(3, below + 16, row);
}

#else

// Plain instructions in the place of AMX, for tests of what is around it.
#if defined(MT_TILES)
constexpr bool kTileRegisters = true;
#else
constexpr bool kTileRegisters = false;
#endif

inline bool tile_registers_serve() {
    return kTileRegisters;
}

struct TileRegisters {
    TileRegisters() {}  // not trivial: an object that only lives is no unused variable
};

template <long down, long across, bool>
void multiply_panels(long steps, const float* a, const float* b, float* to, long stride, bool add) {
    for (long i = 0; i < 16 * down; ++i)
        for (long j = 0; j < 16 * across; ++j) {
            float sum = add ? to[i * stride + j] : 0;
            for (long step = 0; step < steps; ++step)
                for (long p = 0; p < 16; ++p) {
                    const auto pair = [=](const float* x) { return __builtin_bit_cast(Pair, *x); };
                    const Pair left = pair(a + step * kTileStep + i * 16 + p);
                    const Pair right = pair(b + step * kTileStep + p * 32 + j);
                    sum += widen(left.first) * widen(right.first);
                    sum += widen(left.second) * widen(right.second);
                }
            to[i * stride + j] = sum;
        }
}

#endif

// The same of the first `rows` rows and `columns` columns, and perhaps of more.
template <bool b_near = false>
void multiply_panels(long rows, long columns, long steps, const float* a, const float* b, float* to,
                     long stride, bool add) {
    const bool low = rows <= 16, narrow = columns <= 16;
    (low ? narrow ? multiply_panels<1, 1, b_near> : multiply_panels<1, 2, b_near>
         : narrow ? multiply_panels<2, 1, b_near> : multiply_panels<2, 2, b_near>)(steps, a, b, to,
                                                                                   stride, add);
}

// Two columns of A, or rows of B, with 2 * lanes consecutive elements each, as pairs.
[[gnu::always_inline]] inline void load_pairs(const bfloat16* first, const bfloat16* second,
                                              Vector<float> (&out)[2]) {
    constexpr long lanes = Lanes<float>::count;
#if MT_VECTOR_BYTES == 64
    Vector64<uint16_t> a, b;
    __builtin_memcpy(&a, first, sizeof a);
    __builtin_memcpy(&b, second, sizeof b);
    [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
        constexpr int count = 2 * lanes;
        out[0] = (Vector<float>)__builtin_shufflevector(a, b, (i / 2 + i % 2 * count)...);
        out[1] = (Vector<float>)__builtin_shufflevector(a, b, (lanes + i / 2 + i % 2 * count)...);
    }(std::make_integer_sequence<int, 2 * lanes>());
#else
    for (long half = 0; half < 2; ++half) {
        Vector<bfloat16> a, b;
        __builtin_memcpy(&a, first + half * lanes, sizeof a);
        __builtin_memcpy(&b, second + half * lanes, sizeof b);
        out[half] = pairs(a, b);
    }
#endif
}

// What follows writes one step of a panel, of `from` (32 rows or columns, 32 deep).

// A panel of A from consecutive elements of a column.
inline void turn_tile_rows(Matrix<const bfloat16> from, float* to) {
    constexpr long lanes = Lanes<float>::count, step_pairs = kTileDepth / 2;
    for (long r = 0; r < kTileRows; r += 2 * lanes)
        for (long p = 0; p < step_pairs; p += lanes) {
            Vector<float> blocks[2][lanes];
#pragma GCC unroll 16
            for (long j = 0; j < lanes; ++j) {
                Vector<float> both[2];
                load_pairs(from.at(r, 2 * (p + j)), from.at(r, 2 * (p + j) + 1), both);
                blocks[0][j] = both[0];
                blocks[1][j] = both[1];
            }
            for (long half = 0; half < 2; ++half) {
                turn_blocks<float, 1>(blocks[half]);
#pragma GCC unroll 16
                for (long j = 0; j < lanes; ++j)
                    store(to + (r + half * lanes + j) * step_pairs + p, blocks[half][j]);
            }
        }
}

// A panel of B from consecutive elements of a row; `from` is Bᵀ.
inline void pair_tile_columns(Matrix<const bfloat16> from, float* to) {
    constexpr long lanes = Lanes<float>::count;
    for (long p = 0; p < kTileDepth; p += 2)
        for (long j = 0; j < kTileRows; j += 2 * lanes, to += 2 * lanes) {
            Vector<float> both[2];
            load_pairs(from.at(j, p), from.at(j, p + 1), both);
            store(to, both[0]);
            store(to + lanes, both[1]);
        }
}

// Either, of which `width` rows or columns and `depth` of each are there, and zeros for the others.
template <bool columns>
void gather_tile(Matrix<const bfloat16> from, long width, long depth, float* to) {
    __builtin_memset(to, 0, sizeof(float) * kTileStep);
    for (long p = 0; p < depth; p += 2)
        for (long i = 0; i < width; ++i) {
            const Pair pair{*from.at(i, p), p + 1 < depth ? *from.at(i, p + 1) : bfloat16{}};
            to[columns ? p / 2 * kTileRows + i : i * kTileDepth / 2 + p / 2] = load_one(&pair);
        }
}

// All panels of `from` (rows or columns, depth), by steps, and a step of all panels, so that more than
// a line of memory is read from each place; lines to come are asked for.
template <bool columns>
void pack_tile_steps(Matrix<const bfloat16> from, long count, long depth, float* to) {
    constexpr long line = 64 / sizeof(bfloat16);
    const long panel = ceil_div(depth, kTileDepth) * kTileStep;
    for (long p = 0; p < depth; p += kTileDepth, to += kTileStep) {
        const long deep = depth - p < kTileDepth ? depth - p : kTileDepth;
        if (from.row == 1)
            for (long j = p + kTileDepth; j < p + 2 * kTileDepth && j < depth; ++j)
                for (long i = 0; i < count; i += line) __builtin_prefetch(from.at(i, j));
        for (long i = 0; i < count; i += kTileRows) {
            const long width = count - i < kTileRows ? count - i : kTileRows;
            const Matrix<const bfloat16> part{from.at(i, p), from.row, from.column};
            float* const step = to + i / kTileRows * panel;
            if (from.row != 1 || width < kTileRows || deep < kTileDepth)
                gather_tile<columns>(part, width, deep, step);
            else if constexpr (columns)
                pair_tile_columns(part, step);
            else
                turn_tile_rows(part, step);
        }
    }
}

// Panels of A: (rows, depth) of `from`, with zeros where it ends.
inline void pack_tile_rows(Matrix<const bfloat16> from, long rows, long depth, float* to) {
    if (from.column != 1) return pack_tile_steps<false>(from, rows, depth, to);
    constexpr long step_pairs = kTileDepth / 2;
    const long panel = ceil_div(depth, kTileDepth) * kTileStep;
    for (long i = 0; i < rows; i += kTileRows, to += panel) {
        const long width = rows - i < kTileRows ? rows - i : kTileRows;
        if (width < kTileRows || depth % kTileDepth) __builtin_memset(to, 0, sizeof(float) * panel);
        for (long r = 0; r < width; ++r) {
            const bfloat16* source = from.at(i + r, 0);
            float* row = to + r * step_pairs;
            long p = 0;
            for (; p + kTileDepth <= depth; p += kTileDepth, row += kTileStep)
                __builtin_memcpy(row, source + p, sizeof(bfloat16) * kTileDepth);
            if (p < depth) __builtin_memcpy(row, source + p, sizeof(bfloat16) * (depth - p));
        }
    }
}

// Panels of B: (columns, depth) of `from`, which is Bᵀ, with zeros where it ends.
inline void pack_tile_columns(Matrix<const bfloat16> from, long columns, long depth, float* to) {
    if (from.column != 1 || from.row % 2 || depth % 2)
        return pack_tile_steps<true>(from, columns, depth, to);
    const long panel = ceil_div(depth, kTileDepth) * kTileStep, used = depth / 2 * kTileRows;
    for (long j = 0; j < columns; j += kTileRows, to += panel) {
        const long width = columns - j < kTileRows ? columns - j : kTileRows;
        pack_pairs<kTileRows>({from.at(j, 0), from.row, 1}, width, depth, to);
        __builtin_memset(to + used, 0, sizeof(float) * (panel - used));
    }
}

// Adds the sums of the rows of a panel of A to `sums`; its steps are `stride` from each other.
inline void add_tile_rows(long steps, const float* panel, float* sums, long stride = kTileStep) {
    constexpr long lanes = Lanes<float>::count, step_pairs = kTileDepth / 2;
    using Bits = Vector<uint32_t>;
    for (long r = 0; r < kTileRows; ++r) {
        Vector<float> sum{};
        for (long step = 0; step < steps; ++step)
            for (long p = 0; p < step_pairs; p += lanes) {
                const Bits both = (Bits)load(panel + step * stride + r * step_pairs + p);
                sum += (Vector<float>)(both << 16) + (Vector<float>)(both & 0xffff0000u);
            }
        sums[r] += sum_of_lanes<float>(sum);
    }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
