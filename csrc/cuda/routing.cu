// The weights of the experts that were chosen for each token, and their gradient; a block to a
// token:
//
//     w_j = scale s(x)_{i_j} / total       s: softmax or sigmoid of the token's logits x
//
// with the total Σ over j of s(x)_{i_j}, where weights are normalised over the chosen, else 1. In
// the gradient only a softmax over all reaches the logits of those that were not chosen.
//
// Source: Shazeer et al. 2017; DeepSeek-AI 2024, "DeepSeek-V3", equations 13 to 15.

#include "reduce.h"
#include "rows.h"

namespace minitorch {

template <typename C>
struct Routing {
    bool sigmoid, normalised;
    C scale;
};

template <typename T>
struct Scores {
    using C = Compute<T>;
    const T* row;
    bool sigmoid;
    C peak = 0, total = 1;

    __device__ Scores(const T* row, const int64_t* chosen, int experts, int k,
                      const Routing<C>& how)
        : row(row), sigmoid(how.sigmoid) {
        if (!sigmoid) {
            peak = -INFINITY;
            for (int i = threadIdx.x; i < experts; i += blockDim.x) peak = max(peak, C(row[i]));
            peak = reduce_block<Larger>(peak, C(-INFINITY));
        }
        if (sigmoid && !how.normalised) return;
        total = 0;
        for (int i = threadIdx.x; i < (how.normalised ? k : experts); i += blockDim.x)
            total += (*this)(how.normalised ? chosen[i] : i);
        total = reduce_block<Plus>(total, C(0));
        if (how.normalised) total += C(1e-20);  // the chosen may all be 0
    }
    __device__ C operator()(long i) const {
        return sigmoid ? C(1) / (C(1) + exp(-C(row[i]))) : exp(C(row[i]) - peak);
    }
};

template <typename T>
__global__ void routing_weights_kernel(const T* x, const int64_t* indices, T* out, int experts,
                                       int k, Routing<Compute<T>> how) {
    const int64_t* chosen = indices + long(blockIdx.x) * k;
    const Scores<T> scores(x + long(blockIdx.x) * experts, chosen, experts, k, how);
    for (int j = threadIdx.x; j < k; j += blockDim.x)
        out[long(blockIdx.x) * k + j] = T(how.scale * scores(chosen[j]) / scores.total);
}

template <typename T>
__global__ void routing_weights_backward_kernel(const T* grad, const T* x, const int64_t* indices,
                                                T* dx, int experts, int k,
                                                Routing<Compute<T>> how) {
    using C = Compute<T>;
    const int64_t* chosen = indices + long(blockIdx.x) * k;
    const Scores<T> scores(x + long(blockIdx.x) * experts, chosen, experts, k, how);
    T* to = dx + long(blockIdx.x) * experts;
    const auto flow = [&](int j) {
        return how.scale * C(grad[long(blockIdx.x) * k + j]) * scores(chosen[j]) / scores.total;
    };
    C sum = 0;
    for (int j = threadIdx.x; j < k; j += blockDim.x) sum += flow(j);
    sum = reduce_block<Plus>(sum, C(0));
    const bool from_total = how.normalised || !how.sigmoid;
    for (int i = threadIdx.x; i < experts; i += blockDim.x)
        to[i] = T(how.normalised || how.sigmoid ? C(0) : -scores(i) / scores.total * sum);
    __syncthreads();
    for (int j = threadIdx.x; j < k; j += blockDim.x) {
        const C score = scores(chosen[j]);
        const C d = flow(j) - (from_total ? score / scores.total * sum : C(0));
        to[chosen[j]] = T(how.sigmoid ? d * (C(1) - score) : d);
    }
}

template <typename C>
static Routing<C> routing(const double* numbers) {
    return {numbers[0] != 0, numbers[1] != 0, C(numbers[2])};
}

// logits (tokens, experts), contiguous; indices (tokens, k), int64; out (tokens, k); whether the
// scores are sigmoids, and normalised; scale.
DEVICE_KERNEL(routing_weights) {
    const Array &x = arrays[0], &indices = arrays[1], &out = arrays[2];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        launch(routing_weights_kernel<T>, unsigned(x.shape[0]), row_threads(x.shape[1]), 0, stream,
               x.as<const T>(), indices.as<const int64_t>(), out.as<T>(), int(x.shape[1]),
               int(out.shape[1]), routing<Compute<T>>(numbers));
    });
}

// grad (tokens, k), logits (tokens, experts), indices (tokens, k), dx like logits; the same
// numbers.
DEVICE_KERNEL(routing_weights_backward) {
    const Array &grad = arrays[0], &x = arrays[1], &indices = arrays[2], &dx = arrays[3];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        launch(routing_weights_backward_kernel<T>, unsigned(x.shape[0]), row_threads(x.shape[1]), 0,
               stream, grad.as<const T>(), x.as<const T>(), indices.as<const int64_t>(), dx.as<T>(),
               int(x.shape[1]), int(grad.shape[1]), routing<Compute<T>>(numbers));
    });
}

}  // namespace minitorch
