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

// logits (rows, classes); target (rows,), `ignored` for a row that does not count; loss, lse (rows,).
template <typename T>
void cross_entropy(const T* logits, const int64_t* target, int64_t ignored, Compute<T>* loss,
                   Compute<T>* lse, long rows, long classes, Compute<T> smoothing,
                   Compute<T> z_loss) {
    using C = Compute<T>;
    parallel_ranges(rows, rows_per_piece(classes), [=](long begin, long end) {
        for (long row = begin; row < end; ++row) {
            const T* x = logits + row * classes;
            C peak, sum;
            row_statistics(x, classes, C(1), peak, sum);
            lse[row] = log_of(sum) + finite_or_zero(peak);
            loss[row] = 0;
            if (target[row] == ignored) continue;
            loss[row] = lse[row] - (1 - smoothing) * load_one(x + target[row]);
            if (smoothing) {
                Vector<C> totals{};
                for_each_vector<C>(classes, [&](long, auto get, auto) { totals += get(x); });
                loss[row] -= smoothing * (sum_of_lanes<C>(totals) / C(classes));
            }
            if (z_loss) loss[row] += z_loss * lse[row] * lse[row];
        }
    });
}

// scale: the gradient of each row's loss, `step` numbers from one row to the next, to be
// divided by `count`. out has its rows `stride` elements apart, and
// each may begin where that row of the logits does: an element is read before anything is written
// there.
template <typename T, typename O>
void cross_entropy_backward(const Compute<T>* scale, long step, Compute<T> count, const T* logits,
                            const int64_t* target, int64_t ignored, const Compute<T>* lse, O* out,
                            long rows, long classes, long stride, Compute<T> smoothing,
                            Compute<T> z_loss) {
    static_assert(sizeof(O) <= sizeof(T));
    using C = Compute<T>;
    constexpr long lanes = Lanes<C>::count;
    parallel_ranges(rows, rows_per_piece(classes), [=](long begin, long end) {
        for (long row = begin; row < end; ++row) {
            const T* x = logits + row * classes;
            O* to = out + row * stride;
            if (target[row] == ignored) {
                __builtin_memset(to, 0, sizeof(O) * classes);
                continue;
            }
            const C weight = scale[row * step] / count;
            const C shift = lse[row], floor = weight * smoothing / C(classes);
            const C factor = weight * (1 + 2 * z_loss * shift);
            const auto slope = [=](Vector<C> values) {
                return factor * exp_rounded<C>(values - shift) - floor;
            };
            const C of_target =
                slope(broadcast<C>(load_one(x + target[row])))[0] - weight * (1 - smoothing);
            long i = 0;
            for (; i + lanes <= classes; i += lanes) store(to + i, slope(load(x + i)));
            if (const long rest = classes - i)
                store_part(to + i, slope(load_part(x + i, rest, C(0))), rest);
            store_one(to + target[row], of_target);
        }
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
