// What kernels share of which a block has a row, its threads side by side along it.
//
//     for (int i = threadIdx.x * n; i < columns; i += blockDim.x * n) {
//         Few<T, n> v = load<n>(row + i);  ...  store(out + i, v);
//     }
//
// n is how many fit into 16 bytes, where every row begins at a multiple of 16, else 1 (by_width).

#pragma once

#include <initializer_list>
#include <type_traits>

#include "device.h"
#include "vector.h"

namespace minitorch {

// n neighbouring numbers in registers.
template <typename T, int n>
struct Few {
    T x[n];
    __device__ T& operator[](int i) { return x[i]; }
    __device__ const T& operator[](int i) const { return x[i]; }
};

template <int n, typename T>
__device__ Few<T, n> load(const T* from) {
    Few<T, n> few;
    if constexpr (n == 1) {
        few[0] = *from;
    } else {
        constexpr int step = Vector<T>::count;
#pragma unroll
        for (int i = 0; i < n; i += step) {
            const Vector<T> piece(from + i);
#pragma unroll
            for (int j = 0; j < step; ++j) few[i + j] = piece[j];
        }
    }
    return few;
}

template <int n, typename T>
__device__ void store(T* to, const Few<T, n>& few) {
    if constexpr (n == 1) {
        *to = few[0];
    } else {
        constexpr int step = Vector<T>::count;
#pragma unroll
        for (int i = 0; i < n; i += step) {
            Vector<T> piece;
#pragma unroll
            for (int j = 0; j < step; ++j) piece[j] = few[i + j];
            piece.store(to + i);
        }
    }
}

// body(std::integral_constant<int, n>()), n elements to a step of a thread; the pointers may be
// null.
template <typename T, typename Body>
void by_width(long columns, std::initializer_list<const void*> pointers, Body&& body) {
    constexpr int n = 16 / sizeof(T);
    bool aligned = columns % n == 0;
    for (const void* pointer : pointers) aligned &= is_aligned<T>(pointer);
    if (aligned) return body(std::integral_constant<int, n>());
    body(std::integral_constant<int, 1>());
}

// How many threads a row is given that takes so many steps.
inline unsigned row_threads(long steps) {
    return steps <= 32 ? 32 : steps <= 256 ? 128 : steps <= 1024 ? 256 : 512;
}

// Blocks of 256 threads for so many independent steps; they go round where there are too few.
inline unsigned blocks_of_256(long steps) {
    return static_cast<unsigned>(steps < 256 * 4224L ? ceil_div(steps, 256) : 4224);
}

}  // namespace minitorch
