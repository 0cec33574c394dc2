// A matrix product, and what follows it fused into its last write: what one block is to make.

#pragma once

#include "device.h"
#include "vector.h"

namespace minitorch {

enum class Activation { none, relu, silu, gelu, gelu_tanh };

template <typename C>
__device__ C activate(Activation f, C x) {
    switch (f) {
        case Activation::relu:
            return x < C(0) ? C(0) : x;
        case Activation::silu:
            return x / (C(1) + exp(-x));
        case Activation::gelu:
            return C(0.5) * x * erfc(x * C(-0.7071067811865476));
        case Activation::gelu_tanh:
            return x *
                   (C(0.5) + C(0.5) * tanh(C(0.7978845608028654) * (x + C(0.044715) * x * x * x)));
        default:
            return x;
    }
}

// Element (row, column) at data[row * row_stride + column * column_stride].
template <typename T>
struct Matrix {
    T* data;
    long row_stride, column_stride;

    __device__ T& operator()(long row, long column) const {
        return data[row * row_stride + column * column_stride];
    }
    __host__ __device__ Matrix transposed() const { return {data, column_stride, row_stride}; }
    // Whether n neighbours in a row, from a multiple of n on, can be moved at once.
    template <int n>
    __host__ __device__ bool has_vectors() const {
        return column_stride == 1 && is_aligned<T, n>(data, row_stride);
    }
};

template <typename T>
Matrix<T> matrix_of(const Array& x) {
    return x ? Matrix<T>{x.as<T>(), x.stride(-2), x.stride(-1)} : Matrix<T>{};
}

template <typename T, typename O>
struct Product {
    using C = Compute<T>;
    long m, n, k;
    Matrix<const T> a, b;
    Matrix<O> out;
    C alpha;
    bool accumulate;
    Activation activation;
    const O* bias;             // (n,), or null
    Matrix<const O> residual;  // like out, or null
    Matrix<O> before;          // receives what f is applied to, or null

    // alpha times the product, plus a bias perhaps.
    bool is_affine() const {
        return !accumulate && activation == Activation::none && !residual.data && !before.data;
    }
    __device__ C bias_of(long column) const {
        return bias && column < n ? C(bias[column]) : C(0);
    }
    // What is written where the product is `sum`.
    __device__ O finished(long row, long column, C sum) const {
        C x = alpha * sum;
        if (bias) x += C(bias[column]);
        if (before.data) before(row, column) = O(x);
        x = activate(activation, x);
        if (residual.data) x += C(residual(row, column));
        if (accumulate) x += C(out(row, column));
        return O(x);
    }
    __device__ void write(long row, long column, C sum) const {
        out(row, column) = finished(row, column, sum);
    }
    // n neighbours in a row, at once where out `has_vectors`.
    template <int n>
    __device__ void write_run(long row, long column, const C* sums, bool has_vectors) const {
        if (has_vectors && column + n <= this->n) {
            Vector<O, n> run;
#pragma unroll
            for (int i = 0; i < n; ++i) run[i] = finished(row, column + i, sums[i]);
            run.store(&out(row, column));
        } else {
#pragma unroll
            for (int i = 0; i < n; ++i)
                if (column + i < this->n) write(row, column + i, sums[i]);
        }
    }
};

// body(T()) with T the array's dtype: bfloat16 or float16.
template <typename Body>
void by_half(const Array& x, Body&& body) {
    if (x.dtype == Dtype::bfloat16) return body(bfloat16());
    require(x.dtype == Dtype::float16, "a product of 16-bit floats was given others");
    body(float16());
}

// The first row and column of a block's tile of out; tiles are counted along the rows of out.
struct Corner {
    long row, column;
    __device__ Corner(long row, long column) : row(row), column(column) {}
    __device__ Corner(long n, int height, int width) {
        const long across = (n + width - 1) / width;
        row = blockIdx.x / across * height;
        column = blockIdx.x % across * width;
    }
};

}  // namespace minitorch
