// Products of float in tile registers (tile_registers.h), which multiply bfloat16. A float has 24 binary
// digits and a bfloat16 has 8, so that a float is the sum of three of them:
//
//     x = x₁ + x₂ + x₃            x₁ = bfloat16(x), x₂ = bfloat16(x - x₁), x₃ = x - x₁ - x₂
//     a b ≈ a₁b₁ + a₁b₂ + a₂b₁ + a₁b₃ + a₂b₂ + a₃b₁
//
// What is left out is less than 2⁻²³ of |a b|; rounding a b takes up to 2⁻²⁴, and the sum of k
// products is rounded for each of them by float's own instructions, here six times for each 32 of them.
// The tile registers multiply sixteen times as many numbers in a cycle, so that six products
// for one are 2.7 times as fast. Source: Henry, Tang and Heinecke 2019 (arXiv 1904.06376).
//
// Numbers that are too large or too small for this are found when they are packed: a panel is followed
// by the largest magnitude in it. Tiles where that does not fit are multiplied by float's instructions,
// which also know infinity and NaN.

#pragma once

#include "tile_registers.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr long kPieces = 3;
// Of a panel in floats' room, the pieces one after the other: for each step (3, 32 rows, 16 pairs)
// or (3, 16 pairs, 32 columns).
constexpr long kPiecesStep = kPieces * kTileStep;
// Steps in a piece of the depth, at most.
constexpr long kPiecesSteps = 24;
// Room after a panel, in floats', for the largest magnitude in it.
constexpr long kMagnitude = 16;

// Whether numbers up to `a` can be multiplied with numbers up to `b` in pieces: no product of pieces is
// too large, and what is lost since pieces, or products of them, are too small to be normal is less than
// 2⁻²⁴ of the largest number, and of the largest product.
inline bool fits_in_pieces(float a, float b) {
    constexpr float most = 0x1p100f, least = 0x1p-100f, least_product = 0x1p-60f;
    if (!(a <= most && b <= most)) return false;
    if (a == 0 || b == 0) return true;
    return a >= least && b >= least && a * b >= least_product && a * b <= most;
}

// The same, where products matter beside 1, as scores do.
inline bool scores_fit_in_pieces(float a, float b) {
    const auto at_least_1 = [](float x) { return x < 1 ? 1 : x; };  // NaN stays
    return fits_in_pieces(at_least_1(a), at_least_1(b));
}

// The three pieces' bits; those below the first 16 are 0, or beyond what a number too small has.
struct Split {
    Vector<uint32_t> piece[kPieces];

    explicit Split(Vector<float> x) {
        using Bits = Vector<uint32_t>;
        for (long i = 0; i < kPieces - 1; ++i) {
            piece[i] = ((Bits)x + 0x8000) & 0xffff0000u;
            x -= (Vector<float>)piece[i];
        }
        piece[kPieces - 1] = (Bits)x;
    }
};

// Consecutive numbers of a row of A, piece by piece, in the panels of these.
inline void store_row(const Split& first, const Split& second, float* to) {
    typedef uint16_t Halves __attribute__((vector_size(MT_VECTOR_BYTES)));
    constexpr int count = 2 * Lanes<float>::count;
#pragma GCC unroll 3
    for (long i = 0; i < kPieces; ++i)
        store(to + i * kTileStep,
              [&]<int... j>(std::integer_sequence<int, j...>) __attribute__((always_inline)) {
                  return (Vector<float>)__builtin_shufflevector(
                      (Halves)first.piece[i], (Halves)second.piece[i], (2 * j + 1)...);
              }(std::make_integer_sequence<int, count>()));
}

// And pairs of two rows of B.
inline void store_pairs(const Split& first, const Split& second, float* to) {
#pragma GCC unroll 3
    for (long i = 0; i < kPieces; ++i)
        store(to + i * kTileStep,
              (Vector<float>)(first.piece[i] >> 16 | (second.piece[i] & 0xffff0000u)));
}

// The largest magnitude so far, lane by lane. NaN is larger than infinity, and its bits than theirs.
struct Magnitude {
    Vector<int32_t> bits{};

    static Magnitude at(const float* from) {
        Magnitude out;
        __builtin_memcpy(&out.bits, from, sizeof out.bits);
        return out;
    }
    void write(float* to) const { __builtin_memcpy(to, &bits, sizeof bits); }
    void add(Vector<float> x) {
        const auto here = (Vector<int32_t>)((Vector<uint32_t>)x & 0x7fffffffu);
        bits = here > bits ? here : bits;
    }
    float largest() const {
        return __builtin_bit_cast(float, reduce<int32_t>(bits, [](auto a, auto b) {
                                      return (Vector<int32_t>)(a > b ? a : b);
                                  }));
    }
};

// One step of a panel of A: `from` holds its (32 rows, 32) next to each other along the depth.
inline void split_rows(const float* from, long stride, float* to, Magnitude& magnitude) {
    constexpr long lanes = Lanes<float>::count, step_pairs = kTileDepth / 2;
    for (long r = 0; r < kTileRows; ++r, from += stride)
        for (long p = 0; p < step_pairs; p += lanes) {
            const Vector<float> low = load(from + 2 * p), high = load(from + 2 * p + lanes);
            magnitude.add(low);
            magnitude.add(high);
            store_row(Split(low), Split(high), to + r * step_pairs + p);
        }
}

// And one of B: `from` (32 deep, 32 columns).
inline void split_columns(const float* from, long stride, float* to, Magnitude& magnitude) {
    constexpr long lanes = Lanes<float>::count;
    for (long p = 0; p < kTileDepth; p += 2, from += 2 * stride)
        for (long j = 0; j < kTileRows; j += lanes, to += lanes) {
            const Vector<float> first = load(from + j), second = load(from + stride + j);
            magnitude.add(first);
            magnitude.add(second);
            store_pairs(Split(first), Split(second), to);
        }
}

// Asks for what a step of a panel is made of: `width` rows, `depth` of each.
inline void fetch_step(Matrix<const float> from, long width, long depth) {
    constexpr long floats = 64 / sizeof(float);
    const bool along = from.column == 1;
    const long lines = along ? width : depth, length = along ? depth : width;
    const long stride = along ? from.row : from.column;
    for (long i = 0; i < lines; ++i)
        for (long j = 0; j < length; j += floats) __builtin_prefetch(from.data + i * stride + j);
}

// Panels of A (rows, depth), or with `columns` of B, then `from` is Bᵀ: with zeros where it ends. Where
// numbers of one depth lie next to each other, a step of all panels is read before the next, so that more
// than a line or two of memory comes from each place.
template <bool columns>
void pack_pieces(Matrix<const float> from, long count, long depth, float* to) {
    const long panels = ceil_div(count, kTileRows), steps = ceil_div(depth, kTileDepth);
    const long size = steps * kPiecesStep + kMagnitude;
    const bool across = from.row == 1;
    const auto magnitude_at = [=](long panel) { return to + panel * size + steps * kPiecesStep; };
    const auto width_at = [=](long panel) {
        const long rest = count - panel * kTileRows;
        return rest < kTileRows ? rest : kTileRows;
    };
    const auto depth_at = [=](long step) {
        const long rest = depth - step * kTileDepth;
        return rest < kTileDepth ? rest : kTileDepth;
    };
    const auto part = [=](long panel, long step) {
        return Matrix<const float>{from.at(panel * kTileRows, step * kTileDepth), from.row, from.column};
    };
    const auto pack_step = [&](long panel, long step) {
        const long width = width_at(panel), deep = depth_at(step);
        const Matrix<const float> here = part(panel, step);
        Magnitude magnitude = Magnitude::at(magnitude_at(panel));
        const auto split = [&](const float* block, long stride) {
            float* const place = to + panel * size + step * kPiecesStep;
            columns ? split_columns(block, stride, place, magnitude)
                    : split_rows(block, stride, place, magnitude);
        };
        if ((columns ? from.row : from.column) == 1 && width == kTileRows && deep == kTileDepth) {
            split(here.data, columns ? from.column : from.row);
        } else {
            alignas(64) float block[kTileDepth * kTileRows];
            const long there = columns ? deep : width;
            if constexpr (columns)
                pack_rows<float, float, kTileRows>(here, width, deep, block);
            else
                pack_rows<float, float, kTileDepth>(here.transposed(), deep, width, block);
            __builtin_memset(block + there * kTileRows, 0,
                             sizeof(float) * (kTileRows - there) * kTileRows);
            split(block, kTileRows);
        }
        magnitude.write(magnitude_at(panel));
    };
    for (long panel = 0; panel < panels; ++panel) Magnitude().write(magnitude_at(panel));
    for (long i = 0; i < panels * steps; ++i) {
        const auto place = [=](long n) { return across ? n % panels : n / steps; };
        const auto step = [=](long n) { return across ? n / panels : n % steps; };
        if (const long next = i + 1; next < panels * steps)
            fetch_step(part(place(next), step(next)), width_at(place(next)), depth_at(step(next)));
        pack_step(place(i), step(i));
    }
    for (long panel = 0; panel < panels; ++panel)
        *magnitude_at(panel) = Magnitude::at(magnitude_at(panel)).largest();
}

// Of a panel in pieces, so many steps long.
inline float magnitude_of(const float* panel, long steps) {
    return panel[steps * kPiecesStep];
}

#if defined(__AMX_BF16__)

// The product of panels in pieces, in `to` (32, 32). Only the first 16 * down rows and 16 * across
// columns are computed. Of the six products of a step each has an operand in common with the one before.
// What comes a step and a quarter later is asked for between them: two steps were a tenth slower while
// others shared the core, and none at all took nearly twice as long.
template <long down, long across>
[[gnu::noinline]] void multiply_pieces(long steps, const float* a, const float* b, float* to) {
    constexpr long line = 64, row = 2 * line, half = kTileStep / 2, floats = line / sizeof(float);
    asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
    _tile_zero(0);
    if constexpr (across == 2) _tile_zero(1);
    if constexpr (down == 2) _tile_zero(2);
    if constexpr (down == 2 && across == 2) _tile_zero(3);
    for (; steps > 0; --steps, a += kPiecesStep, b += kPiecesStep) {
        const float* next_a = a + kPiecesStep + kPiecesStep / 4;
        const float* next_b = b + kPiecesStep + kPiecesStep / 4;
        const auto fetch = [&] __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (long i = 0; i < 4; ++i, next_a += floats, next_b += floats) {
                __builtin_prefetch(next_a);
                __builtin_prefetch(next_b);
            }
        };
        const auto read_a = [&](long piece) __attribute__((always_inline)) {
            _tile_loadd(4, a + piece * kTileStep, line);
            if constexpr (down == 2) _tile_loadd(5, a + piece * kTileStep + half, line);
        };
        const auto read_b = [&](long piece) __attribute__((always_inline)) {
            _tile_loadd(6, b + piece * kTileStep, row);
            if constexpr (across == 2) _tile_loadd(7, b + piece * kTileStep + floats, row);
        };
        const auto multiply = [&] __attribute__((always_inline)) {
            _tile_dpbf16ps(0, 4, 6);
            fetch();
            if constexpr (across == 2) _tile_dpbf16ps(1, 4, 7);
            fetch();
            if constexpr (down == 2) _tile_dpbf16ps(2, 5, 6);
            fetch();
            if constexpr (down == 2 && across == 2) _tile_dpbf16ps(3, 5, 7);
            fetch();
        };
        // [six products]
        read_a(2), read_b(0), multiply();
        read_a(1), multiply();
        read_b(1), multiply();
        read_a(0), multiply();
        read_b(0), multiply();
        read_b(2), multiply();
        // [/six products]
    }
    float* const below = to + 16 * kTileRows;
    _tile_stored(0, to, row);
    if constexpr (across == 2) _tile_stored(1, to + 16, row);
    if constexpr (down == 2) _tile_stored(2, below, row);
    if constexpr (down == 2 && across == 2) _tile_stored(3, below + 16, row);
}

#else

template <long down, long across>
void multiply_pieces(long steps, const float* a, const float* b, float* to) {
    bool add = false;
    for (; steps > 0; --steps, a += kPiecesStep, b += kPiecesStep)
        for (long i = kPieces - 1; i >= 0; --i)
            for (long j = kPieces - 1 - i; j >= 0; --j, add = true)
                multiply_panels<down, across, false>(1, a + i * kTileStep, b + j * kTileStep, to,
                                                     kTileRows, add);
}

#endif

// The same of the first `rows` rows and `columns` columns, and perhaps of more.
inline void multiply_pieces(long rows, long columns, long steps, const float* a, const float* b,
                            float* to) {
    const bool low = rows <= 16, narrow = columns <= 16;
    (low ? narrow ? multiply_pieces<1, 1> : multiply_pieces<1, 2>
         : narrow ? multiply_pieces<2, 1> : multiply_pieces<2, 2>)(steps, a, b, to);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
