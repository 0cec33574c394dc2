// Vectors of the width that the compiler was told to use, and the functions on them that kernels
// share. They are GCC's and Clang's vector extensions: a `Vector<float>` takes part in + - * / and
// comparisons like a float, lane by lane.
//
// Kernels are compiled once per instruction set (setup.py), each time in a namespace of its own,
// MT_INSTRUCTION_SET. Nothing in this folder may call an inline function of the standard library:
// the linker keeps one copy of those, and it could be the one that needs AVX-512.

#pragma once

#include <cstdint>

namespace minitorch::MT_INSTRUCTION_SET {

// Stored as 16 bits, computed in float.
struct bfloat16 {
    uint16_t bits;
};

template <typename T>
struct ComputeOf {
    using type = T;
};
template <>
struct ComputeOf<bfloat16> {
    using type = float;
};

// What arithmetic on T is done in.
template <typename T>
using Compute = typename ComputeOf<T>::type;

template <typename T>
struct Lanes {
    typedef T type __attribute__((vector_size(MT_VECTOR_BYTES)));
    static constexpr long count = MT_VECTOR_BYTES / sizeof(T);
};
// As many as there are lanes of float.
template <>
struct Lanes<bfloat16> {
    typedef uint16_t type __attribute__((vector_size(MT_VECTOR_BYTES / 2)));
    static constexpr long count = MT_VECTOR_BYTES / 4;
};

template <typename T>
using Vector = typename Lanes<T>::type;

template <typename T>
constexpr T kInfinity = __builtin_huge_val();

template <typename T>
Vector<T> broadcast(T value) {
    return value - Vector<T>{};  // adding 0 would change -0, so compilers do add it
}

inline Vector<float> widen(Vector<bfloat16> stored) {
    return (Vector<float>)(__builtin_convertvector(stored, Vector<uint32_t>) << 16);
}
inline float widen(bfloat16 stored) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(stored.bits) << 16);
}

// To nearest, ties to even; NaN stays NaN.
inline Vector<bfloat16> narrow(Vector<float> value) {
    const auto bits = (Vector<uint32_t>)value;
    const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const auto quiet = (bits >> 16) | 0x40;
    return __builtin_convertvector(value == value ? rounded : quiet, Vector<bfloat16>);
}
inline bfloat16 narrow(float value) {
    const auto bits = __builtin_bit_cast(uint32_t, value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return {static_cast<uint16_t>(value == value ? rounded : (bits >> 16) | 0x40)};
}

// A vector of Lanes<T>::count elements, widened to Compute<T>.
template <typename T>
Vector<Compute<T>> load(const T* from) {
    Vector<T> stored;
    __builtin_memcpy(&stored, from, sizeof stored);
    if constexpr (__is_same(T, bfloat16))
        return widen(stored);
    else
        return stored;
}

template <typename T>
Compute<T> load_one(const T* from) {
    if constexpr (__is_same(T, bfloat16))
        return widen(*from);
    else
        return *from;
}

template <typename T>
void store(T* to, Vector<Compute<T>> value) {
    Vector<T> stored;
    if constexpr (__is_same(T, bfloat16))
        stored = narrow(value);
    else
        stored = value;
    __builtin_memcpy(to, &stored, sizeof stored);
}

template <typename T>
void store_one(T* to, Compute<T> value) {
    if constexpr (__is_same(T, bfloat16))
        *to = narrow(value);
    else
        *to = static_cast<T>(value);
}

// The first `count` elements, and `fill` in the other lanes.
template <typename T>
Vector<Compute<T>> load_part(const T* from, long count, Compute<T> fill) {
    Vector<Compute<T>> out = broadcast(fill);
    for (long lane = 0; lane < count; ++lane) out[lane] = load_one(from + lane);
    return out;
}

template <typename T>
void store_part(T* to, Vector<Compute<T>> value, long count) {
    for (long lane = 0; lane < count; ++lane) store_one(to + lane, Compute<T>(value[lane]));
}

inline float square_root(float x) {
    return __builtin_sqrtf(x);
}
inline double square_root(double x) {
    return __builtin_sqrt(x);
}

inline float log_of(float x) {
    return __builtin_logf(x);
}
inline double log_of(double x) {
    return __builtin_log(x);
}

// Makes the compiler have the value in a register here.
template <typename T>
inline void in_register(Vector<T>& value) {
#if defined(__AVX512F__)
    asm("" : "+v"(value));
#elif defined(__x86_64__)
    asm("" : "+x"(value));
#elif defined(__aarch64__)
    asm("" : "+w"(value));
#else
    (void)value;
#endif
}

// Lane by lane; b where either is NaN.
template <typename T>
Vector<T> maximum(Vector<T> a, Vector<T> b) {
    return a > b ? a : b;
}

// One value from all lanes, by halves: `combine(first half, second half)` until one is left.
template <typename T, typename Combine>
T reduce(Vector<T> value, Combine combine) {
    for (long half = Lanes<T>::count / 2; half > 0; half /= 2)
        for (long lane = 0; lane < half; ++lane)
            value[lane] = combine(value[lane], value[lane + half]);
    return value[0];
}

template <typename T>
T largest_lane(Vector<T> value) {
    return reduce<T>(value, [](T a, T b) { return a > b ? a : b; });
}

template <typename T>
T sum_of_lanes(Vector<T> value) {
    return reduce<T>(value, [](T a, T b) { return a + b; });
}

// exp(x) for x <= 0: with n = round(x / ln 2) and r = x - n ln 2, |r| <= ln(2) / 2,
//
//     exp(x) = 2^n exp(r),   exp(r) = 1 + r + r² P(r)
//
// P is a minimax fit (Remez exchange on the relative error of exp(r), its first two coefficients
// then rounded to 1): 1.5e-8 for float, 1.2e-17 for double. With the roundings the result is within
// 1.5 units in the last place. ln 2 is split in two, so that n times its head is exact. n comes
// from adding 1.5 * 2^m, m the bits of the mantissa, which leaves n in the low bits of the sum;
// those are then shifted into the exponent. Results below the smallest normal number are 0;
// exp(-inf) is 0, exp(NaN) is NaN.
template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
    using Bits = uint32_t;
    static constexpr int mantissa_bits = 23;
    static constexpr Bits exponent_bias = 127;
    static constexpr float smallest = -87.33654f;
    static constexpr float shift = 0x1.8p23f;
    static constexpr float ln2_head = 0.693359375f;
    static constexpr float ln2_tail = -2.12194440e-4f;
    static constexpr float polynomial[] = {
        1.3836835745e-3f, 8.3748240306e-3f, 4.1668226188e-2f, 1.6666420072e-1f, 4.9999992075e-1f,
    };
};

template <>
struct ExpConstants<double> {
    using Bits = uint64_t;
    static constexpr int mantissa_bits = 52;
    static constexpr Bits exponent_bias = 1023;
    static constexpr double smallest = -708.39641853226408;
    static constexpr double shift = 0x1.8p52;
    static constexpr double ln2_head = 6.93145751953125e-1;
    static constexpr double ln2_tail = 1.42860682030941723212e-6;
    static constexpr double polynomial[] = {
        2.4994303273814395124e-8, 2.7632308174894485818e-7, 2.755762262047198039e-6,
        2.4801486481436400871e-5, 1.9841269432470488344e-4, 1.3888888951261041615e-3,
        8.333333333559433932e-3,  4.1666666666492629684e-2, 1.6666666666666168204e-1,
        5.0000000000000177031e-1,
    };
};

template <typename T>
Vector<T> exp_nonpositive(Vector<T> x) {
    using C = ExpConstants<T>;
    using BitVector = Vector<typename C::Bits>;
    const auto underflow = x < C::smallest;
    x = underflow ? broadcast<T>(C::smallest) : x;

    const Vector<T> shifted = x * T(1.4426950408889634074) + C::shift;
    const Vector<T> n = shifted - C::shift;
    const Vector<T> r = (x - n * C::ln2_head) - n * C::ln2_tail;

    Vector<T> p = broadcast<T>(C::polynomial[0]);
    for (unsigned i = 1; i < sizeof C::polynomial / sizeof(T); ++i) p = p * r + C::polynomial[i];
    p = p * (r * r) + r + T(1);

    const BitVector power = ((BitVector)shifted + C::exponent_bias) << C::mantissa_bits;
    return underflow ? Vector<T>{} : p * (Vector<T>)power;
}

// 1 / (1 + exp(-x)), without overflow: with e = exp(-|x|) it is 1 / (1 + e), or e / (1 + e) for x < 0.
template <typename T>
Vector<T> sigmoid(Vector<T> x) {
    const Vector<T> e = exp_nonpositive<T>(x > T(0) ? -x : x);
    return (x < T(0) ? e : broadcast<T>(1)) / (T(1) + e);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
