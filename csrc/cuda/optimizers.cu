// The rules of optimizers, over many parameters in one launch, and the norm of all their gradients.
//
//     AdamW     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g²
//               p = keep p - rate m / (sqrt(v) unbias + eps)
//     momentum  g = g + decay p,   b = momentum b + fresh g
//               p = p - lr b, or with Nesterov p - lr (g + momentum b)
//     descent   p = p - lr (g + decay p)
//     Lion      p = keep p - lr sign(beta1 m + (1 - beta1) g),   m = beta2 m + (1 - beta2) g
//     direction g = (1 - momentum) g,   b = momentum b + g
//               p = b, or with Nesterov g + momentum b: where a step of Muon goes
//     follow    p = p + rate (g - p)
//
// A model has hundreds of small arrays, and a launch for each would take longer than its work. Here
// up to kSlots of them go by value with the launch; a block finds in that table whose piece it has.
// The rules' numbers and the scale lie on the device, so that a captured launch finds new ones there.
// All arrays are read and written once; on the way the gradient is scaled, which clipping asks for,
// and the new parameter is written a second time in bfloat16, where a copy for matrix products is
// wanted.
//
// Source: Loshchilov and Hutter 2019, algorithm 2, in PyTorch's form (AdamW); Sutskever et al. 2013
// in PyTorch's form (momentum); Chen et al. 2023, program 1 (Lion); Jordan et al. 2024 (Muon's
// direction); the table of pointers: Apex's multi_tensor_apply.

#include "reduce.h"
#include "rows.h"

namespace minitorch {

template <typename C>
struct AdamW {
    static constexpr int kStates = 2, kNumbers = 6;
    C beta1, beta2, keep, rate, unbias, eps;
    C new1, new2;  // 1 - beta, rounded once: in float 1 - 0.999f is wrong in the fifth digit

    __device__ explicit AdamW(const double* n)
        : beta1(n[0]),
          beta2(n[1]),
          keep(n[2]),
          rate(n[3]),
          unbias(n[4]),
          eps(n[5]),
          new1(1 - n[0]),
          new2(1 - n[1]) {}

    __device__ C operator()(C p, C g, C* state) const {
        state[0] = beta1 * state[0] + new1 * g;
        state[1] = beta2 * state[1] + new2 * g * g;
        return p * keep - rate * state[0] / (sqrt(state[1]) * unbias + eps);
    }
};

template <typename C>
struct Momentum {
    static constexpr int kStates = 1, kNumbers = 5;
    C lr, decay, momentum, fresh, nesterov;

    __device__ explicit Momentum(const double* n)
        : lr(n[0]), decay(n[1]), momentum(n[2]), fresh(n[3]), nesterov(n[4]) {}

    __device__ C operator()(C p, C g, C* state) const {
        g += decay * p;
        state[0] = momentum * state[0] + fresh * g;
        return p - lr * (nesterov != 0 ? g + momentum * state[0] : state[0]);
    }
};

template <typename C>
struct Descent {
    static constexpr int kStates = 0, kNumbers = 2;
    C lr, decay;

    __device__ explicit Descent(const double* n) : lr(n[0]), decay(n[1]) {}

    __device__ C operator()(C p, C g, C*) const { return p - lr * (g + decay * p); }
};

template <typename C>
struct Lion {
    static constexpr int kStates = 1, kNumbers = 4;
    C beta1, beta2, keep, lr, new1, new2;

    __device__ explicit Lion(const double* n)
        : beta1(n[0]), beta2(n[1]), keep(n[2]), lr(n[3]), new1(1 - n[0]), new2(1 - n[1]) {}

    __device__ C operator()(C p, C g, C* state) const {
        const C c = beta1 * state[0] + new1 * g;
        const C sign = c > 0 ? C(1) : c < 0 ? C(-1) : c;
        state[0] = beta2 * state[0] + new2 * g;
        return p * keep - lr * sign;
    }
};

template <typename C>
struct Direction {
    static constexpr int kStates = 1, kNumbers = 2;
    C momentum, fresh, nesterov;

    __device__ explicit Direction(const double* n)
        : momentum(n[0]), fresh(1 - n[0]), nesterov(n[1]) {}

    __device__ C operator()(C, C g, C* state) const {
        g *= fresh;
        state[0] = momentum * state[0] + g;
        return nesterov != 0 ? g + momentum * state[0] : state[0];
    }
};

template <typename C>
struct Follow {
    static constexpr int kStates = 0, kNumbers = 1;
    C rate;

    __device__ explicit Follow(const double* n) : rate(n[0]) {}

    __device__ C operator()(C p, C g, C*) const { return p + rate * (g - p); }
};

constexpr int kSlots = 56;         // the tables of all rules stay below the 4 KB of old drivers
constexpr long kPiece = 256 * 16;  // elements of a block

// Arrays of which each block has a piece: those of slot i begin with block first[i].
template <typename Slot>
struct Table {
    Slot slots[kSlots];
    int first[kSlots];
    int count;

    __device__ const Slot& of_block(long* begin) const {
        int i = 0;
        while (i + 1 < count && first[i + 1] <= int(blockIdx.x)) ++i;
        *begin = (blockIdx.x - first[i]) * kPiece;
        return slots[i];
    }
};

template <typename C, typename Rule>
struct Parameter {
    C* param;
    const C* grad;
    bfloat16* copy;  // or null
    C* states[Rule::kStates + 1];
    long size;
    int place;  // of its numbers
};

template <int n, typename C, typename Rule>
__device__ void apply_rule(const Parameter<C, Rule>& slot, const Rule& rule, C scale, long i) {
    Few<C, n> param = load<n>(slot.param + i), grad = load<n>(slot.grad + i);
    Few<C, n> states[Rule::kStates + 1];
#pragma unroll
    for (int s = 0; s < Rule::kStates; ++s) states[s] = load<n>(slot.states[s] + i);
#pragma unroll
    for (int j = 0; j < n; ++j) {
        C state[Rule::kStates + 1];
        for (int s = 0; s < Rule::kStates; ++s) state[s] = states[s][j];
        param[j] = rule(param[j], grad[j] * scale, state);
        for (int s = 0; s < Rule::kStates; ++s) states[s][j] = state[s];
    }
    store(slot.param + i, param);
#pragma unroll
    for (int s = 0; s < Rule::kStates; ++s) store(slot.states[s] + i, states[s]);
    if (slot.copy)
        for (int j = 0; j < n; ++j) slot.copy[i + j] = bfloat16(float(param[j]));
}

template <typename C, typename Rule>
__global__ void sweep_kernel(const __grid_constant__ Table<Parameter<C, Rule>> table,
                             const double* scales, const double* numbers) {
    constexpr int n = 16 / sizeof(C);
    long begin;
    const Parameter<C, Rule>& slot = table.of_block(&begin);
    const Rule rule(numbers + Rule::kNumbers * slot.place);
    const C scale(*scales);
    const long end = min(begin + kPiece, slot.size);
    bool aligned = is_aligned<C>(slot.param) && is_aligned<C>(slot.grad);
    for (int s = 0; s < Rule::kStates; ++s) aligned &= is_aligned<C>(slot.states[s]);
    const long whole = aligned ? begin + (end - begin) / n * n : begin;
    for (long i = begin + threadIdx.x * n; i < whole; i += blockDim.x * n)
        apply_rule<n>(slot, rule, scale, i);
    for (long i = whole + threadIdx.x; i < end; i += blockDim.x) apply_rule<1>(slot, rule, scale, i);
}

// body(table, blocks) for as many tables as the arrays need; fill(i) makes the slot of array i.
template <typename Slot, typename Fill, typename Body>
static void by_table(const Array* arrays, int count, Fill&& fill, Body&& body) {
    Table<Slot> table{};
    long blocks = 0;
    for (int i = 0; i < count; ++i) {
        if (arrays[i].size) {
            table.first[table.count] = int(blocks);
            table.slots[table.count++] = fill(i);
            blocks += ceil_div(arrays[i].size, kPiece);
        }
        if (table.count == kSlots || (i + 1 == count && table.count)) {
            body(table, unsigned(blocks));
            table.count = 0;
            blocks = 0;
        }
    }
}

// Lists of n arrays each: parameters, gradients, copies (bfloat16 beside float32 parameters, or
// None), and the rule's states; all contiguous, and all but the copies of one dtype, float32 or
// float64. Then two arrays in float64: the scale of all gradients, and for each parameter the rule's
// numbers in the order of its constructor.
template <template <typename> typename Rule>
static void sweep(const Array* arrays, int num_arrays, cudaStream_t stream) {
    constexpr int states = Rule<float>::kStates;
    const int count = (num_arrays - 2) / (3 + states);
    const Array &scale = arrays[num_arrays - 2], &numbers = arrays[num_arrays - 1];
    const auto run = [&](auto kind) {
        using C = decltype(kind);
        using Slot = Parameter<C, Rule<C>>;
        const auto fill = [&](int i) {
            Slot slot{arrays[i].as<C>(),
                      arrays[count + i].as<const C>(),
                      arrays[2 * count + i].as<bfloat16>(),
                      {},
                      arrays[i].size,
                      i};
            for (int s = 0; s < states; ++s) slot.states[s] = arrays[(3 + s) * count + i].as<C>();
            return slot;
        };
        by_table<Slot>(arrays, count, fill, [&](const Table<Slot>& table, unsigned blocks) {
            static_assert(sizeof table <= 4000);
            launch(sweep_kernel<C, Rule<C>>, blocks, 256, 0, stream, table,
                   scale.as<const double>(), numbers.as<const double>());
        });
    };
    if (arrays[0].dtype == Dtype::float64) return run(double());
    require(arrays[0].dtype == Dtype::float32, "optimizer: expected float32 or float64 parameters");
    run(float());
}

DEVICE_KERNEL(adamw) {
    sweep<AdamW>(arrays, num_arrays, stream);
}
DEVICE_KERNEL(sgd_momentum) {
    sweep<Momentum>(arrays, num_arrays, stream);
}
DEVICE_KERNEL(sgd) {
    sweep<Descent>(arrays, num_arrays, stream);
}
DEVICE_KERNEL(lion) {
    sweep<Lion>(arrays, num_arrays, stream);
}
DEVICE_KERNEL(direction) {
    sweep<Direction>(arrays, num_arrays, stream);
}
DEVICE_KERNEL(follow) {
    sweep<Follow>(arrays, num_arrays, stream);
}

template <typename T>
struct Values {
    const T* x;
    long size;
};

// Σ x² of each block's piece, in double, so that no square overflows or vanishes.
template <typename T>
__global__ void squares_kernel(const __grid_constant__ Table<Values<T>> table, double* sums) {
    constexpr int n = 16 / sizeof(T);
    long begin;
    const Values<T>& slot = table.of_block(&begin);
    const long end = min(begin + kPiece, slot.size);
    const long whole = is_aligned<T>(slot.x) ? begin + (end - begin) / n * n : begin;
    double sum = 0;
    for (long i = begin + threadIdx.x * n; i < whole; i += blockDim.x * n) {
        const Few<T, n> v = load<n>(slot.x + i);
        for (int j = 0; j < n; ++j) sum += double(Compute<T>(v[j])) * double(Compute<T>(v[j]));
    }
    for (long i = whole + threadIdx.x; i < end; i += blockDim.x)
        sum += double(Compute<T>(slot.x[i])) * double(Compute<T>(slot.x[i]));
    sum = reduce_block<Plus>(sum, 0.0);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// sqrt(Σ sums), always in the same order. One block.
__global__ void root_of_sum_kernel(const double* sums, double* out, long count) {
    double total = 0;
    for (long i = threadIdx.x; i < count; i += blockDim.x) total += sums[i];
    total = reduce_block<Plus>(total, 0.0);
    if (threadIdx.x == 0) *out = sqrt(total);
}

// Any number of arrays, contiguous, each of any dtype; then sums, of as many float64 as the arrays
// have pieces of 4096 elements, counted array by array; then the norm, one float64.
DEVICE_KERNEL(l2_norm) {
    const int count = num_arrays - 2;
    const Array &sums = arrays[count], &norm = arrays[count + 1];
    long done = 0;
    for (int i = 0; i < count;) {
        int next = i + 1;
        while (next < count && arrays[next].dtype == arrays[i].dtype) ++next;
        by_dtype(arrays[i], [&](auto kind) {
            using Slot = Values<decltype(kind)>;
            const auto fill = [&](int k) {
                return Slot{arrays[i + k].as<const decltype(kind)>(), arrays[i + k].size};
            };
            by_table<Slot>(arrays + i, next - i, fill,
                           [&](const Table<Slot>& table, unsigned blocks) {
                               launch(squares_kernel<decltype(kind)>, blocks, 256, 0, stream, table,
                                      sums.as<double>() + done);
                               done += blocks;
                           });
        });
        i = next;
    }
    launch(root_of_sum_kernel, 1, 256, 0, stream, sums.as<const double>(), norm.as<double>(), done);
}

}  // namespace minitorch
