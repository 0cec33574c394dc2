// A tile of a matrix product by a block: tiles of A and of B in shared memory, 16 bytes at a time,
// and in each thread a square of micro x micro sums.

#pragma once

#include "product.h"

namespace minitorch {

constexpr int kThreads = 256;
constexpr int kDepth = 8;  // columns of A, and rows of B, that are in shared memory at a time

// Tiles of A and of B: A's is stored turned, so that both are read along what is kDepth
// steps apart in neither. The four numbers more keep rows at multiples of 16 bytes, and let a
// column's numbers, which the turning writes, begin in different banks.
template <typename C, int side>
using Tile = C[kDepth][side + 4];

// Of the numbers i < micro of a thread, a vector's worth are neighbours; the threads' vectors lie
// side by side.
template <typename C>
__device__ int place(int thread, int i) {
    constexpr int n = Vector<C>::count;
    return i / n * 16 * n + thread * n + i % n;
}

template <typename C, int micro>
__device__ void multiply(const Tile<C, 16 * micro>& a, const Tile<C, 16 * micro>& b,
                         C (&sums)[micro][micro]) {
    constexpr int n = Vector<C>::count;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
        C left[micro], right[micro];
#pragma unroll
        for (int j = 0; j < micro; j += n) {
            const Vector<C> rows(&a[d][place<C>(y, j)]), columns(&b[d][place<C>(x, j)]);
#pragma unroll
            for (int l = 0; l < n; ++l) {
                left[j + l] = rows[l];
                right[j + l] = columns[l];
            }
        }
#pragma unroll
        for (int j = 0; j < micro; ++j)
#pragma unroll
            for (int l = 0; l < micro; ++l) sums[j][l] += left[j] * right[l];
    }
}

template <typename T, typename O, typename C, int micro>
__device__ void write_tile(const Product<T, O>& p, const Corner& corner,
                           const C (&sums)[micro][micro]) {
    constexpr int n = Vector<C>::count;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const bool vectors = p.out.template has_vectors<n>();
#pragma unroll
    for (int j = 0; j < micro; ++j) {
        const long row = corner.row + place<C>(y, j);
        if (row >= p.m) continue;
#pragma unroll
        for (int l = 0; l < micro; l += n)
            p.template write_run<n>(row, corner.column + place<C>(x, l), &sums[j][l], vectors);
    }
}

// Rows `row` to row + side of x, of `height`, and columns `depth` to depth + kDepth of `width`,
// turned into a tile: A as it is, B transposed. By 16 bytes along the one dimension of x or the
// other, whichever lies in memory like that; zeros where there is nothing.
template <int side, typename T, typename C>
__device__ void load_tile(const Matrix<const T>& x, long height, long width, long row, long depth,
                          Tile<C, side>& tile) {
    constexpr int n = Vector<T>::count, per_row = kDepth / n, per_column = side / n;
    if (x.template has_vectors<n>()) {
        for (int t = threadIdx.x; t < side * per_row; t += kThreads) {
            const int r = t / per_row, d = t % per_row * n;
            Vector<T> run;
            if (row + r < height && depth + d + n <= width)
                run = Vector<T>(&x(row + r, depth + d));
            else
                for (int i = 0; i < n; ++i)
                    run[i] = row + r < height && depth + d + i < width ? x(row + r, depth + d + i)
                                                                       : T(0.0f);
#pragma unroll
            for (int i = 0; i < n; ++i) tile[d + i][r] = C(run[i]);
        }
    } else if (x.transposed().template has_vectors<n>()) {
        for (int t = threadIdx.x; t < kDepth * per_column; t += kThreads) {
            const int d = t / per_column, r = t % per_column * n;
            Vector<T> run;
            if (depth + d < width && row + r + n <= height)
                run = Vector<T>(&x(row + r, depth + d));
            else
                for (int i = 0; i < n; ++i)
                    run[i] = depth + d < width && row + r + i < height ? x(row + r + i, depth + d)
                                                                       : T(0.0f);
            constexpr int wide = Vector<C>::count;
#pragma unroll
            for (int i = 0; i < n; i += wide) {
                Vector<C> widened;
#pragma unroll
                for (int j = 0; j < wide; ++j) widened[j] = C(run[i + j]);
                widened.store(&tile[d][r + i]);
            }
        }
    } else {
        for (int t = threadIdx.x; t < kDepth * side; t += kThreads) {
            const int d = t / side, r = t % side;
            const bool inside = row + r < height && depth + d < width;
            tile[d][r] = inside ? C(x(row + r, depth + d)) : C(0);
        }
    }
}

// The square of 16 micro x 16 micro of p at the corner, by a block of 16 x 16 threads.
template <int micro, typename T, typename O>
__device__ void multiply_tile(const Product<T, O>& p, const Corner& corner) {
    using C = Compute<T>;
    constexpr int side = 16 * micro;
    SHARED(__align__(16) C, a, [kDepth][side + 4]);
    SHARED(__align__(16) C, b, [kDepth][side + 4]);
    C sums[micro][micro] = {};
    for (long i = 0; i < p.k; i += kDepth) {
        load_tile<side>(p.a, p.m, p.k, corner.row, i, a);
        load_tile<side>(p.b.transposed(), p.n, p.k, corner.column, i, b);
        __syncthreads();
        multiply<C, micro>(a, b, sums);
        __syncthreads();
    }
    write_tile(p, corner, sums);
}

}  // namespace minitorch
