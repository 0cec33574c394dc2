// Matrix products, mixtures of experts and what chooses among them.

#include "driver.h"

// b is passed as the transpose of what lies in memory. An activation goes by its number: 1 is relu.
template <typename T>
static void check_matmul(long m, long n, long k) {
    Owned<T> a({m, k}), b({n, k}), out({m, n}), bias({n}), rest({m, n}), before({m, n});
    Owned<Compute<T>> sums({m});
    Array turned = b.array;
    std::swap(turned.shape[0], turned.shape[1]);
    std::swap(turned.strides[0], turned.strides[1]);
    for (double activation : {0, 1}) {
        run("matmul",
            {a.array, turned, out.array, bias.array, rest.array, sums.array, before.array},
            {0.5, 0, activation});
        for (long i = 0; i < m; ++i)
            for (long j = 0; j < n; ++j) {
                double sum = bias[j];
                for (long p = 0; p < k; ++p) sum += 0.5 * a[i * k + p] * b[j * k + p];
                close<T>("matmul, before", before[i * n + j], sum, 1e-4);
                if (activation && sum < 0) sum = 0;
                close<T>("matmul", out[i * n + j], sum + rest[i * n + j], 1e-4);
            }
    }
    for (double activation : {2, 3})
        run("matmul", {a.array, turned, out.array, kNone, kNone, kNone, kNone}, {1, 0, activation});
    run("matmul", {a.array, turned, out.array, kNone, kNone, kNone, kNone}, {1, 1, 0});
    a.set(0, 1e38);  // not to be cut into pieces
    run("matmul", {a.array, turned, out.array, kNone, kNone, sums.array, kNone}, {1, 0, 0});
}

// Groups of rows that end at `ends`, some of them empty; weights as the transpose of what lies in
// memory, as the layers pass them.
template <typename T>
static void check_grouped(std::vector<long> ends, long n, long k) {
    const long groups = static_cast<long>(ends.size()), rows = ends.back();
    Owned<T> x({rows, k}), y({rows, n}), weight({groups, n, k}), out({rows, n}), outer({groups, k, n});
    Owned<long> offsets({groups});
    for (long e = 0; e < groups; ++e) offsets.set(e, static_cast<double>(ends[e]));
    Array turned = weight.array;
    std::swap(turned.shape[1], turned.shape[2]);
    std::swap(turned.strides[1], turned.strides[2]);
    run("grouped_mm", {x.array, turned, offsets.array, out.array});
    run("grouped_outer", {x.array, y.array, offsets.array, outer.array});
    for (long e = 0; e < groups; ++e) {
        const long begin = e ? ends[e - 1] : 0;
        for (long j = 0; j < n; ++j) {
            for (long r = begin; r < ends[e]; ++r) {
                double sum = 0;
                for (long p = 0; p < k; ++p) sum += x[r * k + p] * weight[(e * n + j) * k + p];
                close<T>("grouped_mm", out[r * n + j], sum, 1e-4);
            }
            for (long p = 0; p < k; ++p) {
                double sum = 0;
                for (long r = begin; r < ends[e]; ++r) sum += x[r * k + p] * y[r * n + j];
                close<T>("grouped_outer", outer[(e * k + p) * n + j], sum, 1e-4);
            }
        }
    }
}

// A mixture of experts whose tokens go to experts t and 2 t (modulo their number), and to a shared
// expert of `wide` units (0: none), against one token after another. Of the gradients only that of the
// weights; the others are held in Python.
template <typename T>
static void check_experts(long tokens, long experts, long width, long hidden, long wide) {
    const long k = 2, count = tokens * k, more = wide ? tokens : 0;
    Owned<T> x({tokens, width}), weights({tokens, k}), out({tokens, width}), grad({tokens, width});
    Owned<T> gate_up({experts, 2 * hidden, width}), down({experts, width, hidden});
    Owned<T> wide_gate({wide, width}), wide_up({wide, width}), wide_down({width, wide});
    Owned<T> scale({1, width});
    Owned<long> indices({tokens, k}), places({tokens, k}), ends({experts});
    for (long i = 0; i < count; ++i) indices.set(i, double((i / k) * (1 + i % k) % experts));
    long row = 0;
    for (long e = 0; e < experts; ++e) {
        for (long i = 0; i < count; ++i)
            if (indices[i] == e) places.set(i, double(row++));
        ends.set(e, double(row));
    }
    const auto if_shared = [&](const Array& array) { return wide ? array : kNone; };
    const std::vector<Array> inputs{x.array,
                                    weights.array,
                                    gate_up.array,
                                    down.array,
                                    places.array,
                                    ends.array,
                                    if_shared(wide_gate.array),
                                    if_shared(wide_up.array),
                                    if_shared(wide_down.array),
                                    if_shared(scale.array)};
    const auto with = [&](std::vector<Array> given, std::initializer_list<Array> more) {
        given.insert(given.end(), more);
        return given;
    };
    Owned<T> both({count, 2 * hidden}), wide_both({more, 2 * wide}), shares({more});
    Owned<T> rows({count + more, width});
    const std::vector<Array> kept{both.array, if_shared(wide_both.array), if_shared(shares.array)};
    run("moe_swiglu", with(with(inputs, {kept[0], kept[1], kept[2]}), {rows.array, out.array}));
    Owned<T> grads({count, width}), sorted({count, width}), drows({count + more, width});
    Owned<T> dboth({count, 2 * hidden}), units({count, hidden}), dx({tokens, width});
    Owned<T> wide_dboth({more, 2 * wide}), wide_units({more, wide});
    Owned<T> dweights({tokens, k}), dgate_up({experts, 2 * hidden, width});
    Owned<T> ddown({experts, width, hidden}), dgate({wide, width}), dup({wide, width});
    Owned<T> dwide_down({width, wide}), dscale({1, width});
    std::vector<Array> given{grad.array};
    given.insert(given.end(), inputs.begin(), inputs.end());
    given.insert(given.end(), kept.begin(), kept.end());
    given = with(given, {grads.array, sorted.array, drows.array, dboth.array, units.array,
                         if_shared(wide_dboth.array), if_shared(wide_units.array)});
    run("moe_swiglu_backward",
        with(given, {dx.array, dweights.array, dgate_up.array, ddown.array, if_shared(dgate.array),
                     if_shared(dup.array), if_shared(dwide_down.array), if_shared(dscale.array)}));
    for (long t = 0; t < tokens; ++t) {
        std::vector<double> expected(width);
        // Adds factor times what one unit gives; returns <grad, what it gives>.
        const auto add = [&](const T* gate_row, const T* up_row, const T* down_column, long step,
                             double factor) {
            double gate = 0, up = 0, slope = 0;
            for (long p = 0; p < width; ++p) {
                gate += double(load_one(gate_row + p)) * x[t * width + p];
                up += double(load_one(up_row + p)) * x[t * width + p];
            }
            const double unit = gate / (1 + std::exp(-gate)) * up;
            for (long p = 0; p < width; ++p) {
                const double part = load_one(down_column + p * step) * unit;
                expected[p] += factor * part;
                slope += grad[t * width + p] * part;
            }
            return slope;
        };
        for (long j = 0; j < k; ++j) {
            const long e = long(indices[t * k + j]);
            const T* gate = gate_up.memory.data() + e * 2 * hidden * width;
            const T* first = down.memory.data() + e * width * hidden;
            double slope = 0;
            for (long u = 0; u < hidden; ++u)
                slope += add(gate + u * width, gate + (hidden + u) * width, first + u, hidden,
                             weights[t * k + j]);
            close<T>("moe_swiglu, dweights", dweights[t * k + j], slope, 1e-3);
        }
        double logit = 0;
        for (long p = 0; p < width; ++p) logit += scale[p] * x[t * width + p];
        for (long u = 0; u < wide; ++u)
            add(wide_gate.memory.data() + u * width, wide_up.memory.data() + u * width,
                wide_down.memory.data() + u, wide, 1 / (1 + std::exp(-logit)));
        for (long p = 0; p < width; ++p)
            close<T>("moe_swiglu", out[t * width + p], expected[p], 1e-4);
    }
}

// Where rows stand is what matters to memory; the numbers are held in Python.
template <typename T>
static void check_routing(long tokens, long experts, long k) {
    Owned<T> x({tokens, experts}), bias({experts}), weights({tokens, k}), dx({tokens, experts});
    Owned<long> indices({tokens, k}), places({tokens, k}), ends({experts});
    const double groups = experts % 2 == 0 && experts > 2 * k ? 2 : 1;
    for (double logistic : {0, 1})
        for (const Array& added : {bias.array, kNone}) {
            run("route", {x.array, added, weights.array, indices.array, places.array, ends.array},
                {logistic, logistic, 2.5, groups, 1, 1});
            for (long t = 0; t < tokens; ++t)
                for (long j = 0; j < k; ++j) {
                    const long e = long(indices[t * k + j]), row = long(places[t * k + j]);
                    const bool there = row < ends[e] && row >= (e ? ends[e - 1] : 0);
                    close<T>("route, places", there, 1, 0);
                }
            run("moe_places", {indices.array, places.array, ends.array});
            run("routing_weights", {x.array, indices.array, weights.array},
                {logistic, logistic, 2.5});
            run("routing_weights_backward", {weights.array, x.array, indices.array, dx.array},
                {logistic, logistic, 2.5});
        }
    Owned<T> total({1});
    Array cost = bias.array;  // one for all tokens
    cost.ndim = 2, cost.size = tokens * experts;
    cost.shape[0] = tokens, cost.shape[1] = experts, cost.strides[0] = 0, cost.strides[1] = 1;
    for (double logistic : {0, 1}) {
        run("expected_cost", {x.array, cost, total.array}, {logistic, 0, 1});
        double expected = 0;
        for (long t = 0; t < tokens; ++t) {
            double sum = 0, costs = 0;
            for (long e = 0; e < experts; ++e) {
                const double power = std::exp(x[t * experts + e]);
                const double score = logistic ? power / (1 + power) : power;
                sum += score, costs += score * bias[e];
            }
            expected += costs / sum;
        }
        close<T>("expected_cost", total[0], expected, 1e-4 * double(tokens));
        run("expected_cost_backward", {x.array, cost, dx.array}, {logistic, 0, 1, 0.5});
        Array one = x.array, costs = bias.array;  // all tokens as one sequence
        one.ndim = costs.ndim = 3;
        one.shape[0] = costs.shape[0] = costs.shape[1] = 1;
        one.shape[1] = tokens, one.shape[2] = costs.shape[2] = experts;
        one.strides[1] = experts, one.strides[2] = costs.strides[2] = 1;
        run("expert_balance", {one, indices.array, costs, total.array}, {logistic, 0, 1, 0.5});
        double spent = 0;  // f sums to the number of experts
        for (long e = 0; e < experts; ++e) spent += bias[e];
        close<T>("expert_balance", spent * double(tokens), 0.5 * double(experts),
                 1e-4 * double(experts));
    }
}

template <typename T>
static void check_unit_experts(long tokens, long k, long width, long rows) {
    Owned<T> x({tokens, width}), weights({tokens, k}), down({rows, width}), up({rows, width});
    Owned<T> pre({tokens, k}), out({tokens, width}), grad({tokens, width}), slopes({tokens, k});
    Owned<T> units({tokens, k}), dx({tokens, width}), dweights({tokens, k});
    Owned<T> ddown({rows, width}), dup({rows, width});
    Owned<long> index({tokens, k});
    for (long i = 0; i < tokens * k; ++i) index.set(i, double(i * 7 % rows));
    std::vector<Array> given{x.array, weights.array, down.array, up.array, index.array};
    std::vector<Array> forward = given;
    forward.insert(forward.end(), {pre.array, out.array});
    run("unit_experts", forward);
    for (long t = 0; t < tokens; ++t)
        for (long p = 0; p < width; ++p) {
            double sum = 0;
            for (long i = t * k; i < (t + 1) * k; ++i) {
                double read = 0;
                for (long q = 0; q < width; ++q)
                    read += down[long(index[i]) * width + q] * x[t * width + q];
                const double unit = read * std::erfc(-read * std::sqrt(0.5)) / 2;
                sum += weights[i] * unit * up[long(index[i]) * width + p];
            }
            close<T>("unit_experts", out[t * width + p], sum, 1e-4);
        }
    given.insert(given.end(), {grad.array, pre.array, slopes.array, units.array, dx.array,
                               dweights.array, ddown.array, dup.array});
    run("unit_experts_backward", given);
    given[9] = given[12] = kNone;
    run("unit_experts_backward", given);
}

template <typename T>
static void check_topk(long rows, long columns, long k) {
    Owned<T> x({rows, columns});
    Owned<long> indices({rows, k});
    for (double largest : {0, 1}) {
        run("topk", {x.array, indices.array}, {largest});
        for (long r = 0; r < rows; ++r)
            for (long j = 1; j < k; ++j) {
                const double a = x[r * columns + long(indices[r * k + j - 1])];
                const double b = x[r * columns + long(indices[r * k + j])];
                close<T>("topk", largest ? a >= b : a <= b, 1, 0);
            }
    }
}

template <typename T>
static void check_product_keys(long rows, long n, long d, long k) {
    Owned<T> query({rows, 2 * d}), keys({2, n, d}), scores({rows, k}), dquery({rows, 2 * d});
    Owned<T> dkeys({2, n, d});
    Owned<long> indices({rows, k});
    run("product_keys", {query.array, keys.array, scores.array, indices.array});
    const auto score = [&](long r, long i, long j) {
        double sum = 0;
        for (long p = 0; p < d; ++p)
            sum += query[2 * r * d + p] * keys[i * d + p] +
                   query[(2 * r + 1) * d + p] * keys[(n + j) * d + p];
        return sum;
    };
    for (long r = 0; r < rows; ++r) {
        const double last = scores[(r + 1) * k - 1];
        long larger = 0;
        for (long e = 0; e < n * n; ++e) larger += score(r, e / n, e % n) > last + 1e-4;
        close<T>("product_keys, all larger ones", larger < k, 1, 0);
        for (long i = r * k; i < (r + 1) * k; ++i)
            close<T>("product_keys", scores[i],
                     score(r, long(indices[i]) / n, long(indices[i]) % n), 1e-4);
    }
    std::vector<Array> given{scores.array,  query.array,  keys.array,
                             indices.array, dquery.array, dkeys.array};
    run("product_scores_backward", given);
    given[4] = kNone;
    run("product_scores_backward", given);
}

template <typename T>
static void check_all() {
    for (long m : {1, 3, 8, 9, 37, 100})
        for (long n : {1, 17, 65})
            for (long k : {1, 5, 64, 400}) check_matmul<T>(m, n, k);
    check_matmul<T>(86, 110, 1100);
    check_matmul<T>(110, 78, 500);
    check_matmul<T>(48, 50, 8300);
    for (long n : {1, 17, 65})
        for (long k : {1, 5, 64}) {
            check_grouped<T>({3}, n, k);
            check_grouped<T>({0, 1, 1, 9, 46, 46}, n, k);
        }
    check_grouped<T>({300, 301}, 130, 97);  // large enough for all threads at one product
    if constexpr (!std::is_same_v<T, bfloat16>) {
        check_routing<T>(1, 1, 1);
        check_routing<T>(300, 8, 3);
        check_routing<T>(7, 17, 17);
        check_product_keys<T>(1, 1, 1, 1);
        check_product_keys<T>(9, 3, 2, 9);
        check_product_keys<T>(70, 40, 5, 16);
    }
    check_unit_experts<T>(1, 1, 1, 1);
    check_unit_experts<T>(40, 5, 33, 70);
    check_topk<T>(1, 1, 1);
    check_topk<T>(70, 33, 5);
    check_topk<T>(3, 129, 128);
    check_topk<T>(3, 700, 40);
    for (long wide : {0, 7}) {
        check_experts<T>(1, 1, 1, 1, wide);
        check_experts<T>(9, 5, 17, 3, wide);
        check_experts<T>(300, 2, 8, 21, wide);  // an expert's rows in several blocks
    }
}

void check_products() {
    check_all<float>();
    check_all<double>();
    check_all<bfloat16>();
}
