// What becomes of the sums of a matrix product as they are written, in matmul.h's formula:
//
//     out = f(alpha sums + out + bias) + residual
//
// A tile that needs no f goes there from registers; others by way of a buffer that stays in the
// first-level cache.

#pragma once

#include "activations.h"
#include "tiles.h"

namespace minitorch::MT_INSTRUCTION_SET {

enum class Activation { none, relu, silu, gelu_tanh };

template <typename C>
Vector<C> activate(Activation f, Vector<C> x) {
    switch (f) {
        case Activation::relu:
            return x < C(0) ? Vector<C>{} : x;
        case Activation::silu:
            return Silu<C>().value(x);
        case Activation::gelu_tanh:
            return GeluTanh<C>().value(x);
        default:
            return x;
    }
}

// Matrices here have column stride 1, or are null.
template <typename O, typename C>
struct Epilogue {
    C alpha = 1;
    bool accumulate = false;
    const O* bias = nullptr;     // (n,), contiguous
    Matrix<const O> residual{};  // (m, n)
    Activation activation = Activation::none;
    Matrix<O> before{};          // (m, n): receives what f is applied to
    long wanted = 1L << 62;      // elements (i, j) with i - j below that; others may be left out

    bool linear() const { return activation == Activation::none && !before.data; }

    // What belongs to the elements from (i, j) on.
    Epilogue at(long i, long j) const {
        Epilogue part = *this;
        if (bias) part.bias += j;
        if (residual.data) part.residual.data = residual.at(i, j);
        if (before.data) part.before.data = before.at(i, j);
        part.wanted -= i - j;
        return part;
    }
};

// Where a tile goes, from registers: to = alpha sums (+ old) (+ bias) (+ residual).
template <typename O, typename C>
struct Target {
    O* to;
    long row;
    C alpha = 1;
    Matrix<const C> old{};
    const O* bias = nullptr;
    Matrix<const O> residual{};
};

// With `part` the first `height` rows of the result alone are wanted, and the first `last` columns
// of its last vector; with `masked` B ends there too.
template <typename O, typename C, long rows, long vectors, Layout layout, bool part = false,
          bool masked = false>
[[gnu::noinline]] void multiply_tile(long depth, const Operands<C>& from,
                                     const Target<O, C>& target, long height = rows,
                                     long last = Lanes<C>::count) {
    constexpr long lanes = Lanes<C>::count;
    Vector<C> sum[rows][vectors];
    outer_products<C, rows, vectors, layout, masked>(depth, from, sum, [&](long i) {
        if (part && i >= height) return;
        __builtin_prefetch(target.to + i * target.row, 1);
        __builtin_prefetch(target.to + i * target.row + (vectors * lanes - 1), 1);
    });
    const auto each = [&](const auto& change) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (long i = 0; i < rows; ++i)
            if (!part || i < height)
#pragma GCC unroll 2
                for (long v = 0; v < vectors; ++v)
                    change(sum[i][v], i, v * lanes, part && v == vectors - 1);
    };
    const auto get = [last](const auto* x, bool some) __attribute__((always_inline)) {
        return some ? load_part(x, last, C(0)) : load(x);
    };
    if (target.alpha != 1) each([&](Vector<C>& x, long, long, bool) { x *= target.alpha; });
    if (target.old.data)
        each([&](Vector<C>& x, long i, long j, bool some) { x += get(target.old.at(i, j), some); });
    if (target.bias)
        each([&](Vector<C>& x, long, long j, bool some) { x += get(target.bias + j, some); });
    if (target.residual.data)
        each([&](Vector<C>& x, long i, long j, bool some) {
            x += get(target.residual.at(i, j), some);
        });
    each([&](Vector<C>& x, long i, long j, bool some) {
        O* to = target.to + i * target.row + j;
        some ? store_part(to, x, last) : store(to, x);
    });
}

// The same of a tile that may be smaller than the registers hold.
template <typename O, typename C, Layout layout, bool masked = false>
void multiply_edge(long rows, long columns, long depth, const Operands<C>& from,
                   const Target<O, C>& target) {
    constexpr long lanes = Lanes<C>::count;
    const auto run = [&](auto height) {
        if (columns <= lanes)
            multiply_tile<O, C, height, 1, layout, true, masked>(depth, from, target, rows, columns);
        else
            multiply_tile<O, C, height, 2, layout, true, masked>(depth, from, target, rows,
                                                                 columns - lanes);
    };
    if (rows <= kThird)
        run(std::integral_constant<long, kThird>());
    else if (rows <= 2 * kThird)
        run(std::integral_constant<long, 2 * kThird>());
    else
        run(std::integral_constant<long, kRows>());
}

// A tile of which all is written, more than the matrices have: panels hold zeros where they end.
template <typename C, Layout layout>
void multiply_part(long rows, long columns, long depth, const Operands<C>& from,
                   const Target<C, C>& target) {
    if (columns <= Lanes<C>::count)
        multiply_tile<C, C, kRows, 1, layout>(depth, from, target);
    else if (rows > kRows / 2)
        multiply_tile<C, C, kRows, 2, layout>(depth, from, target);
    else
        multiply_tile<C, C, kRows / 2, 2, layout>(depth, from, target);
}

// A block of sums, with `stride` from one row to the next, goes through the epilogue to out; `old`
// (column stride 1) is what earlier pieces added up to, or null.
template <typename O, typename C>
void finish(const C* sums, long stride, Matrix<const C> old, long rows, long columns, Matrix<O> out,
            const Epilogue<O, C>& epilogue) {
    constexpr long lanes = Lanes<C>::count;
    const Activation f = epilogue.activation;
    const bool product_alone = epilogue.linear() && epilogue.alpha == 1 && !old.data &&
                               !epilogue.accumulate && !epilogue.bias && !epilogue.residual.data;
    if (product_alone && columns % (2 * lanes) == 0) {
        for (long r = 0; r < rows; ++r, sums += stride)
            for (long v = 0; v < columns; v += 2 * lanes)
                store_two(out.at(r, v), load(sums + v), load(sums + v + lanes));
        return;
    }
    // What is asked for is asked once for `count` vectors of a row, of which the last may be a part.
    const auto row = [&](auto count, long r, long v, long part) __attribute__((always_inline)) {
        Vector<C> x[count];
        const auto each = [&](const auto& change) __attribute__((always_inline)) {
            change(x[0], v);
            if constexpr (count > 1) change(x[1], v + lanes);
        };
        const auto get = [part](const auto* from) __attribute__((always_inline)) {
            return part ? load_part(from, part, C(0)) : load(from);
        };
        const auto put = [part](O* to, Vector<C> value) __attribute__((always_inline)) {
            part ? store_part(to, value, part) : store(to, value);
        };
        each([&](Vector<C>& to, long j) { to = get(sums + r * stride + j) * epilogue.alpha; });
        if (old.data) each([&](Vector<C>& to, long j) { to += get(old.at(r, j)); });
        if (epilogue.accumulate) each([&](Vector<C>& to, long j) { to += get(out.at(r, j)); });
        if (epilogue.bias) each([&](Vector<C>& to, long j) { to += get(epilogue.bias + j); });
        if (epilogue.before.data)
            each([&](Vector<C>& to, long j) { put(epilogue.before.at(r, j), to); });
        if (f != Activation::none) each([&](Vector<C>& to, long) { to = activate<C>(f, to); });
        if (epilogue.residual.data)
            each([&](Vector<C>& to, long j) { to += get(epilogue.residual.at(r, j)); });
        each([&](Vector<C>& from, long j) { put(out.at(r, j), from); });
    };
    for (long r = 0; r < rows; ++r) {
        long v = 0;
        for (; v + 2 * lanes <= columns; v += 2 * lanes) row(std::integral_constant<long, 2>(), r, v, 0);
        for (; v < columns; v += lanes)
            row(std::integral_constant<long, 1>(), r, v, columns - v < lanes ? columns - v : 0);
    }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
