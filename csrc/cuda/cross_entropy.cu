// Cross-entropy of rows of logits with class indices, and its gradient:
//
//     loss = lse - (1 - ε) logits[target] - ε mean(logits) + z lse²,     lse = log Σ exp(logits)
//     dlogits = scale ((1 + 2 z lse) exp(logits - lse) - (1 - ε) [target] - ε / classes)
//
// with ε the label smoothing and z the weight of the z-loss; 0 where the target is ignore_index,
// and NaN where it is no class. A team to a row in the forward, which reads it once, and a block in
// the backward; the probabilities are never in memory. How many rows count stays on the device:
// nobody waits for it.
//
// Source: Szegedy et al. 2016, section 7 (label smoothing); Chowdhery et al. 2022, section 5
// (z-loss).

#include "logsumexp.h"

namespace minitorch {

template <typename C>
struct LossOptions {
    int64_t ignore_index;
    C smoothing, z;
};

template <typename T, int n, typename Team>
__global__ void cross_entropy_kernel(Row row, const T* logits, const int64_t* target,
                                     Compute<T>* losses, Compute<T>* log_normalisers,
                                     LossOptions<Compute<T>> options) {
    using C = Compute<T>;
    Team team(row);
    const Part part = team.template part<n>();
    const int classes = row.columns;
    const T* const first = logits + team.row() * classes;
    LogSum<C> total;
    C sum = 0;
    for (int i = threadIdx.x * n; i < part.size; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(first + part.begin + i);
        total.add(v);
        for (int j = 0; j < n; ++j) sum += C(v[j]);
    }
    total.reduce(team);
    if (options.smoothing != 0) sum = team.template reduce<Plus>(sum, C(0));
    if (!team.leads()) return;
    const C lse = total.value();
    const int64_t label = target[team.row()];
    C loss = 0;
    if (label != options.ignore_index) {
        const C picked = label >= 0 && label < classes ? C(first[label]) : C(NAN);
        loss = lse - (1 - options.smoothing) * picked;
        if (options.smoothing != 0) loss -= options.smoothing * sum / C(classes);
        if (options.z != 0) loss += options.z * lse * lse;
    }
    losses[team.row()] = loss;
    log_normalisers[team.row()] = lse;
}

// How many rows count, by one block.
__device__ long count_rows(const int64_t* target, long rows, int64_t ignore_index) {
    long count = 0;
    for (long r = threadIdx.x; r < rows; r += blockDim.x) count += target[r] != ignore_index;
    return reduce_block<Plus>(count, 0L);
}

// The sum of the losses, or their mean over the rows that count. One block.
template <typename T>
__global__ void total_loss_kernel(const Compute<T>* losses, const int64_t* target, T* out,
                                  long rows, int64_t ignore_index, bool mean) {
    using C = Compute<T>;
    C total = 0;
    for (long r = threadIdx.x; r < rows; r += blockDim.x) total += losses[r];
    total = reduce_block<Plus>(total, C(0));
    if (mean) total /= C(count_rows(target, rows, ignore_index));
    if (threadIdx.x == 0) *out = T(total);
}

// grad / the number of rows that count. One block.
template <typename C>
__global__ void mean_scale_kernel(const C* grad, const int64_t* target, C* scale, long rows,
                                  int64_t ignore_index) {
    const long count = count_rows(target, rows, ignore_index);
    if (threadIdx.x == 0) *scale = *grad / C(count > 0 ? count : 1);
}

// scales: one, or one for each row. out may be logits: a thread writes only what it has read.
template <typename T, int n>
__global__ void cross_entropy_backward_kernel(const Compute<T>* scales, int scale_stride,
                                              const T* logits, const int64_t* target,
                                              const Compute<T>* log_normalisers, T* out,
                                              int classes, LossOptions<Compute<T>> options) {
    using C = Compute<T>;
    const long begin = long(blockIdx.x) * classes;
    const int64_t label = target[blockIdx.x];
    const bool counts = label != options.ignore_index;
    const C lse = log_normalisers[blockIdx.x];
    C scale = scales[long(blockIdx.x) * scale_stride];
    if (label < 0 || label >= classes) scale = C(NAN);
    const C factor = 1 + 2 * options.z * lse, spread = options.smoothing / C(classes);
    for (int i = threadIdx.x * n; i < classes; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(logits + begin + i);
        Few<T, n> to;
        for (int j = 0; j < n; ++j) {
            C d = factor * exp(C(v[j]) - lse) - spread;
            if (i + j == label) d -= 1 - options.smoothing;
            to[j] = T(counts ? scale * d : C(0));
        }
        store(out + begin + i, to);
    }
}

// logits (rows, classes), contiguous; target (rows), int64; losses, logsumexp (rows); total or
// None; ignore_index, label_smoothing, z_loss, whether the total is a mean.
DEVICE_KERNEL(cross_entropy) {
    const Array &logits = arrays[0], &target = arrays[1], &losses = arrays[2];
    const Array &log_normalisers = arrays[3], &total = arrays[4];
    const long rows = logits.shape[0], classes = logits.shape[1];
    by_dtype(logits, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const LossOptions<C> options{int64_t(numbers[0]), C(numbers[1]), C(numbers[2])};
        by_team<T>(rows, classes, {logits.data}, 0, [&](auto team, auto width, auto&& run) {
            constexpr int n = decltype(width)::value;
            run(cross_entropy_kernel<T, n, TeamOf<decltype(team)>>, stream, logits.as<const T>(),
                target.as<const int64_t>(), losses.as<C>(), log_normalisers.as<C>(), options);
        });
        if (total)
            launch(total_loss_kernel<T>, 1, row_threads(rows), 0, stream, losses.as<const C>(),
                   target.as<const int64_t>(), total.as<T>(), rows, options.ignore_index,
                   numbers[3] != 0);
    });
}

// grad (1) or (rows), logits, target, logsumexp, out like logits, scale (1) or None: where it is
// given, grad is divided by the number of rows that count; ignore_index, label_smoothing, z_loss.
DEVICE_KERNEL(cross_entropy_backward) {
    const Array &grad = arrays[0], &logits = arrays[1], &target = arrays[2];
    const Array &log_normalisers = arrays[3], &out = arrays[4], &scale = arrays[5];
    const long rows = logits.shape[0], classes = logits.shape[1];
    by_dtype(logits, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const LossOptions<C> options{int64_t(numbers[0]), C(numbers[1]), C(numbers[2])};
        if (scale)
            launch(mean_scale_kernel<C>, 1, row_threads(rows), 0, stream, grad.as<const C>(),
                   target.as<const int64_t>(), scale.as<C>(), rows, options.ignore_index);
        const Array& scales = scale ? scale : grad;
        by_width<T>(classes, {logits.data, out.data}, [&](auto width) {
            constexpr int n = decltype(width)::value;
            launch(cross_entropy_backward_kernel<T, n>, unsigned(rows), row_threads(classes / n), 0,
                   stream, scales.as<const C>(), int(scales.size > 1), logits.as<const T>(),
                   target.as<const int64_t>(), log_normalisers.as<const C>(), out.as<T>(),
                   int(classes), options);
        });
    });
}

}  // namespace minitorch
