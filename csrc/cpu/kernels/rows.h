// Sums and products of rows that are anywhere in a table, four of them at a time: so that a vector
// of what they have in common is read once for four, and no sum waits for the one before.

#pragma once

#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

template <typename T>
void prefetch(const T* row, long count) {
    constexpr long line = 64 / sizeof(T);
    for (long i = 0; i < count; i += line) __builtin_prefetch(row + i);
}

// out[j] = <row(j), x> for j in [0, count). Rows are fetched ahead of their use: they may be far.
template <typename T, typename Row>
void dot_rows(long count, Row row, const T* x, Compute<T>* out, long columns) {
    using C = Compute<T>;
    long j = 0;
    for (; j + 4 <= count; j += 4) {
        for (long next = j + 4; next < j + 8 && next < count; ++next) prefetch(row(next), columns);
        const T *a = row(j), *b = row(j + 1), *c = row(j + 2), *d = row(j + 3);
        Vector<C> sums[4] = {};
        for_each_vector<C>(columns, [&](long, auto get, auto) {
            const Vector<C> v = get(x);
            sums[0] += get(a) * v;
            sums[1] += get(b) * v;
            sums[2] += get(c) * v;
            sums[3] += get(d) * v;
        });
        for (long i = 0; i < 4; ++i) out[j + i] = sum_of_lanes<C>(sums[i]);
    }
    for (; j < count; ++j) {
        const T* a = row(j);
        Vector<C> sum{};
        for_each_vector<C>(columns, [&](long, auto get, auto) { sum += get(a) * get(x); });
        out[j] = sum_of_lanes<C>(sum);
    }
}

// sum = Σ factor(j) row(j) over j in [0, count), added up in this order.
template <typename T, typename Row, typename Factor>
void add_rows(long count, Row row, Factor factor, Compute<T>* sum, long columns) {
    using C = Compute<T>;
    for (long p = 0; p < columns; ++p) sum[p] = 0;
    long j = 0;
    for (; j + 4 <= count; j += 4) {
        for (long next = j + 4; next < j + 8 && next < count; ++next) prefetch(row(next), columns);
        const T *a = row(j), *b = row(j + 1), *c = row(j + 2), *d = row(j + 3);
        const C f = factor(j), g = factor(j + 1), h = factor(j + 2), i = factor(j + 3);
        for_each_vector<C>(columns, [&](long, auto get, auto put) {
            put(sum, get(sum) + f * get(a) + g * get(b) + h * get(c) + i * get(d));
        });
    }
    for (; j < count; ++j) {
        const T* a = row(j);
        const C f = factor(j);
        for_each_vector<C>(columns,
                           [&](long, auto get, auto put) { put(sum, get(sum) + f * get(a)); });
    }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
