// The matrix product in steps, each a whole function that differs from the last in one idea:
//
//     C += A B            A (m, k), B (k, n), C (m, n), float32, rows one after another
//
// The chapter docs/matmul.md shows them one by one, compiles this file and times it. From `vectors`
// on, n has to be a multiple of kColumns, and from `register_tile` on m of kRows; the kernel that
// the library uses, csrc/cpu/kernels/matmul.h, takes any shape. Sources: Goto and van de Geijn
// 2008; Van Zee and van de Geijn 2015.

#include <cstring>
#include <vector>

#define STEP extern "C" void

// [three loops]
STEP three_loops(long m, long n, long k, const float* a, const float* b, float* c) {
    for (long i = 0; i < m; ++i)
        for (long j = 0; j < n; ++j) {
            float sum = 0;
            for (long p = 0; p < k; ++p) sum += a[i * k + p] * b[p * n + j];
            c[i * n + j] += sum;
        }
}
// [loop order]
STEP loop_order(long m, long n, long k, const float* a, const float* b, float* __restrict c) {
    for (long i = 0; i < m; ++i)
        for (long p = 0; p < k; ++p)
            for (long j = 0; j < n; ++j) c[i * n + j] += a[i * k + p] * b[p * n + j];
}
// [blocks]
constexpr long kBlockDepth = 64, kBlockWidth = 256;  // of B: 64 KiB

static long least(long x, long y) {
    return x < y ? x : y;
}

STEP blocks(long m, long n, long k, const float* a, const float* b, float* __restrict c) {
    for (long pp = 0; pp < k; pp += kBlockDepth)
        for (long jj = 0; jj < n; jj += kBlockWidth)
            for (long i = 0; i < m; ++i)
                for (long p = pp; p < least(pp + kBlockDepth, k); ++p)
                    for (long j = jj; j < least(jj + kBlockWidth, n); ++j)
                        c[i * n + j] += a[i * k + p] * b[p * n + j];
}
// [a vector]
#if defined __AVX512F__
constexpr long kBytes = 64;
#elif defined __AVX2__
constexpr long kBytes = 32;
#else
constexpr long kBytes = 16;
#endif
constexpr long kLanes = kBytes / sizeof(float);
typedef float Vector __attribute__((vector_size(kBytes)));

static Vector load(const float* from) {
    Vector x;
    std::memcpy(&x, from, sizeof x);  // one instruction; `from` may lie anywhere
    return x;
}
static void store(float* to, Vector x) {
    std::memcpy(to, &x, sizeof x);
}
// [vectors]
STEP vectors(long m, long n, long k, const float* a, const float* b, float* c) {
    for (long pp = 0; pp < k; pp += kBlockDepth)
        for (long jj = 0; jj < n; jj += kBlockWidth)
            for (long i = 0; i < m; ++i)
                for (long p = pp; p < least(pp + kBlockDepth, k); ++p) {
                    const float factor = a[i * k + p];
                    for (long j = jj; j < least(jj + kBlockWidth, n); j += kLanes)
                        store(c + i * n + j, load(c + i * n + j) + factor * load(b + p * n + j));
                }
}
// [micro-kernel]
#if defined __AVX512F__
constexpr long kRows = 12;  // 24 sums, in 32 registers
#elif defined __AVX2__
constexpr long kRows = 6;  // 12 sums, in 16
#else
constexpr long kRows = 4;
#endif
constexpr long kColumns = 2 * kLanes;

[[gnu::always_inline]] inline void micro_kernel(long depth, const float* a, long a_row, long a_step,
                                                const float* b, long b_step, float* c, long c_row) {
    Vector sum[kRows][2] = {};
    for (long p = 0; p < depth; ++p, a += a_step, b += b_step) {
        const Vector left = load(b), right = load(b + kLanes);
#pragma GCC unroll 16
        for (long i = 0; i < kRows; ++i) {
            sum[i][0] += a[i * a_row] * left;
            sum[i][1] += a[i * a_row] * right;
        }
    }
#pragma GCC unroll 16
    for (long i = 0; i < kRows; ++i, c += c_row) {
        store(c, load(c) + sum[i][0]);
        store(c + kLanes, load(c + kLanes) + sum[i][1]);
    }
}
// [register tile]
STEP register_tile(long m, long n, long k, const float* a, const float* b, float* c) {
    for (long j = 0; j < n; j += kColumns)
        for (long i = 0; i < m; i += kRows)
            micro_kernel(k, a + i * k, k, 1, b + j, n, c + i * n + j, n);
}
// [packing]
constexpr long kDepth = 192, kHeight = 8 * kRows;

STEP packing(long m, long n, long k, const float* a, const float* b, float* c) {
    std::vector<float> packed_a(kHeight * kDepth), packed_b(kDepth * n);
    for (long pp = 0; pp < k; pp += kDepth) {
        const long depth = least(kDepth, k - pp);
        float* to = packed_b.data();
        for (long j = 0; j < n; j += kColumns)
            for (long p = pp; p < pp + depth; ++p, to += kColumns)
                std::memcpy(to, b + p * n + j, kColumns * sizeof(float));
        for (long ii = 0; ii < m; ii += kHeight) {
            const long height = least(kHeight, m - ii);
            to = packed_a.data();
            for (long i = ii; i < ii + height; i += kRows)
                for (long p = pp; p < pp + depth; ++p)
                    for (long r = 0; r < kRows; ++r) *to++ = a[(i + r) * k + p];
            for (long j = 0; j < n; j += kColumns)
                for (long i = 0; i < height; i += kRows)
                    micro_kernel(depth, packed_a.data() + i * depth, 1, kRows,
                                 packed_b.data() + j * depth, kColumns, c + (ii + i) * n + j, n);
        }
    }
}
// [end]
