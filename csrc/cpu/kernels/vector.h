// Vectors of the width that the compiler was told to use, and the functions on them that kernels
// share. They are GCC's and Clang's vector extensions: a `Vector<float>` takes part in + - * / and
// comparisons like a float, lane by lane.
//
// Kernels are compiled once per instruction set (setup.py), each time in a namespace of its own,
// MT_INSTRUCTION_SET. Nothing in this folder may call an inline function of the standard library:
// the linker keeps one copy of those, and it could be the one that needs AVX-512.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <type_traits>
#include <utility>

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

// From 16 bits to 32 and back; compilers make several instructions of __builtin_convertvector. (The
// functions without a mask start from a variable that GCC warns of as not initialised.)
inline Vector<uint32_t> longer(Vector<bfloat16> stored) {
#if MT_VECTOR_BYTES == 64
    return (Vector<uint32_t>)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)stored);
#elif MT_VECTOR_BYTES == 32
    return (Vector<uint32_t>)_mm256_cvtepu16_epi32((__m128i)stored);
#else
    return __builtin_convertvector(stored, Vector<uint32_t>);
#endif
}
inline Vector<bfloat16> shorter(Vector<uint32_t> value) {
#if MT_VECTOR_BYTES == 64
    return (Vector<bfloat16>)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)value);
#elif MT_VECTOR_BYTES == 32
    const auto whole = (__m256i)value;
    return (Vector<bfloat16>)_mm_packus_epi32(_mm256_castsi256_si128(whole),
                                              _mm256_extracti128_si256(whole, 1));
#else
    return __builtin_convertvector(value, Vector<bfloat16>);
#endif
}

inline Vector<float> widen(Vector<bfloat16> stored) {
    return (Vector<float>)(longer(stored) << 16);
}
inline float widen(bfloat16 stored) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(stored.bits) << 16);
}

// To nearest, ties to even; NaN stays NaN. Where the processor has an instruction for it, numbers too
// small to be normal become zero.
inline Vector<bfloat16> narrow(Vector<float> value) {
#if defined(__AVX512BF16__)
    return (Vector<bfloat16>)_mm512_cvtneps_pbh((__m512)value);
#else
    const auto bits = (Vector<uint32_t>)value;
    const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const auto quiet = (bits >> 16) | 0x40;
    return shorter(value == value ? rounded : quiet);
#endif
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

// Two neighbouring bfloat16, kept in a float's place: instructions that multiply pairs take vectors of
// them.
struct Pair {
    bfloat16 first, second;
};
template <>
struct ComputeOf<Pair> {
    using type = float;
};
template <>
struct Lanes<Pair> : Lanes<float> {};

inline float load_one(const Pair* from) {
    return __builtin_bit_cast(float, *from);
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

// The same of two vectors, one after the other.
template <typename T>
void store_two(T* to, Vector<Compute<T>> first, Vector<Compute<T>> second) {
#if defined(__AVX512BF16__)
    if constexpr (__is_same(T, bfloat16))
        return _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
#endif
    store(to, first);
    store(to + Lanes<Compute<T>>::count, second);
}

template <typename T>
void store_one(T* to, Compute<T> value) {
    if constexpr (__is_same(T, bfloat16))
        *to = narrow(value);
    else
        *to = static_cast<T>(value);
}

// Whether a part of a vector moves as fast as all of it: under a mask, by one instruction.
#if MT_VECTOR_BYTES == 64
constexpr bool kMasked = true;
#else
constexpr bool kMasked = false;
#endif

// Bit i: whether lane i of a comparison of vectors of C holds.
template <typename C, typename Mask>
unsigned bits_of(Mask mask) {
#if MT_VECTOR_BYTES == 64
    if constexpr (sizeof(C) == 4) return _mm512_movepi32_mask((__m512i)mask);
    if constexpr (sizeof(C) == 8) return _mm512_movepi64_mask((__m512i)mask);
#elif MT_VECTOR_BYTES == 32
    if constexpr (sizeof(C) == 4) return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask));
    if constexpr (sizeof(C) == 8) return static_cast<unsigned>(_mm256_movemask_pd((__m256d)mask));
#endif
    unsigned bits = 0;
    for (long lane = 0; lane < Lanes<C>::count; ++lane) bits |= (mask[lane] & 1u) << lane;
    return bits;
}

// All bits of the first `count` lanes.
template <typename C>
auto lanes_below(long count) {
    using Numbers = decltype(Vector<C>{} < Vector<C>{});
    using Number = std::remove_reference_t<decltype(Numbers{}[0])>;
    return [=]<long... i>(std::integer_sequence<long, i...>) {
        return Numbers{i...} < static_cast<Number>(count);
    }(std::make_integer_sequence<long, Lanes<C>::count>());
}

// The first `count` lanes of a vector, and `fill` in the others.
template <typename C>
Vector<C> first_lanes(Vector<C> value, long count, C fill) {
    return lanes_below<C>(count) ? value : broadcast(fill);
}

// The first `count` elements, and `fill` in the other lanes.
template <typename T>
Vector<Compute<T>> load_part(const T* from, long count, Compute<T> fill) {
    using C = Compute<T>;
#if MT_VECTOR_BYTES == 64
    const unsigned mask = (1u << count) - 1;
    if constexpr (__is_same(T, float) || __is_same(T, Pair))
        return (Vector<C>)_mm512_mask_loadu_ps((__m512)broadcast(fill), mask, from);
    if constexpr (__is_same(T, double))
        return (Vector<C>)_mm512_mask_loadu_pd((__m512d)broadcast(fill), mask, from);
    if constexpr (__is_same(T, bfloat16))
        return first_lanes<C>(widen((Vector<bfloat16>)_mm256_maskz_loadu_epi16(mask, from)), count,
                              fill);
#elif MT_VECTOR_BYTES == 32
    if constexpr (__is_same(T, float))
        return first_lanes<C>(
            (Vector<C>)_mm256_maskload_ps(from, (__m256i)lanes_below<C>(count)), count, fill);
    if constexpr (__is_same(T, double))
        return first_lanes<C>(
            (Vector<C>)_mm256_maskload_pd(from, (__m256i)lanes_below<C>(count)), count, fill);
#endif
    Vector<C> out = broadcast(fill);
    for (long lane = 0; lane < count; ++lane) out[lane] = load_one(from + lane);
    return out;
}

template <typename T>
void store_part(T* to, Vector<Compute<T>> value, long count) {
    using C = Compute<T>;
#if MT_VECTOR_BYTES == 64
    const unsigned mask = (1u << count) - 1;
    if constexpr (__is_same(T, float)) return _mm512_mask_storeu_ps(to, mask, (__m512)value);
    if constexpr (__is_same(T, double)) return _mm512_mask_storeu_pd(to, mask, (__m512d)value);
    if constexpr (__is_same(T, bfloat16))
        return _mm256_mask_storeu_epi16(to, mask, (__m256i)narrow(value));
#elif MT_VECTOR_BYTES == 32
    if constexpr (__is_same(T, float))
        return _mm256_maskstore_ps(to, (__m256i)lanes_below<C>(count), (__m256)value);
    if constexpr (__is_same(T, double))
        return _mm256_maskstore_pd(to, (__m256i)lanes_below<C>(count), (__m256d)value);
#endif
    for (long lane = 0; lane < count; ++lane) store_one(to + lane, C(value[lane]));
}

// f(i, get, put) for each vector of a row, get(pointer) giving its elements and put(pointer, values)
// writing them; the last one may be a part, filled up with 0.
template <typename C, typename F>
void for_each_vector(long columns, F&& f) {
    constexpr long lanes = Lanes<C>::count;
    long i = 0;
    for (; i + lanes <= columns; i += lanes)
        f(i, [i](const auto* from) { return load(from + i); },
          [i](auto* to, Vector<C> x) { store(to + i, x); });
    if (const long rest = columns - i; rest > 0)
        f(i, [=](const auto* from) { return load_part(from + i, rest, C(0)); },
          [=](auto* to, Vector<C> x) { store_part(to + i, x, rest); });
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

inline Vector<float> pairs(Vector<bfloat16> first, Vector<bfloat16> second) {
    return (Vector<float>)(longer(first) | longer(second) << 16);
}

// The same of numbers, to nearest; ties go away from 0.
inline Vector<float> rounded_pairs(Vector<float> first, Vector<float> second) {
    using Bits = Vector<uint32_t>;
    return (Vector<float>)(((Bits)first + 0x8000) >> 16 | (((Bits)second + 0x8000) & 0xffff0000u));
}

// The sum of both products of two pairs, lane by lane, and of `sum`.
inline Vector<float> add_pairs(Vector<float> sum, Vector<float> a, Vector<float> b) {
#if defined(__AVX512BF16__)
    return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    using Bits = Vector<uint32_t>;
    const auto second = [](Vector<float> x) { return (Vector<float>)((Bits)x & 0xffff0000u); };
    const auto first = [](Vector<float> x) { return (Vector<float>)((Bits)x << 16); };
    return sum + second(a) * second(b) + first(a) * first(b);
#endif
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

// Lane by lane; b where either is NaN. (Of the comparison compilers make two instructions.)
template <typename T>
Vector<T> maximum(Vector<T> a, Vector<T> b) {
#if MT_VECTOR_BYTES == 64
    if constexpr (__is_same(T, float)) return (Vector<T>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
    if constexpr (__is_same(T, double)) return (Vector<T>)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
#elif MT_VECTOR_BYTES == 32
    if constexpr (__is_same(T, float)) return (Vector<T>)_mm256_max_ps((__m256)a, (__m256)b);
    if constexpr (__is_same(T, double)) return (Vector<T>)_mm256_max_pd((__m256d)a, (__m256d)b);
#endif
    return a > b ? a : b;
}

// One value from all lanes, by halves: `combine(first half, second half)` until one is left.
template <typename T, long half = Lanes<T>::count / 2, typename Combine>
T reduce(Vector<T> value, Combine combine) {
    if constexpr (half == 0)
        return value[0];
    else
        return reduce<T, half / 2>(
            combine(value, [&]<long... i>(std::integer_sequence<long, i...>) {
                return __builtin_shufflevector(value, value, ((i + half) % Lanes<T>::count)...);
            }(std::make_integer_sequence<long, Lanes<T>::count>())),
            combine);
}

template <typename T>
T largest_lane(Vector<T> value) {
    return reduce<T>(value, [](Vector<T> a, Vector<T> b) { return maximum<T>(a, b); });
}

template <typename T>
T sum_of_lanes(Vector<T> value) {
    return reduce<T>(value, [](Vector<T> a, Vector<T> b) { return a + b; });
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
    using Int = int32_t;
    static constexpr int mantissa_bits = 23;
    static constexpr Bits exponent_bias = 127;
    static constexpr float smallest = -87.33654f, smallest_power = -126;
    static constexpr float shift = 0x1.8p23f;
    static constexpr float ln2_head = 0.693359375f;
    static constexpr float ln2_tail = -2.12194440e-4f;
    static constexpr float polynomial[] = {
        1.3836835745e-3f, 8.3748240306e-3f, 4.1668226188e-2f, 1.6666420072e-1f, 4.9999992075e-1f,
    };
    static constexpr float all_zero = -105, all_infinite = 90, tanh_is_one = 20;
    static constexpr float smallest_normal = 0x1p-126f, lift = 0x1p23f;
    static constexpr float log_series[] = {
        0.24279078841f, 0.28498786688f, 0.40000972152f, 0.66666662693f,
    };
};

template <>
struct ExpConstants<double> {
    using Bits = uint64_t;
    using Int = int64_t;
    static constexpr int mantissa_bits = 52;
    static constexpr Bits exponent_bias = 1023;
    static constexpr double smallest = -708.39641853226408, smallest_power = -1022;
    static constexpr double shift = 0x1.8p52;
    static constexpr double ln2_head = 6.93145751953125e-1;
    static constexpr double ln2_tail = 1.42860682030941723212e-6;
    static constexpr double polynomial[] = {
        2.4994303273814395124e-8, 2.7632308174894485818e-7, 2.755762262047198039e-6,
        2.4801486481436400871e-5, 1.9841269432470488344e-4, 1.3888888951261041615e-3,
        8.333333333559433932e-3,  4.1666666666492629684e-2, 1.6666666666666168204e-1,
        5.0000000000000177031e-1,
    };
    static constexpr double all_zero = -746, all_infinite = 711, tanh_is_one = 40;
    static constexpr double smallest_normal = 0x1p-1022, lift = 0x1p52;
    static constexpr double log_series[] = {
        1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01,
        2.222219843214978396e-01, 2.857142874366239149e-01, 3.999999999940941908e-01,
        6.666666666666735130e-01,
    };
};

// x = n ln 2 + r, with n in the low bits of `shifted`, and q = exp(r) - 1.
template <typename T>
struct Reduced {
    using C = ExpConstants<T>;
    using BitVector = Vector<typename C::Bits>;
    using IntVector = Vector<typename C::Int>;
    Vector<T> shifted, q;

    explicit Reduced(Vector<T> x) { expand(reduce(x)); }
    // tail: added to x, which does not hold it.
    Reduced(Vector<T> x, Vector<T> tail) { expand(reduce(x) + tail); }

    Vector<T> reduce(Vector<T> x) {
        shifted = x * T(1.4426950408889634074) + C::shift;
        const Vector<T> n = shifted - C::shift;
        return (x - n * C::ln2_head) - n * C::ln2_tail;
    }
    void expand(Vector<T> r) {
        Vector<T> p = broadcast<T>(C::polynomial[0]);
        for (unsigned i = 1; i < sizeof C::polynomial / sizeof(T); ++i)
            p = p * r + C::polynomial[i];
        q = p * (r * r) + r;
    }
    IntVector n() const { return (IntVector)shifted - __builtin_bit_cast(typename C::Int, C::shift); }
    static Vector<T> power(BitVector n) {  // 2^n, for n of a normal number
        return (Vector<T>)((n + C::exponent_bias) << C::mantissa_bits);
    }
};

template <typename T>
Vector<T> exp_nonpositive(Vector<T> x) {
    using C = ExpConstants<T>;
    const Reduced<T> reduced(maximum<T>(broadcast<T>(C::smallest), x));
    const Vector<T> power = Reduced<T>::power((Vector<typename C::Bits>)reduced.shifted);
    return x < C::smallest ? Vector<T>{} : (reduced.q + T(1)) * power;
}
// exp(x + tail), `tail` as above.
template <typename T>
Vector<T> exp_nonpositive(Vector<T> x, Vector<T> tail) {
    using C = ExpConstants<T>;
    const Reduced<T> reduced(maximum<T>(broadcast<T>(C::smallest), x), tail);
    const Vector<T> power = Reduced<T>::power((Vector<typename C::Bits>)reduced.shifted);
    return x < C::smallest ? Vector<T>{} : (reduced.q + T(1)) * power;
}

// 2^x for x <= 0, with n = round(x), r = x - n and the same polynomial, whose coefficients take in the
// powers of ln 2; cheaper, since r is exact. What is said above of exp holds here.
template <typename T>
Vector<T> exp2_nonpositive(Vector<T> x) {
    using C = ExpConstants<T>;
    constexpr double ln2 = 0.69314718055994530942;
    constexpr int degree = sizeof C::polynomial / sizeof(T) + 1;
    const auto coefficient = [](int power) constexpr {
        double value = power < 2 ? 1 : C::polynomial[degree - power];
        for (int i = 0; i < power; ++i) value *= ln2;
        return static_cast<T>(value);
    };
#if MT_VECTOR_BYTES != 64
    const Vector<T> whole = x;
    x = maximum<T>(broadcast<T>(C::smallest_power), x);
#endif
    const Vector<T> shifted = x + C::shift;
    const Vector<T> n = shifted - C::shift;
    const Vector<T> r = x - n;
    Vector<T> p = broadcast<T>(coefficient(degree));
#pragma GCC unroll 12
    for (int i = degree - 1; i >= 0; --i) p = p * r + coefficient(i);
#if MT_VECTOR_BYTES == 64
    if constexpr (__is_same(T, float)) {
        const auto some = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(C::smallest_power), _CMP_NLT_UQ);
        return (Vector<T>)_mm512_maskz_scalef_ps(some, (__m512)p, (__m512)n);
    } else {
        const auto some = _mm512_cmp_pd_mask((__m512d)x, _mm512_set1_pd(C::smallest_power), _CMP_NLT_UQ);
        return (Vector<T>)_mm512_maskz_scalef_pd(some, (__m512d)p, (__m512d)n);
    }
#else
    const Vector<T> power = Reduced<T>::power((Vector<typename C::Bits>)shifted);
    return whole < C::smallest_power ? Vector<T>{} : p * power;
#endif
}

// exp(x) for all x, through the subnormal numbers to 0 and to infinity: 2^n in two factors, since
// one alone could leave the range before the product does.
template <typename T>
Vector<T> exp(Vector<T> x) {
    using C = ExpConstants<T>;
    x = x < C::all_zero ? broadcast<T>(C::all_zero) : x;
    x = x > C::all_infinite ? broadcast<T>(C::all_infinite) : x;
    const Reduced<T> reduced(x);
    const auto half = reduced.n() >> 1;
    const auto rest = reduced.n() - half;
    using BitVector = Vector<typename C::Bits>;
    return (reduced.q + T(1)) * Reduced<T>::power((BitVector)half) *
           Reduced<T>::power((BitVector)rest);
}

// tanh(|x|) = m / (m + 2) with m = exp(2 |x|) - 1 = 2^n q + (2^n - 1), which cancels nowhere.
template <typename T>
Vector<T> tanh(Vector<T> x) {
    using C = ExpConstants<T>;
    Vector<T> twice = 2 * (x < T(0) ? -x : x);
    twice = twice > C::tanh_is_one ? broadcast<T>(C::tanh_is_one) : twice;
    const Reduced<T> reduced(twice);
    const Vector<T> power = Reduced<T>::power((Vector<typename C::Bits>)reduced.shifted);
    const Vector<T> m = power * reduced.q + (power - T(1));
    const Vector<T> y = m / (m + T(2));
    return x < T(0) ? -y : x == T(0) ? x : y;
}

// log(x) for x >= 0: with x = 2^k (1 + f), sqrt(1/2) < 1 + f < sqrt(2), and s = f / (2 + f),
//
//     log(1 + f) = f - f²/2 + s (f²/2 + R(s²))
//
// within 1.5 units in the last place. log(0) is -inf, of a negative number or NaN it is NaN.
// The polynomial R and the splitting are those of e_log.c and e_logf.c in Sun's fdlibm.
template <typename T>
Vector<T> log(Vector<T> x) {
    using C = ExpConstants<T>;
    using BitVector = Vector<typename C::Bits>;
    using IntVector = Vector<typename C::Int>;
    const auto subnormal = x < C::smallest_normal;
    const Vector<T> lifted = subnormal ? x * C::lift : x;
    const BitVector bits = (BitVector)lifted;
    const BitVector root_half = BitVector{} + __builtin_bit_cast(typename C::Bits, T(0.70710678118654752440));
    const IntVector exponent = (IntVector)(bits - root_half) >> C::mantissa_bits;
    const Vector<T> f =
        (Vector<T>)(bits - ((BitVector)exponent << C::mantissa_bits)) - T(1);
    const Vector<T> k = __builtin_convertvector(exponent, Vector<T>) -
                        (subnormal ? broadcast<T>(C::mantissa_bits) : Vector<T>{});
    const Vector<T> s = f / (T(2) + f), z = s * s, half_square = T(0.5) * f * f;
    Vector<T> series = broadcast<T>(C::log_series[0]);
    for (unsigned i = 1; i < sizeof C::log_series / sizeof(T); ++i)
        series = series * z + C::log_series[i];
    series *= z;
    Vector<T> out = k * C::ln2_head -
                    ((half_square - (s * (half_square + series) + k * C::ln2_tail)) - f);
    out = x == kInfinity<T> ? x : out;
    out = x == T(0) ? broadcast<T>(-kInfinity<T>) : out;
    return x >= T(0) ? out : broadcast<T>(__builtin_nan(""));
}

// 1 / x of normal numbers. AVX-512's estimate has 14 bits, and a step of Newton's method twice as many:
// that takes half the time of a division, of which it can begin one in 16 cycles.
template <typename T>
Vector<T> inverse(Vector<T> x) {
#if MT_VECTOR_BYTES == 64
    if constexpr (__is_same(T, float)) {
        const auto estimate = (Vector<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
        return estimate + estimate * (1 - x * estimate);
    }
#endif
    return T(1) / x;
}

// 1 / (1 + exp(-x)), without overflow: with e = exp(-|x|) it is 1 / (1 + e), or e / (1 + e) for x < 0.
template <typename T>
Vector<T> sigmoid(Vector<T> x) {
    const Vector<T> e = exp_nonpositive<T>(x > T(0) ? -x : x);
    return (x < T(0) ? e : broadcast<T>(1)) * inverse<T>(T(1) + e);
}

// What erf and the normal distribution function are made of: exp(-y²/2), with the rounding error of
// y² kept, which exp would magnify; and for y >= 0 the tail of the distribution,
//
//     Φ(-y) = exp(-y²/2) R(y)
//
// R being the minimax fit that minitorch/kernels/erf.py describes.
inline Vector<float> bell(Vector<float> y) {
    const auto head = (Vector<float>)((Vector<uint32_t>)y & 0xfffff000u);  // head² is exact
    return exp_nonpositive<float>(-0.5f * head * head, -0.5f * (y - head) * (y + head));
}
inline Vector<float> normal_tail(Vector<float> y, Vector<float> bell_of_y) {
    const Vector<float> numerator =
        (((0.00411627634f * y + 0.0406330356f) * y + 0.183234618f) * y + 0.438294324f) * y +
        0.500000003f;
    const Vector<float> denominator =
        ((((0.0103178549f * y + 0.101858363f) * y + 0.469469246f) * y + 1.2025011f) * y +
         1.67447363f) * y + 1.0f;
    return bell_of_y * (numerator / denominator);
}

// exp(-x²/2) and Φ(x), the probability that a standard normal variable is below x. In double both
// come from the C library: exact, and not fast.
template <typename T>
void normal(Vector<T> x, Vector<T>& bell_of_x, Vector<T>& below) {
    if constexpr (__is_same(T, float)) {
        Vector<T> y = x < T(0) ? -x : x;
        y = y > T(15) ? broadcast<T>(15) : y;
        bell_of_x = bell(y);
        const Vector<T> tail = normal_tail(y, bell_of_x);
        below = x > T(0) ? T(1) - tail : tail;
    } else {
        bell_of_x = exp<T>(T(-0.5) * x * x);
        for (long lane = 0; lane < Lanes<T>::count; ++lane)
            below[lane] = 0.5 * __builtin_erfc(x[lane] * -0.70710678118654752440);
    }
}

// 2/sqrt(pi) ∫₀ˣ exp(-t²) dt. In float x P(x²) near 0, with P a minimax fit (relative error 6e-9),
// and 1 - 2 Φ(-sqrt(2) x) beyond.
template <typename T>
Vector<T> erf(Vector<T> x) {
    if constexpr (__is_same(T, float)) {
        const Vector<T> size = x < T(0) ? -x : x, square = x * x;
        const Vector<T> near =
            x * (((((-6.315128994e-4f * square + 5.051095039e-3f) * square - 2.680254728e-2f) *
                       square + 1.128271744e-1f) * square - 3.761257231e-1f) * square +
                 1.128379107f);
        Vector<T> y = size * T(1.41421356237309504880);
        y = y > T(15) ? broadcast<T>(15) : y;
        const Vector<T> far = T(1) - T(2) * normal_tail(y, bell(y));
        return size <= T(0.85) ? near : x < T(0) ? -far : far;
    } else {
        Vector<T> out;
        for (long lane = 0; lane < Lanes<T>::count; ++lane) out[lane] = __builtin_erf(x[lane]);
        return out;
    }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
