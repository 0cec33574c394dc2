// A draw from softmax(x / temperature) of every row, cut to the most probable; a block to a row:
//
//     argmax over i of  x_i / temperature - log E_i,    E_i = -log(1 - u_i),  u_i uniform in (0, 1)
//
// since -log E is Gumbel noise. What is below a floor is never drawn, the highest of
//
//     top_k    the k-th largest
//     top_p    the largest t for which those not below t have at least p of the probability
//     min_p    max x + temperature log(min_p)
//
// The first two are both the largest t with a weight of {x >= t} that reaches a target, one
// counting, one adding up probabilities. They are found without sorting, bit by bit of the number
// t.
//
// Source: Gumbel 1954, in the form of Maddison et al. 2014, "A* sampling". The floors: Fan et al.
// 2018; Holtzman et al. 2020; Nguyen et al. 2024.

#include <bit>

#include "philox.h"
#include "ranked.h"
#include "reduce.h"

namespace minitorch {

// The bits of a float as an integer of the same order.
template <typename C>
struct Ordered {
    using Key = std::conditional_t<sizeof(C) == 8, uint64_t, uint32_t>;
    static constexpr Key kTop = Key(1) << (8 * sizeof(C) - 1);

    __device__ static Key key(C x) {
        const Key bits = std::bit_cast<Key>(x);
        return bits & kTop ? ~bits : bits | kTop;
    }
    __device__ static C number(Key key) { return std::bit_cast<C>(key & kTop ? key ^ kTop : ~key); }
};

// What a block knows of its row.
template <typename T>
struct Choices {
    using C = Compute<T>;
    const T* row;
    int columns;
    C temperature, peak;

    // Σ weight(x_i) over the x_i with a key of at least `least`.
    template <typename Weight>
    __device__ C weigh(typename Ordered<C>::Key least, Weight weight) const {
        C sum = 0;
        for (int i = threadIdx.x; i < columns; i += blockDim.x)
            if (Ordered<C>::key(C(row[i])) >= least) sum += weight(C(row[i]));
        return reduce_block<Plus>(sum, C(0));
    }
    // The largest t, not below `least`, for which that reaches `target`.
    template <typename Weight>
    __device__ C floor(C least, C target, Weight weight) const {
        typename Ordered<C>::Key found = 0;
        for (auto bit = Ordered<C>::kTop; bit; bit >>= 1)
            if (weigh(found | bit, weight) >= target) found |= bit;
        return max(least, Ordered<C>::number(found));
    }
    __device__ C probability(C x) const { return exp((x - peak) / temperature); }
};

template <typename C>
struct Cut {
    C temperature;
    int top_k;
    C top_p, min_p;
};

template <typename T>
__global__ void categorical_kernel(const T* x, int64_t* out, int columns, Cut<Compute<T>> cut,
                                   Philox random) {
    using C = Compute<T>;
    Choices<T> choices{x + long(blockIdx.x) * columns, columns, cut.temperature, C(-INFINITY)};
    bool nan = false;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
        const C value = C(choices.row[i]);
        choices.peak = max(choices.peak, value);
        nan |= value != value;
    }
    choices.peak = reduce_block<Larger>(choices.peak, C(-INFINITY));
    if (__syncthreads_or(nan) || fabs(choices.peak) == C(INFINITY)) {
        if (threadIdx.x == 0) out[blockIdx.x] = -1;
        return;
    }
    C floor = std::numeric_limits<C>::lowest();
    if (cut.top_k > 0 && cut.top_k < columns)
        floor = choices.floor(floor, C(cut.top_k), [](C) { return C(1); });
    if (cut.top_p < 1) {
        const auto weight = [&](C value) { return choices.probability(value); };
        const C all = choices.weigh(Ordered<C>::key(floor), weight);
        floor = choices.floor(floor, cut.top_p * all, weight);
    }
    if (cut.min_p > 0) floor = max(floor, choices.peak + cut.temperature * log(cut.min_p));
    Ranked<C> best;
    const int blocks = (columns + 7) / 8;
    for (int k = threadIdx.x; k < blocks; k += blockDim.x) {
        const Few<uint32_t, 8> numbers = random.block(uint64_t(blockIdx.x) * blocks + k);
        for (int i = k * 8; i < min(columns, k * 8 + 8); ++i) {
            const C value = C(choices.row[i]);
            if (value < floor) continue;
            const C u = (C(numbers[i - k * 8]) + C(0.5)) * C(0x1p-32);
            const C noise = -log(-log1p(-min(u, C(1) - C(0x1p-24))));
            best.meet({(value - choices.peak) / cut.temperature + noise, i});
        }
    }
    best.reduce_block();
    if (threadIdx.x == 0) out[blockIdx.x] = best.index;
}

// x (rows, columns), contiguous; out (rows), int64; what is added to the offset, or None;
// temperature, top_k, top_p, min_p, then key and counter. Row r has the numbers from block r ceil(columns / 8) on; -1 where no row can be drawn
// from.
DEVICE_KERNEL(categorical) {
    const Array &x = arrays[0], &out = arrays[1];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const Cut<C> cut{C(numbers[0]), int(numbers[1]), C(numbers[2]), C(numbers[3])};
        const long columns = x.shape[1];
        launch(categorical_kernel<T>, unsigned(x.shape[0]), row_threads(columns), 0, stream,
               x.as<const T>(), out.as<int64_t>(), int(columns), cut,
               Philox(numbers + 4, arrays[2].as<const double>()));
    });
}

}  // namespace minitorch
