// Which experts a token goes to, what they weigh, and where its rows stand when all are sorted by
// expert:
//
//     s = softmax(x), or the logistic function of each x
//     chosen: the k largest s + b, in the groups of experts whose largest s + b sum highest
//     w = λ s_chosen, or λ s_chosen / Σ s_chosen

#include "dispatch.h"
#include "softmax.h"
#include "topk.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "routing: expected float32 or float64";

// Of one row; as the numbers of a kernel's call give it.
struct Weighing {
    bool logistic, normalised;
    double factor;

    explicit Weighing(const double* numbers)
        : logistic(numbers[0] != 0), normalised(numbers[1] != 0), factor(numbers[2]) {}

    template <typename T>
    void scores(const T* x, T* s, long experts) const {
        if (logistic)
            for_each_vector<T>(experts,
                               [&](long, auto get, auto put) { put(s, sigmoid<T>(get(x))); });
        else
            softmax_rows<T>(x, s, 1, experts, T(1));
    }
    // What the scores of the chosen are divided by. The scores may all be 0: see the reference.
    template <typename T>
    T total(const T* s, const int64_t* chosen, long k) const {
        if (!normalised) return 1;
        T sum = T(1e-20);
        for (long j = 0; j < k; ++j) sum += s[chosen[j]];
        return sum;
    }
};

// Out of how many groups of experts a token's may be, and how many of a group's scores speak for
// it.
struct Groups {
    long count, kept, speaking;

    explicit Groups(const double* numbers)
        : count(long(numbers[0])), kept(long(numbers[1])), speaking(long(numbers[2])) {}

    // ranks = -inf outside of those that are kept.
    template <typename T>
    void keep(T* ranks, long experts) const {
        const long size = experts / count;
        T* strength = scratch<T>(5, count);
        int64_t* found = scratch<int64_t>(6, experts);
        for (long g = 0; g < count; ++g) {
            best(ranks + g * size, size, speaking, found);
            strength[g] = 0;
            for (long i = 0; i < speaking; ++i) strength[g] += ranks[g * size + found[i]];
        }
        best(strength, count, kept, found);
        for (long i = 0; i < kept; ++i) strength[found[i]] = kInfinity<T>;
        for (long g = 0; g < count; ++g)
            for (long i = g * size; strength[g] != kInfinity<T> && i < (g + 1) * size; ++i)
                ranks[i] = -kInfinity<T>;
    }
};

// indices (any number), below the length of ends; places[i]: where i stands when all are sorted by
// expert, equal ones in their order; ends: where the rows of each expert end.
static void sort_by_expert(const Array& indices, const Array& places, const Array& ends) {
    const int64_t* expert = indices.as<int64_t>();
    int64_t *place = places.as<int64_t>(), *end = ends.as<int64_t>();
    require(indices.dtype == Dtype::int64 && places.dtype == Dtype::int64 &&
                ends.dtype == Dtype::int64 && places.size == indices.size && ends.size > 0,
            "moe_places: arrays that do not fit");
    for (long e = 0; e < ends.size; ++e) end[e] = 0;
    for (long i = 0; i < indices.size; ++i) {
        require(0 <= expert[i] && expert[i] < ends.size, "moe_places: an index that is no expert");
        ++end[expert[i]];
    }
    for (long e = 0, begin = 0; e < ends.size; ++e) {
        const long next = begin + end[e];
        end[e] = begin;
        begin = next;
    }
    for (long i = 0; i < indices.size; ++i) place[i] = end[expert[i]]++;
}

KERNEL(moe_places) {  // indices, places, ends: contiguous int64
    sort_by_expert(arrays[0], arrays[1], arrays[2]);
}

// row(row of x, scores, chosen) of every token, side by side; x (tokens, experts), indices (tokens,
// k).
template <typename T, typename F>
static void for_tokens(const Array& x, const Array& indices, const Weighing& weighing, F row) {
    const long experts = x.dim(-1), k = indices.dim(-1);
    parallel_ranges(x.shape[0], rows_per_piece(16 * experts), [&](long begin, long end) {
        T* s = scratch<T>(3, experts);
        for (long t = begin; t < end; ++t) {
            weighing.scores(x.as<T>() + t * experts, s, experts);
            row(t, s, indices.as<int64_t>() + t * k);
        }
    });
}

static void check(const Array& x, const Array& indices) {
    require(x.ndim == 2 && indices.ndim == 2 && indices.dtype == Dtype::int64 &&
                x.shape[0] == indices.shape[0],
            "routing: arrays that do not fit");
}

static void check_chosen(const Array& indices, long experts) {
    for (long i = 0; i < indices.size; ++i)
        require(0 <= indices.as<int64_t>()[i] && indices.as<int64_t>()[i] < experts,
                "routing: an index that is no expert");
}

template <typename T>
static void weigh(const Weighing& weighing, const T* s, const int64_t* chosen, long k, T* weights) {
    const T scale = T(weighing.factor) / weighing.total(s, chosen, k);
    for (long j = 0; j < k; ++j) weights[j] = scale * s[chosen[j]];
}

// x (tokens, experts), b (experts,) or none, weights and indices (tokens, k), places (tokens, k),
// ends (experts,); logistic, normalised, λ; groups, how many of them are kept, and how many of a
// group's largest s + b are summed. All contiguous.
KERNEL(route) {
    const Array &x = arrays[0], &bias = arrays[1], &weights = arrays[2], &indices = arrays[3];
    check(x, indices);
    const Weighing weighing(numbers);
    const Groups groups(numbers + 3);
    const long experts = x.shape[1], k = indices.shape[1];
    require(num_arrays == 6 && arrays[5].size == experts && weights.dtype == x.dtype &&
                weights.size == indices.size && groups.count > 0 && experts % groups.count == 0 &&
                0 < groups.speaking && groups.speaking <= experts / groups.count &&
                0 < groups.kept && groups.kept <= groups.count &&
                k <= experts / groups.count * groups.kept &&
                (!bias || (bias.size == experts && bias.dtype == x.dtype)),
            "routing: arrays that do not fit");
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        for_tokens<T>(x, indices, weighing, [&](long t, const T* s, int64_t* chosen) {
            T* ranks = scratch<T>(4, experts);
            for (long e = 0; e < experts; ++e) ranks[e] = bias ? s[e] + bias.as<T>()[e] : s[e];
            if (groups.kept < groups.count) groups.keep(ranks, experts);
            best(ranks, experts, k, chosen);
            weigh(weighing, s, chosen, k, weights.as<T>() + t * k);
        });
    });
    sort_by_expert(indices, arrays[4], arrays[5]);
}

KERNEL(routing_weights) {  // x (tokens, experts), indices and out (tokens, k); as route's
    const Array &x = arrays[0], &indices = arrays[1], &out = arrays[2];
    check(x, indices);
    check_chosen(indices, x.shape[1]);
    require(out.size == indices.size && out.dtype == x.dtype, "routing: arrays that do not fit");
    const Weighing weighing(numbers);
    const long k = indices.shape[1];
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        for_tokens<T>(x, indices, weighing, [&](long t, const T* s, const int64_t* chosen) {
            weigh(weighing, s, chosen, k, out.as<T>() + t * k);
        });
    });
}

// grad (tokens, k), x (tokens, experts), indices (tokens, k), dx (tokens, experts). Of a softmax
// over all experts every logit has a gradient, else those of the chosen.
KERNEL(routing_weights_backward) {
    const Array &grad = arrays[0], &x = arrays[1], &indices = arrays[2], &dx = arrays[3];
    check(x, indices);
    check_chosen(indices, x.shape[1]);
    require(grad.size == indices.size && grad.dtype == x.dtype && dx.size == x.size &&
                dx.dtype == x.dtype,
            "routing: arrays that do not fit");
    const Weighing weighing(numbers);
    const long experts = x.shape[1], k = indices.shape[1];
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        for_tokens<T>(x, indices, weighing, [&](long t, const T* s, const int64_t* chosen) {
            const T* g = grad.as<T>() + t * k;
            T* to = dx.as<T>() + t * experts;
            const T factor = T(weighing.factor), inverse = T(1) / weighing.total(s, chosen, k);
            T flow = 0;  // Σ grad w
            for (long j = 0; j < k; ++j) flow += g[j] * factor * s[chosen[j]] * inverse;
            const bool all = !weighing.logistic && !weighing.normalised;
            for (long e = 0; e < experts; ++e) to[e] = all ? -s[e] * flow : T(0);
            for (long j = 0; j < k; ++j) {
                const T score = s[chosen[j]], share = score * inverse;
                const T direct = share * (g[j] * factor - (weighing.normalised ? flow : T(0)));
                to[chosen[j]] += weighing.logistic ? direct * (T(1) - score) : direct;
            }
        });
    });
}

static void check_cost(const Array& x, const Array& cost) {
    bool fits = x.ndim > 0 && cost.ndim == x.ndim && cost.dtype == x.dtype &&
                cost.dim(-1) == x.dim(-1) && (cost.stride(-1) == 1 || cost.dim(-1) <= 1);
    for (int i = 0; fits && i < x.ndim; ++i)
        fits = cost.shape[i] == 1 || cost.shape[i] == x.shape[i];
    require(fits, "expected_cost: arrays that do not fit");
}

// Where the cost of a row of x begins: a dimension of 1 stands for as many as x has.
static long cost_offset(const Array& cost, const Array& x, long row) {
    long at = 0;
    for (int i = x.ndim - 2; i >= 0; row /= x.shape[i--])
        if (cost.shape[i] != 1) at += row % x.shape[i] * cost.strides[i];
    return at;
}

// row(row, s, cost of it) of rows from begin to end, s being scores that sum to 1, and the factor by
// which they were divided.
template <typename T, typename F>
static void for_costs(const Array& x, const Array& cost, const Weighing& weighing, long begin,
                      long end, F row) {
    const long experts = x.dim(-1);
    T* s = scratch<T>(3, experts);
    for (long t = begin; t < end; ++t) {
        weighing.scores(x.as<T>() + t * experts, s, experts);
        T total = weighing.logistic ? T(0) : T(1);
        for (long e = 0; weighing.logistic && e < experts; ++e) total += s[e];
        row(t, s, cost.as<T>() + cost_offset(cost, x, t), T(1) / total);
    }
}

template <typename T>
static T expected(const T* s, const T* cost, long experts, T inverse) {
    Vector<T> sum{};
    for_each_vector<T>(experts, [&](long, auto get, auto) { sum += get(s) * get(cost); });
    return sum_of_lanes<T>(sum) * inverse;
}

// out = Σ cost s over all rows, s being scores that sum to 1.
static void sum_costs(const Array& x, const Array& cost, const Array& out, const double* numbers) {
    check_cost(x, cost);
    require(out.size == 1 && out.dtype == x.dtype, "expected_cost: arrays that do not fit");
    const Weighing weighing(numbers);
    const long experts = x.dim(-1), rows = x.size / experts, grain = rows_per_piece(16 * experts);
    const long pieces = (rows + grain - 1) / grain;
    double* sums = scratch<double>(4, pieces);
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        parallel_for(pieces, [&](long i) {
            const long begin = i * grain, end = begin + grain < rows ? begin + grain : rows;
            double sum = 0;
            for_costs<T>(x, cost, weighing, begin, end,
                         [&](long, const T* s, const T* c, T inverse) {
                sum += expected(s, c, experts, inverse);
            });
            sums[i] = sum;
        });
        double total = 0;
        for (long i = 0; i < pieces; ++i) total += sums[i];
        out.as<T>()[0] = T(total);
    });
}

// x (..., experts) contiguous, cost as x, or 1 where one stands for all, its rows contiguous, out
// one number; logistic, and two numbers that are not used.
KERNEL(expected_cost) {
    require(num_arrays == 3, "expected_cost: arrays that do not fit");
    sum_costs(arrays[0], arrays[1], arrays[2], numbers);
}

// x (sequences, tokens, experts), indices (sequences tokens, k), cost (sequences, 1, experts): of
// each expert λ experts / (k tokens² sequences) for every time that it was chosen; out the sum of
// costs, as above; logistic, two numbers that are not used, λ. All contiguous.
KERNEL(expert_balance) {
    const Array &x = arrays[0], &indices = arrays[1], &cost = arrays[2];
    require(num_arrays == 4 && x.ndim == 3 && indices.ndim == 2 && indices.dtype == Dtype::int64 &&
                indices.shape[0] == x.shape[0] * x.shape[1] && cost.dtype == x.dtype &&
                cost.size == x.shape[0] * x.shape[2],
            "expert_balance: arrays that do not fit");
    const long experts = x.shape[2];
    check_chosen(indices, experts);
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const double tokens = double(x.shape[1]);
        const T each = T(numbers[3] * double(experts) / (double(indices.size) * tokens));
        T* to = cost.as<T>();
        for (long i = 0; i < cost.size; ++i) to[i] = 0;
        const long choices = x.shape[1] * indices.shape[1];
        for (long i = 0; i < indices.size; ++i)
            to[i / choices * experts + indices.as<int64_t>()[i]] += each;
    });
    sum_costs(x, cost, arrays[3], numbers);
}

// x and cost as above, dx as x; logistic, two numbers that are not used, the gradient of the sum.
KERNEL(expected_cost_backward) {
    const Array &x = arrays[0], &cost = arrays[1], &dx = arrays[2];
    check_cost(x, cost);
    require(num_arrays == 3 && dx.size == x.size && dx.dtype == x.dtype,
            "expected_cost: arrays that do not fit");
    const Weighing weighing(numbers);
    const long experts = x.dim(-1);
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const T grad = T(numbers[3]);
        parallel_ranges(x.size / experts, rows_per_piece(16 * experts), [&](long begin, long end) {
            for_costs<T>(x, cost, weighing, begin, end,
                         [&](long t, const T* s, const T* c, T inverse) {
                const T mean = expected(s, c, experts, inverse), scale = grad * inverse;
                for_each_vector<T>(experts, [&](long, auto get, auto put) {
                    const Vector<T> score = get(s);
                    Vector<T> slope = scale * score * (get(c) - mean);
                    if (weighing.logistic) slope *= T(1) - score;
                    put(dx.as<T>() + t * experts, slope);
                });
            });
        });
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
