#include "few_rows.h"

namespace minitorch::MT_INSTRUCTION_SET {

PRODUCT(float, float);
PRODUCT(double, double);
PRODUCT(bfloat16, bfloat16);
PRODUCT(bfloat16, float);

template <typename T>
static Matrix<T> matrix_of(const Array& x, long offset) {
    if (!x) return {nullptr, 0, 0};
    return {x.as<T>() + offset, x.stride(-2), x.stride(-1)};
}

// The offset of the matrix with this number, counting through the leading dimensions.
static long offset_of(const Array& x, long number) {
    long offset = 0;
    for (int i = x.ndim - 3; i >= 0; --i) {
        offset += number % x.shape[i] * x.strides[i];
        number /= x.shape[i];
    }
    return offset;
}

template <typename T, typename O>
static void products(const Array* arrays, const double* numbers) {
    using C = Compute<T>;
    const Array &a = arrays[0], &b = arrays[1], &out = arrays[2], &bias = arrays[3],
                &residual = arrays[4], &sums = arrays[5], &before = arrays[6];
    const long m = out.dim(-2), n = out.dim(-1), k = a.dim(-1);
    long batch = 1;
    for (int i = 0; i < out.ndim - 2; ++i) batch *= out.shape[i];
    const auto one = [&](long i) {
        Epilogue<O, C> epilogue;
        epilogue.alpha = static_cast<C>(numbers[0]);
        epilogue.accumulate = numbers[1] != 0;
        epilogue.bias = bias.as<const O>();
        epilogue.residual = matrix_of<const O>(residual, residual ? offset_of(residual, i) : 0);
        epilogue.activation = static_cast<Activation>(static_cast<int>(numbers[2]));
        epilogue.before = matrix_of<O>(before, before ? offset_of(before, i) : 0);
        product<T, O>(m, n, k, matrix_of<const T>(a, offset_of(a, i)),
                      matrix_of<const T>(b, offset_of(b, i)),
                      matrix_of<O>(out, offset_of(out, i)), epilogue, sums.as<C>());
    };
    // Many small products run one to a thread, a few large ones each on all.
    if (batch > 1 && 2.0 * m * n * k < 4e6)
        parallel_ranges(batch, rows_per_piece(m * n * k / 16 + 1), [&](long begin, long end) {
            for (long i = begin; i < end; ++i) one(i);
        });
    else
        for (long i = 0; i < batch; ++i) one(i);
}

// a (..., m, k), b (..., k, n), out (..., m, n) with stride 1 in n; bias (n,) or None, residual
// like out or None; for a single product a_sums (m,) of the compute type, which receives the sums of
// a's rows, or None; before, like out, or None; alpha, accumulate, the number of an Activation (none
// with accumulate). Leading dimensions are equal: broadcast ones have stride 0.
KERNEL(matmul) {
    const Array &a = arrays[0], &b = arrays[1], &out = arrays[2];
    if (!out.size) return;  // NumPy gives empty arrays strides of its own
    require(num_arrays == 7 && (!arrays[5] || a.ndim == 2) && a.ndim >= 2 && a.ndim == b.ndim &&
                a.ndim == out.ndim && a.dtype == b.dtype && a.dim(-1) == b.dim(-2) && a.dim(-2) == out.dim(-2) &&
                b.dim(-1) == out.dim(-1) && (out.stride(-1) == 1 || out.dim(-1) <= 1),
            "matmul: arrays that do not fit");
    if (a.dtype == Dtype::float32 && out.dtype == Dtype::float32)
        products<float, float>(arrays, numbers);
    else if (a.dtype == Dtype::float64 && out.dtype == Dtype::float64)
        products<double, double>(arrays, numbers);
    else if (a.dtype == Dtype::bfloat16 && out.dtype == Dtype::bfloat16)
        products<bfloat16, bfloat16>(arrays, numbers);
    else if (a.dtype == Dtype::bfloat16 && out.dtype == Dtype::float32)
        products<bfloat16, float>(arrays, numbers);
    else
        fail("matmul: expected float32, float64, or bfloat16 to itself or to float32");
}

}  // namespace minitorch::MT_INSTRUCTION_SET
