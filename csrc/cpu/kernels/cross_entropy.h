// Cross-entropy of logits with class indices, smoothed by e:
//
//     loss = lse - (1 - e) logits[target] - e mean(logits)          lse = log Σ exp(logits)
//     dlogits = scale (exp(logits - lse) - (1 - e) [i = target] - e / classes)
//
// Forward reads a row twice, for the maximum and for the sum, and keeps only lse of it; backward
// computes the probabilities again.

#pragma once

#include "../array.h"
#include "../threads.h"
#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

// logits (rows, classes); target (rows,), -1 for a row that does not count; loss, lse (rows,).
template <typename T>
void cross_entropy(const T* logits, const int64_t* target, T* loss, T* lse, long rows, long classes,
                   T smoothing) {
    constexpr long lanes = Lanes<T>::count;
    parallel_ranges(rows, rows_per_piece(classes), [=](long begin, long end) {
        for (long row = begin; row < end; ++row) {
            const T* x = logits + row * classes;
            const long whole = classes - classes % lanes;
            Vector<T> peaks = broadcast(-kInfinity<T>);
            for (long i = 0; i < whole; i += lanes) peaks = maximum<T>(load(x + i), peaks);
            T peak = largest_lane<T>(peaks);
            for (long i = whole; i < classes; ++i) peak = x[i] > peak ? x[i] : peak;

            Vector<T> sums{}, plain{};
            for (long i = 0; i < whole; i += lanes) {
                sums += exp_nonpositive<T>(load(x + i) - peak);
                plain += load(x + i);
            }
            T sum = sum_of_lanes<T>(sums), total = sum_of_lanes<T>(plain);
            if (const long rest = classes - whole) {
                const Vector<T> tail = load_part(x + whole, rest, -kInfinity<T>);
                sum += sum_of_lanes<T>(exp_nonpositive<T>(tail - peak));
                for (long i = 0; i < rest; ++i) total += tail[i];
            }
            lse[row] = log_of(sum) + peak;
            loss[row] = 0;
            if (target[row] >= 0) {
                loss[row] = lse[row] - (1 - smoothing) * x[target[row]];
                if (smoothing) loss[row] -= smoothing * (total / T(classes));
            }
        }
    });
}

// scale (rows,): the gradient of each row's loss, 0 for a row that does not count.
template <typename T>
void cross_entropy_backward(const T* scale, const T* logits, const int64_t* target, const T* lse,
                            T* out, long rows, long classes, T smoothing) {
    constexpr long lanes = Lanes<T>::count;
    parallel_ranges(rows, rows_per_piece(classes), [=](long begin, long end) {
        for (long row = begin; row < end; ++row) {
            const T* x = logits + row * classes;
            T* to = out + row * classes;
            if (target[row] < 0) {
                __builtin_memset(to, 0, sizeof(T) * classes);
                continue;
            }
            const T factor = scale[row], shift = lse[row], floor = smoothing / T(classes);
            const auto probability = [&](Vector<T> value) {
                const Vector<T> exponent = value - shift;
                return exp_nonpositive<T>(exponent > T(0) ? Vector<T>{} : exponent);
            };
            long i = 0;
            for (; i + lanes <= classes; i += lanes)
                store(to + i, factor * (probability(load(x + i)) - floor));
            if (const long rest = classes - i)
                store_part(to + i, factor * (probability(load_part(x + i, rest, T(0))) - floor),
                           rest);
            to[target[row]] -= factor * (1 - smoothing);
        }
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
