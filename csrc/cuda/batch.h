// Matrix products of one shape, as Python asks for them: any strides, broadcast operands, and what
// follows a product fused into its last write.

#pragma once

#include "product.h"

namespace minitorch {

constexpr int kLeading = kMaxDims - 2;

// Leading dimensions are counted through; broadcast ones have stride 0.
template <typename T, typename O>
struct Batch {
    Product<T, O> first;
    int dims;
    long count;
    long begin;  // the number of the product that blockIdx.z = 0 makes
    long shape[kLeading];
    long a[kLeading], b[kLeading], out[kLeading], residual[kLeading], before[kLeading];

    __device__ Product<T, O> operator[](long number) const {
        Product<T, O> p = first;
        for (int i = dims - 1; i >= 0; --i) {
            const long index = number % shape[i];
            number /= shape[i];
            p.a.data += index * a[i];
            p.b.data += index * b[i];
            p.out.data += index * out[i];
            if (p.residual.data) p.residual.data += index * residual[i];
            if (p.before.data) p.before.data += index * before[i];
        }
        return p;
    }
    __device__ Product<T, O> of_this_block() const { return (*this)[begin + blockIdx.z]; }
};

// arrays: a (..., m, k), b (..., k, n), out (..., m, n) at any strides, not empty; bias (n,),
// contiguous, or None; residual and before like out, or None. numbers: alpha, accumulate, that of
// an Activation. Leading dimensions are equal.
template <typename T, typename O>
Batch<T, O> batch_of(const Array* arrays, const double* numbers) {
    const Array &a = arrays[0], &b = arrays[1], &out = arrays[2], &bias = arrays[3],
                &residual = arrays[4], &before = arrays[5];
    Batch<T, O> batch{};
    batch.first = {out.dim(-2),
                   out.dim(-1),
                   a.dim(-1),
                   matrix_of<const T>(a),
                   matrix_of<const T>(b),
                   matrix_of<O>(out),
                   Compute<T>(numbers[0]),
                   numbers[1] != 0,
                   Activation(int(numbers[2])),
                   bias.as<const O>(),
                   matrix_of<const O>(residual),
                   matrix_of<O>(before)};
    batch.dims = out.ndim - 2;
    batch.count = 1;
    for (int i = 0; i < batch.dims; ++i) {
        batch.count *= batch.shape[i] = out.shape[i];
        batch.a[i] = a.strides[i];
        batch.b[i] = b.strides[i];
        batch.out[i] = out.strides[i];
        batch.residual[i] = residual ? residual.strides[i] : 0;
        batch.before[i] = before ? before.strides[i] : 0;
    }
    return batch;
}

// A block to each tile of height x width of each product.
template <typename Kernel, typename T, typename O, typename... More>
void launch_tiles(Kernel kernel, Batch<T, O> batch, int height, int width, dim3 threads,
                  size_t shared_bytes, cudaStream_t stream, const More&... more) {
    constexpr long most = 65535;  // blocks along z
    const unsigned tiles = ceil_div(batch.first.m, height) * ceil_div(batch.first.n, width);
    for (batch.begin = 0; batch.begin < batch.count; batch.begin += most)
        launch(kernel, dim3(tiles, 1, unsigned(min(most, batch.count - batch.begin))), threads,
               shared_bytes, stream, batch, more...);
}

// Squares of 128 x 128 read memory least; where they are fewer than a GPU has multiprocessors,
// 64 x 64. width: of out, of a square.
template <typename T, typename O>
bool fills_large_tiles(const Batch<T, O>& batch, int width = 128) {
    return batch.count * ceil_div(batch.first.m, 128) * ceil_div(batch.first.n, width) >= 128;
}

// body(true_type or false_type)
template <typename Body>
void by_flag(bool flag, Body&& body) {
    flag ? body(std::true_type()) : body(std::false_type());
}

// body(T(), O()): a's dtype, of 16 bits, and out's, which is the same or float32.
template <typename Body>
void by_half(const Array& a, const Array& out, Body&& body) {
    by_half(a, [&](auto kind) {
        using T = decltype(kind);
        out.dtype == a.dtype ? body(T(), T()) : body(T(), float());
    });
}

}  // namespace minitorch
