// log Σ exp(x) in one reading: a thread keeps the largest number that it met, m, and Σ exp(x - m),
// which it scales anew when m grows; two such pairs are made one in the same way.
//
// m stays finite, so that -inf alone gives -inf, inf gives inf, and nothing but NaN gives NaN.
// Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".

#pragma once

#include <limits>

#include "reduce.h"
#include "rows.h"

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
    // Those of all threads of a block; all have the result.
    __device__ void reduce() {
        rise(reduce_block<Larger>(peak, -kLargest));
        sum = reduce_block<Plus>(sum, C(0));
    }
    __device__ C value() const { return peak + log(sum); }

private:
    __device__ void rise(C next) {
        if (next > peak) sum *= exp(peak - next);
        peak = next;
    }
};

// Of a row, by its block.
template <int n, typename T>
__device__ LogSum<Compute<T>> log_sum_of_row(const T* row, int columns) {
    LogSum<Compute<T>> total;
    for (int i = threadIdx.x * n; i < columns; i += blockDim.x * n) total.add(load<n>(row + i));
    total.reduce();
    return total;
}

}  // namespace minitorch
