// The first elements of an order, in which a NaN is the largest of all.

#pragma once

#include <cstdint>

#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

// A number that at least k of these are not less than; NaN where it would not pay to know one, or
// where one of them is a NaN. Of each of at least k groups (the lanes of some vectors) take the
// largest: the least of those will do.
template <long vectors, typename T>
Compute<T> at_least(const T* x, long count) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count, together = 2 * vectors;
    Vector<C> largest[together];
    for (long v = 0; v < together; ++v) largest[v] = load(x + v * lanes);
    auto odd = largest[0] != largest[0];
    for (long v = 1; v < together; ++v) odd |= largest[v] != largest[v];
    long i = together * lanes;
    for (; i + together * lanes <= count; i += together * lanes)
        for (long v = 0; v < together; ++v) {
            const Vector<C> next = load(x + i + v * lanes);
            odd |= next != next;
            largest[v] = maximum<C>(largest[v], next);
        }
    for (; i < count; i += lanes) {
        const long rest = count - i < lanes ? count - i : lanes;
        const Vector<C> next = load_part(x + i, rest, -kInfinity<C>);
        odd |= next != next;
        largest[0] = maximum<C>(largest[0], next);
    }
    if (bits_of<C>(odd)) return C(__builtin_nan(""));
    const auto smaller = [](Vector<C> a, Vector<C> b) { return a < b ? a : b; };
    Vector<C> least = maximum<C>(largest[0], largest[vectors]);
    for (long v = 1; v < vectors; ++v)
        least = smaller(least, maximum<C>(largest[v], largest[v + vectors]));
    return reduce<C>(least, smaller);
}

template <typename T>
Compute<T> at_least(const T* x, long count, long k) {
    constexpr long lanes = Lanes<Compute<T>>::count;
    if (count >= 4 * k && count >= 2 * lanes && k <= lanes) return at_least<1>(x, count);
    if (count >= 4 * k && count >= 4 * lanes && k <= 2 * lanes) return at_least<2>(x, count);
    if (count >= 4 * k && count >= 8 * lanes && k <= 4 * lanes) return at_least<4>(x, count);
    return Compute<T>(__builtin_nan(""));
}

// Up to so many numbers are ranked by comparing each with all, many at a time, without a branch.
constexpr long kRanked = 128;

// The first k of x (count, at most kRanked, none of them NaN) to their places in `index`: number i,
// or names[i]. x is filled up to whole vectors.
template <typename C>
void by_rank(const C* x, long count, long k, const int64_t* names, int64_t* index) {
    constexpr long lanes = Lanes<C>::count;
    using Numbers = decltype(Vector<C>{} < Vector<C>{});
    int64_t places[kRanked];
    for (long own = 0; own < count; own += lanes) {
        const Vector<C> mine = load(x + own);
        const long end = own + lanes < count ? own + lanes : count;
        Numbers rank{};  // how many before a number are not less, and after it are larger
        for (long j = 0; j < own; ++j) rank -= broadcast(x[j]) >= mine;
        for (long j = own; j < end; ++j) {
            const Vector<C> other = broadcast(x[j]);
            rank -= (other > mine) | ((other == mine) & ~lanes_below<C>(j - own + 1));
        }
        for (long j = end; j < count; ++j) rank -= broadcast(x[j]) > mine;
        for (long i = own; i < end; ++i) places[rank[i - own]] = names ? names[i] : i;
    }
    for (long j = 0; j < k; ++j) index[j] = places[j];
}

// The k largest by their ranks, of all or of those that are not less than k others; false where it
// does not pay, or there is a NaN.
template <typename T>
bool best_by_rank(const T* x, long count, long k, int64_t* index) {
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    C held[kRanked + lanes];
    int64_t names[kRanked];
    if (count <= kRanked && count * count <= 64 * lanes * k) {
        unsigned odd = 0;
        for (long i = 0; i < count; i += lanes) {
            const long rest = count - i < lanes ? count - i : lanes;
            const Vector<C> here = load_part(x + i, rest, C(0));
            odd |= bits_of<C>(here != here);
            store(held + i, here);
        }
        if (odd) return false;
        by_rank<C>(held, count, k, nullptr, index);
        return true;
    }
    const C bound = at_least(x, count, k);
    if (bound != bound) return false;
    long found = 0;
    for (long i = 0; i < count; i += lanes) {
        const bool whole = i + lanes <= count;
        const Vector<C> here = whole ? load(x + i) : load_part(x + i, count - i, -kInfinity<C>);
        unsigned bits = bits_of<C>(here >= bound);
        if (!whole) bits &= (1u << (count - i)) - 1;
        if (found + __builtin_popcount(bits) > kRanked) return false;
        for (; bits; bits &= bits - 1) {
            names[found] = i + __builtin_ctz(bits);
            held[found] = load_one(x + names[found]);
            ++found;
        }
    }
    store(held + found, Vector<C>{});
    by_rank<C>(held, found, k, names, index);
    return true;
}

// Where the k largest (or smallest) of `count` numbers are, in order, the lower index first in a
// tie. Where ranks do not serve, a number is compared with the last of those found so far, and goes
// on if it comes after: of many numbers few do not.
template <typename T, bool largest = true>
void best(const T* x, long count, long k, int64_t* index) {
    if constexpr (largest)
        if (best_by_rank(x, count, k, index)) return;
    const auto value = [&](long i) { return load_one(x + i); };
    const auto before = [&](long a, long b) {
        const auto first = value(a), second = value(b);
        if (largest) return first > second || (first != first && second == second);
        return first < second || (first == first && second != second);
    };
    for (long i = 0; i < count; ++i) {
        if (i >= k && !before(i, index[k - 1])) continue;
        long at = i < k ? i : k - 1;
        for (; at > 0 && before(i, index[at - 1]); --at) index[at] = index[at - 1];
        index[at] = i;
    }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
