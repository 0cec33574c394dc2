// Vectors of the width that the compiler was told to use, and how they are read, written and reduced.
// They are GCC's and Clang's vector extensions: a `Vector<float>` takes part in + - * / and
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

}  // namespace minitorch::MT_INSTRUCTION_SET
