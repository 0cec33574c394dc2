// Which experts a token goes to, their weights, and the gradient of these:
//
//     i   = the k largest of s(x) + b      s: softmax or sigmoid of the token's logits x
//     w_j = scale s(x)_{i_j} / total
//
// with the total Σ over j of s(x)_{i_j}, where weights are normalised over the chosen, else 1. They
// are chosen within the groups of experts whose largest s + b sum highest. In the gradient only a
// softmax over all reaches the logits of those that were not chosen.
//
// A warp chooses for a token. What it compares stands in shared memory, and each expert is the
// first of those that come after the last one found: of a few hundred a few are wanted. Groups are
// found in the same way, and those that come after the last of them are out. Weights of experts
// that are known, and the gradient, take a block to a token.
//
// Source: Shazeer et al. 2017; DeepSeek-AI 2024, "DeepSeek-V3", equations 13 to 15.

#include "ranked.h"
#include "reduce.h"
#include "rows.h"

namespace minitorch {

template <typename C>
struct Routing {
    bool sigmoid, normalised;
    C scale;
};

// Experts stand in `count` groups, of which `kept` are chosen from, by their `speaking` largest.
struct Groups {
    int count, kept, speaking;
};

// Of a warp: the first of those that come after `last`, or of all if that is nothing.
template <typename C>
__device__ Ranked<C> first_after(const Ranked<C>& last, const C* values, int count) {
    Ranked<C> first;
    for (int i = threadIdx.x % 32; i < count; i += 32) {
        const Ranked<C> here{values[i], i};
        if (last.index < 0 || last.before(here)) first.meet(here);
    }
    first.reduce_warp();
    return first;
}

// ranks = -∞ outside of the groups that are kept; strength: room for a number for each group.
template <typename C>
__device__ void keep_groups(C* ranks, C* strength, int experts, const Groups& groups) {
    const int lane = threadIdx.x % 32, size = experts / groups.count;
    for (int g = 0; g < groups.count; ++g) {
        Ranked<C> last;
        C sum = 0;
        for (int i = 0; i < groups.speaking; ++i) {
            last = first_after(last, ranks + g * size, size);
            sum += last.value;
        }
        if (lane == 0) strength[g] = sum;
    }
    __syncwarp();
    Ranked<C> weakest;
    for (int i = 0; i < groups.kept; ++i) weakest = first_after(weakest, strength, groups.count);
    for (int e = lane; e < experts; e += 32)
        if (weakest.before({strength[e / size], e / size})) ranks[e] = -INFINITY;
    __syncwarp();
}

template <typename T>
__global__ void route_kernel(const T* x, const T* bias, T* weights, int64_t* indices, long tokens,
                             int experts, int k, Routing<Compute<T>> how, Groups groups) {
    using C = Compute<T>;
    SHARED_DYNAMIC(C, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const long token = long(blockIdx.x) * warps + warp;
    if (token >= tokens) return;
    C* const ranks = shared + warp * (experts + groups.count);
    const T* row = x + token * experts;
    C peak = -INFINITY, all = 0;
    if (!how.sigmoid) {
        for (int e = lane; e < experts; e += 32) peak = max(peak, C(row[e]));
        peak = reduce_warp<Larger>(peak);
        for (int e = lane; e < experts; e += 32) all += exp(C(row[e]) - peak);
        all = reduce_warp<Plus>(all);
    }
    const auto score = [&](long e) {
        return how.sigmoid ? C(1) / (C(1) + exp(-C(row[e]))) : exp(C(row[e]) - peak) / all;
    };
    for (int e = lane; e < experts; e += 32) ranks[e] = bias ? score(e) + C(bias[e]) : score(e);
    __syncwarp();
    if (groups.kept < groups.count) keep_groups(ranks, ranks + experts, experts, groups);
    Ranked<C> last;
    C total = 0;
    for (int j = 0; j < k; ++j) {
        last = first_after(last, ranks, experts);
        total += score(last.index);
        if (lane == 0) indices[token * k + j] = last.index;
    }
    __syncwarp();
    total = how.normalised ? total + C(1e-20) : C(1);  // the chosen may all be 0
    for (int j = lane; j < k; j += 32)
        weights[token * k + j] = T(how.scale * score(indices[token * k + j]) / total);
}

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

// logits (tokens, experts), bias (experts) or None, weights (tokens, k), indices (tokens, k),
// int64; whether the scores are sigmoids, and normalised; scale; groups, how many of them are kept,
// and how many of a group's largest are summed.
DEVICE_KERNEL(route) {
    const Array &x = arrays[0], &bias = arrays[1], &weights = arrays[2], &indices = arrays[3];
    const Groups groups{int(numbers[3]), int(numbers[4]), int(numbers[5])};
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const long tokens = x.shape[0], experts = x.shape[1];
        const size_t bytes = (experts + groups.count) * sizeof(C);
        const unsigned warps = bytes <= 4096 ? 4 : 1;
        launch(route_kernel<T>, ceil_div(tokens, warps), 32 * warps, warps * bytes, stream,
               x.as<const T>(), bias.as<const T>(), weights.as<T>(), indices.as<int64_t>(), tokens,
               int(experts), int(weights.shape[1]), routing<C>(numbers), groups);
    });
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
