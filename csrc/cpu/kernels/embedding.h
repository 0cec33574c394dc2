// Rows of a table by their index, and the transpose of that, which adds rows up where they came
// from.
//
// The sum is deterministic without atomics: a counting sort groups the rows of the gradient by
// their destination, in their order, and each row of the result is then made by one thread.

#pragma once

#include "../array.h"
#include "../threads.h"
#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

// table (any number, columns), index (rows,), out (rows, columns).
template <typename T>
void gather_rows(const T* table, const int64_t* index, T* out, long rows, long columns) {
    parallel_ranges(rows, rows_per_piece(columns), [=](long begin, long end) {
        for (long row = begin; row < end; ++row)
            __builtin_memcpy(out + row * columns, table + index[row] * columns,
                             sizeof(T) * columns);
    });
}

// order[first[i]] to order[first[i + 1] - 1]: the rows with index i, as they stand. `first` has room for
// size + 2 numbers.
inline void by_destination(const int64_t* index, long rows, long size, long* first, long* order) {
    __builtin_memset(first, 0, sizeof(long) * (size + 2));
    for (long row = 0; row < rows; ++row) ++first[index[row] + 2];
    for (long i = 2; i < size + 2; ++i) first[i] += first[i - 1];
    for (long row = 0; row < rows; ++row) order[first[index[row] + 1]++] = row;
}

// grad (rows, columns), index (rows,), out (size, columns): out[i] = Σ grad[row] over index[row] =
// i, and added to what is there with accumulate.
template <typename T>
void scatter_add_rows(const T* grad, const int64_t* index, T* out, long rows, long size,
                      long columns, bool accumulate) {
    using C = Compute<T>;
    long* first = scratch<long>(0, size + 2);
    long* order = scratch<long>(1, rows);
    by_destination(index, rows, size, first, order);

    const long average = columns * (1 + rows / (size > 0 ? size : 1));
    parallel_ranges(size, rows_per_piece(average), [=](long begin, long end) {
        C* wide = nullptr;
        if constexpr (!__is_same(T, C)) wide = scratch<C>(2, columns);
        for (long i = begin; i < end; ++i) {
            T* to = out + i * columns;
            const long from = first[i], until = first[i + 1];
            if (from == until) {
                if (!accumulate) __builtin_memset(to, 0, sizeof(T) * columns);
                continue;
            }
            if (until - from == 1 && !accumulate) {
                __builtin_memcpy(to, grad + order[from] * columns, sizeof(T) * columns);
                continue;
            }
            C* sum = wide;
            if constexpr (__is_same(T, C))
                sum = to;
            else if (accumulate)
                for_each_vector<C>(columns, [&](long, auto get, auto put) { put(sum, get(to)); });
            for (long k = from; k < until; ++k) {
                const T* row = grad + order[k] * columns;
                for_each_vector<C>(columns, [&](long, auto get, auto put) {
                    put(sum, k == from && !accumulate ? get(row) : get(sum) + get(row));
                });
            }
            if constexpr (!__is_same(T, C))
                for_each_vector<C>(columns, [&](long, auto get, auto put) { put(to, get(sum)); });
        }
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
