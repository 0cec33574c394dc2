// Cross-entropy of logits with class indices, smoothed by e, and the z-loss of weight z:
//
//     loss = lse - (1 - e) logits[target] - e mean(logits) + z lse²,     lse = log Σ exp(logits)
//     dlogits = scale ((1 + 2 z lse) exp(logits - lse) - (1 - e) [i = target] - e / classes)
//
// Forward reads a row once, and keeps only lse of it; backward computes the probabilities again,
// into an array of its own or into the logits, in a narrower type perhaps. Source of the z-loss:
// Chowdhery et al. 2022 (PaLM), section 5.

#pragma once

#include "softmax.h"

namespace minitorch::MT_INSTRUCTION_SET {

// logits (rows, classes); target (rows,), -1 for a row that does not count; loss, lse (rows,).
template <typename T>
void cross_entropy(const T* logits, const int64_t* target, Compute<T>* loss, Compute<T>* lse,
                   long rows, long classes, Compute<T> smoothing, Compute<T> z_loss) {
    using C = Compute<T>;
    parallel_ranges(rows, rows_per_piece(classes), [=](long begin, long end) {
        for (long row = begin; row < end; ++row) {
            const T* x = logits + row * classes;
            C peak, sum;
            row_statistics(x, classes, C(1), peak, sum);
            lse[row] = log_of(sum) + finite_or_zero(peak);
            loss[row] = 0;
            if (target[row] < 0) continue;
            loss[row] = lse[row] - (1 - smoothing) * load_one(x + target[row]);
            if (smoothing) {
                constexpr long lanes = Lanes<C>::count;
                Vector<C> totals{};
                long i = 0;
                for (; i + lanes <= classes; i += lanes) totals += load(x + i);
                C total = sum_of_lanes<C>(totals);
                for (; i < classes; ++i) total += load_one(x + i);
                loss[row] -= smoothing * (total / C(classes));
            }
            if (z_loss) loss[row] += z_loss * lse[row] * lse[row];
        }
    });
}

// scale (rows,): the gradient of each row's loss. out has its rows `stride` elements apart, and
// each may begin where that row of the logits does: an element is read before anything is written
// there.
template <typename T, typename O>
void cross_entropy_backward(const Compute<T>* scale, const T* logits, const int64_t* target,
                            const Compute<T>* lse, O* out, long rows, long classes, long stride,
                            Compute<T> smoothing, Compute<T> z_loss) {
    static_assert(sizeof(O) <= sizeof(T));
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    parallel_ranges(rows, rows_per_piece(classes), [=](long begin, long end) {
        for (long row = begin; row < end; ++row) {
            const T* x = logits + row * classes;
            O* to = out + row * stride;
            if (target[row] < 0) {
                __builtin_memset(to, 0, sizeof(O) * classes);
                continue;
            }
            const C shift = lse[row], floor = scale[row] * smoothing / C(classes);
            const C factor = scale[row] * (1 + 2 * z_loss * shift);
            const auto slope = [=](Vector<C> values) {
                return factor * exp_rounded<C>(values - shift) - floor;
            };
            const C of_target =
                slope(broadcast<C>(load_one(x + target[row])))[0] - scale[row] * (1 - smoothing);
            long i = 0;
            for (; i + lanes <= classes; i += lanes) store(to + i, slope(load(x + i)));
            if (const long rest = classes - i)
                store_part(to + i, slope(load_part(x + i, rest, C(0))), rest);
            store_one(to + target[row], of_target);
        }
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
