// The matrix product by itself, of bfloat16 and of float, for tests/kernels/test_plain_products.py.

#include "kernels/few_rows.h"

#include <cstdlib>

namespace minitorch {

void fail(const char*) { std::abort(); }

}  // namespace minitorch

namespace minitorch::MT_INSTRUCTION_SET {

PRODUCT(bfloat16, float);
PRODUCT(float, float);

}  // namespace minitorch::MT_INSTRUCTION_SET

using namespace minitorch::MT_INSTRUCTION_SET;

template <typename T>
static void multiply(long m, long n, long k, const T* a, const T* b, const long* strides, float* out,
                     float* a_sums) {
    product<T, float>(m, n, k, {a, strides[0], strides[1]}, {b, strides[2], strides[3]}, {out, n, 1},
                      {}, a_sums);
}

// out (m, n) = A (m, k) B (k, n), and in a_sums, or null, the sums of A's rows. Strides: of a row and a
// column, of A and B.
extern "C" void multiply_bfloat16(long m, long n, long k, const bfloat16* a, const bfloat16* b,
                                  const long* strides, float* out, float* a_sums) {
    multiply(m, n, k, a, b, strides, out, a_sums);
}
extern "C" void multiply_float32(long m, long n, long k, const float* a, const float* b,
                                 const long* strides, float* out, float* a_sums) {
    multiply(m, n, k, a, b, strides, out, a_sums);
}
