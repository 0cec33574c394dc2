// log Σ exp(x) in one reading: a thread keeps the largest number that it met, m, and Σ exp(x - m),
// which it scales anew when m grows; two such pairs are made one in the same way.
//
// m stays finite, so that -inf alone gives -inf, inf gives inf, and nothing but NaN gives NaN.
// Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".

#pragma once

#include <limits>

#include "team.h"

namespace minitorch {

template <typename C>
struct LogSum {
    static constexpr C kLargest = std::numeric_limits<C>::max();
    C peak = -kLargest, sum = 0;

    template <typename T, int n>
    __device__ void add(const Few<T, n>& x) {
        C next = peak;
        for (int j = 0; j < n; ++j) next = max(next, C(x[j]));
        rise(min(next, C(kLargest)));
        for (int j = 0; j < n; ++j) sum += exp(C(x[j]) - peak);
    }
    // Those of all threads of a team; all have the result.
    template <typename Team>
    __device__ void reduce(Team& team) {
        rise(team.template reduce<Larger>(peak, -kLargest));
        sum = team.template reduce<Plus>(sum, C(0));
    }
    __device__ C value() const { return peak + log(sum); }

private:
    __device__ void rise(C next) {
        if (next > peak) sum *= exp(peak - next);
        peak = next;
    }
};

// Of a row, by its team, which keeps its part in `kept` unless that is null.
template <int n, typename T, typename Team>
__device__ LogSum<Compute<T>> log_sum_of_row(Team& team, const T* part, int size, T* kept) {
    LogSum<Compute<T>> total;
    for (int i = threadIdx.x * n; i < size; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(part + i);
        if (kept) store(kept + i, v);
        total.add(v);
    }
    total.reduce(team);
    return total;
}

}  // namespace minitorch
