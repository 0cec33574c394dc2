// CUDA's types for g++: dimensions, short vectors, 16-bit floats.
//
// Short vectors are copied by one access of their whole width, as the hardware does, so that the
// check build sees a misaligned one, and counts it as one.

#pragma once

#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstring>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    dim3(uint3 from) : x(from.x), y(from.y), z(from.z) {}
    operator uint3() const { return {x, y, z}; }
    unsigned size() const { return x * y * z; }
};

#define SIMT_VECTOR2(name, T)                                                   \
    struct alignas(2 * sizeof(T)) name {                                        \
        typedef T Whole __attribute__((vector_size(2 * sizeof(T))));            \
        union {                                                                 \
            struct {                                                            \
                T x, y;                                                         \
            };                                                                  \
            Whole whole;                                                        \
        };                                                                      \
        name() = default;                                                       \
        name(T x, T y) : x(x), y(y) {}                                          \
        name(const name& from) : whole(from.whole) {}                           \
        name& operator=(const name& from) { return whole = from.whole, *this; } \
    };                                                                          \
    inline name make_##name(T x, T y) {                                         \
        return {x, y};                                                          \
    }

#define SIMT_VECTOR4(name, T)                                                   \
    struct alignas(4 * sizeof(T)) name {                                        \
        typedef T Whole __attribute__((vector_size(4 * sizeof(T))));            \
        union {                                                                 \
            struct {                                                            \
                T x, y, z, w;                                                   \
            };                                                                  \
            Whole whole;                                                        \
        };                                                                      \
        name() = default;                                                       \
        name(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                    \
        name(const name& from) : whole(from.whole) {}                           \
        name& operator=(const name& from) { return whole = from.whole, *this; } \
    };                                                                          \
    inline name make_##name(T x, T y, T z, T w) {                               \
        return {x, y, z, w};                                                    \
    }

SIMT_VECTOR2(float2, float)
SIMT_VECTOR2(int2, int)
SIMT_VECTOR2(uint2, unsigned)
SIMT_VECTOR2(double2, double)
SIMT_VECTOR4(float4, float)
SIMT_VECTOR4(int4, int)
SIMT_VECTOR4(uint4, unsigned)
#undef SIMT_VECTOR2
#undef SIMT_VECTOR4

namespace simt {

inline uint16_t bfloat16_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return uint16_t(bits >> 16 | 64);
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
}

inline uint16_t half_bits(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

inline float from_half(uint16_t bits) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return static_cast<float>(half);
}

// e4m3: one bit for the sign, four for the exponent, three for the fraction; no infinity, and two NaN.
// The nearest one; what is larger than 448, the largest, becomes that.
inline uint8_t e4m3_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const auto sign = uint8_t(bits >> 24 & 0x80);
    bits &= 0x7FFFFFFF;
    if (x != x) return sign | 0x7F;
    if (std::fabs(x) >= 448) return sign | 0x7E;
    if (std::fabs(x) < 0x1p-6f) return sign | uint8_t(std::rint(std::fabs(x) * 0x1p9f));
    return sign | uint8_t(((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3));
}

inline float from_e4m3(uint8_t bits) {
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    const float size = (bits & 127) == 127 ? NAN
                       : exponent == 0     ? std::ldexp(float(fraction), -9)
                                           : std::ldexp(float(8 + fraction), exponent - 10);
    return bits & 128 ? -size : size;
}

// A 16-bit float that is computed with in float, and rounded when it is stored.
template <uint16_t (*round)(float), float (*widen)(uint16_t)>
struct Narrow {
    uint16_t bits;

    Narrow() = default;
    Narrow(float x) : bits(round(x)) {}
    operator float() const { return widen(bits); }
    Narrow& operator+=(float x) { return *this = Narrow(float(*this) + x); }
    Narrow& operator-=(float x) { return *this = Narrow(float(*this) - x); }
    Narrow& operator*=(float x) { return *this = Narrow(float(*this) * x); }
    Narrow& operator/=(float x) { return *this = Narrow(float(*this) / x); }
};

// Two of them in 32 bits.
template <typename T>
struct alignas(4) Pair {
    T x, y;
};

}  // namespace simt

using __nv_bfloat16 = simt::Narrow<simt::bfloat16_bits, simt::from_bfloat16>;
using __half = simt::Narrow<simt::half_bits, simt::from_half>;
using half = __half;
using __nv_bfloat162 = simt::Pair<__nv_bfloat16>;
using __half2 = simt::Pair<__half>;
using half2 = __half2;

inline float __bfloat162float(__nv_bfloat16 x) {
    return x;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
    return x;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    return x;
}
inline float __half2float(__half x) {
    return x;
}
inline __half __float2half(float x) {
    return x;
}
inline __half __float2half_rn(float x) {
    return x;
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {x, y};
}
inline __half2 __floats2half2_rn(float x, float y) {
    return {x, y};
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) {
    return {pair.x, pair.y};
}
inline float2 __half22float2(__half2 pair) {
    return {pair.x, pair.y};
}

// Four numbers of 8 bits, from which nothing but bits is wanted; and one.
struct alignas(4) __nv_fp8x4_e4m3 {
    uint32_t __x;

    __nv_fp8x4_e4m3() = default;
    explicit __nv_fp8x4_e4m3(const float4& x)
        : __x(simt::e4m3_bits(x.x) | simt::e4m3_bits(x.y) << 8 | simt::e4m3_bits(x.z) << 16 |
              uint32_t(simt::e4m3_bits(x.w)) << 24) {}
};
struct __nv_fp8_e4m3 {
    uint8_t __x;
};
