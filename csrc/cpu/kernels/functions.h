// exp, log, tanh, erf and what is made of them, of vectors. Those that activations and attention are made
// of are part of the loop that calls them: a call's constants are loaded anew, and the caller's vectors
// are all stored before it.

#pragma once

#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

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
[[gnu::always_inline]] inline Vector<T> exp_nonpositive(Vector<T> x) {
    using C = ExpConstants<T>;
    const Reduced<T> reduced(maximum<T>(broadcast<T>(C::smallest), x));
    const Vector<T> power = Reduced<T>::power((Vector<typename C::Bits>)reduced.shifted);
    return x < C::smallest ? Vector<T>{} : (reduced.q + T(1)) * power;
}
// exp(x + tail), `tail` as above.
template <typename T>
[[gnu::always_inline]] inline Vector<T> exp_nonpositive(Vector<T> x, Vector<T> tail) {
    using C = ExpConstants<T>;
    const Reduced<T> reduced(maximum<T>(broadcast<T>(C::smallest), x), tail);
    const Vector<T> power = Reduced<T>::power((Vector<typename C::Bits>)reduced.shifted);
    return x < C::smallest ? Vector<T>{} : (reduced.q + T(1)) * power;
}

// 2^x for x <= 0, with n = round(x), r = x - n and the same polynomial, whose coefficients take in the
// powers of ln 2; cheaper, since r is exact. What is said above of exp holds here.
template <typename T>
[[gnu::always_inline]] inline Vector<T> exp2_nonpositive(Vector<T> x) {
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

// 1 / (1 + exp(-x)), without overflow: with e = exp(-|x|) it is 1 / (1 + e), or e / (1 + e) for x < 0.
// Results below the smallest normal number are 0.
template <typename T>
[[gnu::always_inline]] inline Vector<T> sigmoid(Vector<T> x) {
    const Vector<T> e = exp_nonpositive<T>(x > T(0) ? -x : x);
    return (x < T(0) ? e : broadcast<T>(1)) / (T(1) + e);
}

#if MT_VECTOR_BYTES == 64
// The same in fewer instructions: AVX-512 scales by 2^n without overflow, and its estimate of 1 / x has
// 14 bits, which a step of Newton's method doubles, without a division.
template <>
[[gnu::always_inline]] inline Vector<float> sigmoid<float>(Vector<float> x) {
    const auto some = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(ExpConstants<float>::smallest), _CMP_NLT_UQ);
    const Reduced<float> reduced(maximum<float>(broadcast<float>(-100), -x));
    const auto n = (__m512)(reduced.shifted - ExpConstants<float>::shift);
    const auto e = (Vector<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)(reduced.q + 1), n);
    const Vector<float> sum = 1 + e;
    const auto estimate = _mm512_maskz_rcp14_ps(0xffff, (__m512)sum);
    const Vector<float> error = 1 - sum * (Vector<float>)estimate;
    return (Vector<float>)_mm512_maskz_fmadd_ps(some, estimate, (__m512)error, estimate);
}
#endif

// What erf and the normal distribution function are made of: exp(-y²/2), with the rounding error of
// y² kept, which exp would magnify; and for y >= 0 the tail of the distribution,
//
//     Φ(-y) = exp(-y²/2) R(y)
//
// R being the minimax fit that minitorch/kernels/erf.py describes.
[[gnu::always_inline]] inline Vector<float> bell(Vector<float> y) {
    const auto head = (Vector<float>)((Vector<uint32_t>)y & 0xfffff000u);  // head² is exact
    return exp_nonpositive<float>(-0.5f * head * head, -0.5f * (y - head) * (y + head));
}
[[gnu::always_inline]] inline Vector<float> normal_tail(Vector<float> y, Vector<float> bell_of_y) {
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
[[gnu::always_inline]] inline void normal(Vector<T> x, Vector<T>& bell_of_x, Vector<T>& below) {
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
