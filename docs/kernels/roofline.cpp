// Two loops that the chapter docs/roofline.md compiles and times: multiply-adds x = x * a + b in
// chains, where each waits for the one before it in its chain and none for another chain, on
// numbers and on vectors; and the sum of every so many numbers of an array.

#if defined __AVX512F__
constexpr long kBytes = 64;
#elif defined __AVX2__
constexpr long kBytes = 32;
#else
constexpr long kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

// [chains]
template <typename T, int chains>
static float multiply_add(long rounds) {
    T x[chains];
    for (int i = 0; i < chains; ++i) x[i] = T{} + (i + 2.0f);
    for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < chains; ++i) x[i] = x[i] * 0.999f + 0.001f;
    }
    T sum{};
    for (int i = 0; i < chains; ++i) sum += x[i];
    float out;
    __builtin_memcpy(&out, &sum, sizeof out);
    return out;
}

// [end]
template <typename T>
static float run(int chains, long rounds) {
    switch (chains) {
        case 1:
            return multiply_add<T, 1>(rounds);
        case 2:
            return multiply_add<T, 2>(rounds);
        case 4:
            return multiply_add<T, 4>(rounds);
        case 8:
            return multiply_add<T, 8>(rounds);
        default:
            return multiply_add<T, 12>(rounds);
    }
}

extern "C" float numbers(int chains, long rounds) {
    return run<float>(chains, rounds);
}
extern "C" float vectors(int chains, long rounds) {
    return run<Vector>(chains, rounds);
}
extern "C" long lanes() {
    return kBytes / sizeof(float);
}

extern "C" float sum_every(const float* x, long count, long step) {
    float sums[8] = {};
    for (long i = 0; i + 8 <= count; i += 8)
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) sums[j] += x[(i + j) * step];
    float sum = 0;
    for (float part : sums) sum += part;
    return sum;
}
