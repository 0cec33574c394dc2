// Numbers in panels, as tile registers multiply them: bfloat16 as they are (tile_registers.h), float in
// pieces (pieces.h). What only puts products of panels together is written once for both.

#pragma once

#include "pieces.h"

namespace minitorch::MT_INSTRUCTION_SET {

template <typename T>
struct Panels;

template <>
struct Panels<bfloat16> {
    static constexpr long kStep = kTileStep;
    // Floats' room that a panel takes.
    static constexpr long size(long steps) { return steps * kStep; }
    // Panels of A (count, depth), or with `columns` of B, then `from` is Bᵀ.
    template <bool columns>
    static void pack(Matrix<const bfloat16> from, long count, long depth, float* to) {
        columns ? pack_tile_columns(from, count, depth, to) : pack_tile_rows(from, count, depth, to);
    }
    // Rows i and i + 1 of a block (32, 32), two vectors each, in a step of A, and if asked for of B.
    [[gnu::always_inline]] static void put(const Vector<float> (&x)[2][2], long i, float* a,
                                           float* b = nullptr) {
        constexpr long row = kTileDepth / 2;
#pragma GCC unroll 2
        for (long r = 0; r < 2; ++r)
            store_two(reinterpret_cast<bfloat16*>(a + (i + r) * row), x[r][0], x[r][1]);
        if (!b) return;
#pragma GCC unroll 2
        for (long h = 0; h < 2; ++h)
            store(b + i * row + h * Lanes<float>::count, rounded_pairs(x[0][h], x[1][h]));
    }
    // The product of a panel of A and one of B, in a block (32, 32) of which `rows` and `columns` are
    // asked for; or it is added to `to`, whose rows are `stride` from each other.
    static void set(long rows, long columns, long steps, const float* a, const float* b, float* to) {
        multiply_panels<true>(rows, columns, steps, a, b, to, kTileRows, false);
    }
    static void add(long rows, long columns, long steps, const float* a, const float* b, float* to,
                    long stride) {
        multiply_panels<true>(rows, columns, steps, a, b, to, stride, true);
    }
};

template <>
struct Panels<float> {
    static constexpr long kStep = kPiecesStep;
    static constexpr long size(long steps) { return steps * kStep + kMagnitude; }
    template <bool columns>
    static void pack(Matrix<const float> from, long count, long depth, float* to) {
        pack_pieces<columns>(from, count, depth, to);
    }
    [[gnu::always_inline]] static void put(const Vector<float> (&x)[2][2], long i, float* a,
                                           float* b = nullptr) {
        constexpr long row = kTileDepth / 2;
        const Split parts[2][2] = {{Split(x[0][0]), Split(x[0][1])},
                                   {Split(x[1][0]), Split(x[1][1])}};
#pragma GCC unroll 2
        for (long r = 0; r < 2; ++r) store_row(parts[r][0], parts[r][1], a + (i + r) * row);
        if (!b) return;
#pragma GCC unroll 2
        for (long h = 0; h < 2; ++h)
            store_pairs(parts[0][h], parts[1][h], b + i * row + h * Lanes<float>::count);
    }
    static void set(long rows, long columns, long steps, const float* a, const float* b, float* to) {
        multiply_pieces(rows, columns, steps, a, b, to);
    }
    // By vectors, which round once.
    static void add(long rows, long columns, long steps, const float* a, const float* b, float* to,
                    long stride) {
        alignas(64) float product[kTileRows * kTileRows];
        multiply_pieces(rows, columns, steps, a, b, product);
        for (long i = 0; i < kTileRows && i < rows; ++i)
            for (long j = 0; j < kTileRows && j < columns; j += Lanes<float>::count) {
                float* const sum = to + i * stride + j;
                store(sum, load(sum) + load(product + i * kTileRows + j));
            }
    }
};

// All panels of a matrix, one after the other.
template <typename T>
struct Packed {
    const float* data;
    long size;  // of a panel

    static long panel(long depth) { return Panels<T>::size(ceil_div(depth, kTileDepth)); }
    static long room(long count, long depth) { return ceil_div(count, kTileRows) * panel(depth); }
    // As Panels::pack does it; `to` moves to what follows.
    template <bool columns>
    static Packed pack(Matrix<const T> from, long count, long depth, float*& to) {
        const Packed out{to, panel(depth)};
        Panels<T>::template pack<columns>(from, count, depth, to);
        to += room(count, depth);
        return out;
    }
    const float* at(long panel, long step = 0) const {
        return data + panel * size + step * Panels<T>::kStep;
    }
};

}  // namespace minitorch::MT_INSTRUCTION_SET
