// What is left to do for a matrix product that was split along k, because its tiles are too few for all
// multiprocessors: its parts, products of their own, are added up, in their order, and the sums finished
// as those of product.h.

#include "product.h"

namespace minitorch {

namespace {

template <typename O>
__global__ void finish_parts_kernel(Product<float, O> p, const float* parts, int count,
                                    bool vectors) {
    const long across = (p.n + 3) / 4, all = p.m * across;
    const bool out_vectors = p.out.template has_vectors<4>();
    for (long t = blockIdx.x * long(blockDim.x) + threadIdx.x; t < all;
         t += gridDim.x * long(blockDim.x)) {
        const long row = t / across, column = t % across * 4;
        float sums[4] = {};
        for (int part = 0; part < count; ++part) {
            const float* const from = parts + (part * p.m + row) * p.n + column;
            if (vectors) {
                const Vector<float> run(from);
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[i] += run[i];
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (column + i < p.n) sums[i] += from[i];
            }
        }
        p.template write_run<4>(row, column, sums, out_vectors);
    }
}

}  // namespace

// parts (parts, m, n), contiguous, float32; out (m, n) of 16 bits or float32 at any strides; bias,
// residual and before, alpha, accumulate and an Activation as in batch_of.
DEVICE_KERNEL(finish_parts) {
    const Array &parts = arrays[0], &out = arrays[1], &bias = arrays[2];
    const auto start = [&](auto kind) {
        using O = decltype(kind);
        Product<float, O> p{};
        p.m = out.shape[0], p.n = out.shape[1];
        p.out = matrix_of<O>(out);
        p.alpha = float(numbers[0]);
        p.accumulate = numbers[1] != 0;
        p.activation = Activation(int(numbers[2]));
        p.bias = bias.as<const O>();
        p.residual = matrix_of<const O>(arrays[3]);
        p.before = matrix_of<O>(arrays[4]);
        const unsigned blocks = min(ceil_div(p.m * ((p.n + 3) / 4), 256), 4096u);
        launch(finish_parts_kernel<O>, blocks, 256, 0, stream, p, parts.as<const float>(),
               int(parts.shape[0]), is_aligned<float, 4>(parts.data, p.n));
    };
    if (out.dtype == Dtype::float32) return start(float());
    by_half(out, start);
}

}  // namespace minitorch
