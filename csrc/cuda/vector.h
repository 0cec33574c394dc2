// A few neighbouring numbers, moved by one access of up to 16 bytes: a warp then asks memory for 512
// bytes with one instruction instead of four.
//
//     Vector<T> x(from);  x[0] += 1;  x.store(to);        from and to at multiples of 16 bytes

#pragma once

#include <type_traits>

#include "../simt/simt.h"

namespace minitorch {

template <typename T, int n = 16 / sizeof(T)>
struct alignas(n * sizeof(T)) Vector {
    static constexpr int count = n;
    static constexpr int bytes = n * sizeof(T);
    static_assert(bytes == 4 || bytes == 8 || bytes == 16);
    using Whole = std::conditional_t<bytes == 16, uint4,
                                     std::conditional_t<bytes == 8, uint2, unsigned>>;
    union {
        T x[n];
        Whole whole;
    };

    __device__ Vector() {}
    __device__ explicit Vector(const T* from) : whole(*reinterpret_cast<const Whole*>(from)) {}
    __device__ Vector(const Vector& from) : whole(from.whole) {}
    __device__ Vector& operator=(const Vector& from) {
        whole = from.whole;
        return *this;
    }
    __device__ void store(T* to) const { *reinterpret_cast<Whole*>(to) = whole; }
    __device__ T& operator[](int i) { return x[i]; }
    __device__ const T& operator[](int i) const { return x[i]; }
};

// Whether all of these numbers are multiples of what a Vector<T, n> needs: an address in bytes, and
// strides in elements.
template <typename T, int n = 16 / sizeof(T), typename... Strides>
__host__ __device__ inline bool is_aligned(const void* address, Strides... strides) {
    return reinterpret_cast<uintptr_t>(address) % sizeof(T[n]) == 0 && ((strides % n == 0) && ...);
}

}  // namespace minitorch
