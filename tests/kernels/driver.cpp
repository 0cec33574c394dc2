// Runs every compiled kernel without Python, on odd sizes, in every dtype and with threads, for what
// only compilers can check: sanitizers, and processors that are not here (under an emulator). The
// numbers are held against the references in Python; here those of the kernels with the most involved
// loops are held against plain ones. A kernel that is not run here is an error.
//
// Linked with csrc/cpu/processor.cpp, threads.cpp and all of csrc/cpu/kernels, as tests/kernels/test_sanitizers.py
// does.

#include "array.h"
#include "kernels/dispatch.h"
#include "threads.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace minitorch {

static std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> table;
    return table;
}
Entry::Entry(const char*, const char* name, Kernel kernel) {
    kernels()[name] = kernel;
}
void fail(const char* message) {
    throw std::invalid_argument(message);
}

}  // namespace minitorch

using namespace minitorch;
using minitorch::MT_INSTRUCTION_SET::bfloat16;
template <typename T>
using Compute = minitorch::MT_INSTRUCTION_SET::Compute<T>;
using minitorch::MT_INSTRUCTION_SET::load_one;
using minitorch::MT_INSTRUCTION_SET::store_one;

template <typename T>
constexpr Dtype kDtype = std::is_same_v<T, float>    ? Dtype::float32
                         : std::is_same_v<T, double> ? Dtype::float64
                         : std::is_same_v<T, long>   ? Dtype::int64
                                                     : Dtype::bfloat16;

// An array that owns its memory, exactly as much as it has elements, so that a sanitizer sees a
// read or a write beside it. Filled with numbers in [-scale, scale].
template <typename T>
struct Owned {
    std::vector<T> memory;
    Array array{};

    Owned(std::initializer_list<long> shape, double scale = 1) {
        array.ndim = static_cast<int>(shape.size());
        array.size = 1;
        array.dtype = kDtype<T>;
        std::copy(shape.begin(), shape.end(), array.shape);
        for (int i = array.ndim - 1; i >= 0; --i) {
            array.strides[i] = array.size;
            array.size *= array.shape[i];
        }
        memory.resize(array.size);
        array.data = memory.data();
        for (long i = 0; i < array.size; ++i) set(i, scale * (std::rand() % 2001 - 1000) / 1000.0);
    }
    double operator[](long i) const {
        if constexpr (std::is_same_v<T, long>)
            return memory[i];
        else
            return load_one(&memory[i]);
    }
    void set(long i, double value) {
        if constexpr (std::is_same_v<T, long>)
            memory[i] = static_cast<long>(value);
        else
            store_one(&memory[i], static_cast<Compute<T>>(value));
    }
};

static const Array kNone{nullptr, Dtype::none, 0, 0, {}, {}};
static std::set<std::string> ran;

static void run(const char* name, std::vector<Array> arrays, std::vector<double> numbers = {}) {
    ran.insert(name);
    numbers.push_back(0);
    kernels().at(name)(arrays.data(), static_cast<int>(arrays.size()), numbers.data());
}

// bound: in float32; times more for bfloat16.
template <typename T>
static void close(const char* what, double found, double expected, double bound) {
    if (std::is_same_v<T, bfloat16>) bound *= 1000;
    if (!(std::abs(found - expected) <= bound)) {
        std::printf("%s: %g, expected %g\n", what, found, expected);
        std::exit(1);
    }
}

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

// Angles of 0 turn nothing: heads are then copies, and the way back sums those of the shared key.
template <typename T>
static void check_latent_heads(long batch, long time, long heads, long plain, long turned, long value) {
    const long both = plain + turned, of_made = plain + value;
    Owned<T> query({batch, time, heads, both}), made({batch, time, heads, of_made});
    Owned<T> key({batch, time, turned}), queries({batch, time, heads, both});
    Owned<T> keys({batch, time, heads, both}), values({batch, time, heads, value});
    Owned<T> dmade({batch, time, heads, of_made}), dkey({batch, time, turned});
    Owned<Compute<T>> cosine({time, turned / 2}), sine({time, turned / 2});
    for (long i = 0; i < cosine.array.size; ++i) cosine.set(i, 1), sine.set(i, 0);
    for (double interleaved : {0, 1}) {
        run("latent_heads",
            {query.array, made.array, key.array, cosine.array, sine.array, queries.array,
             keys.array},
            {interleaved});
        for (long row = 0; row < batch * time * heads; ++row)
            for (long i = 0; i < both; ++i) {
                close<T>("latent_heads", queries[row * both + i], query[row * both + i], 0);
                const double expected = i < plain ? made[row * of_made + i]
                                                  : key[row / heads * turned + i - plain];
                close<T>("latent_heads", keys[row * both + i], expected, 0);
            }
        run("latent_heads_backward",
            {queries.array, keys.array, values.array, cosine.array, sine.array, queries.array,
             dmade.array, dkey.array},
            {interleaved});
        for (long t = 0; t < batch * time; ++t)
            for (long i = 0; i < turned; ++i) {
                double sum = 0;
                for (long h = 0; h < heads; ++h) sum += keys[(t * heads + h) * both + plain + i];
                close<T>("latent_heads_backward", dkey[t * turned + i], sum, 1e-5);
            }
    }
}

// Against the sum that defines it; of the gradient, that of the values at the first token.
template <typename T>
static void check_lightning(long batch, long time, long heads, long dim, long block) {
    Owned<T> x({batch, time, heads * 3 * dim}), out({batch, time, heads * dim});
    Owned<T> dx({batch, time, heads * 3 * dim});
    Owned<double> slopes({heads});
    for (long h = 0; h < heads; ++h) slopes.set(h, 0.1 * double(h));
    run("lightning_attention", {x.array, slopes.array, out.array}, {double(block)});
    run("lightning_attention_backward", {out.array, x.array, slopes.array, dx.array},
        {double(block)});
    const auto at = [=](long b, long t, long h, long part, long d) {
        return (((b * time + t) * heads + h) * 3 + part) * dim + d;
    };
    for (long b = 0; b < batch; ++b)
        for (long h = 0; h < heads; ++h) {
            std::vector<double> dvalue(dim);
            for (long t = 0; t < time; ++t) {
                std::vector<double> expected(dim);
                for (long s = 0; s <= t; ++s) {
                    double near = 0;
                    for (long d = 0; d < dim; ++d)
                        near += x[at(b, t, h, 0, d)] * x[at(b, s, h, 1, d)];
                    near *= std::exp(-slopes[h] * double(t - s));
                    for (long d = 0; d < dim; ++d) {
                        expected[d] += near * x[at(b, s, h, 2, d)];
                        if (s == 0) dvalue[d] += near * out[((b * time + t) * heads + h) * dim + d];
                    }
                }
                for (long d = 0; d < dim; ++d)
                    close<T>("lightning_attention", out[((b * time + t) * heads + h) * dim + d],
                             expected[d], 1e-3);
            }
            for (long d = 0; d < dim; ++d)
                close<T>("lightning_attention_backward", dx[at(b, 0, h, 2, d)], dvalue[d],
                         1e-5 * (1 + std::abs(dvalue[d])) * double(time * dim));
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
static void check_attention(long time_q, long time_k, long dim, long value_dim, bool causal) {
    const long heads = 4, kv_heads = 2;
    Owned<T> q({2, heads, time_q, dim}), k({2, kv_heads, time_k, dim});
    Owned<T> v({2, kv_heads, time_k, value_dim}), out({2, heads, time_q, value_dim});
    Owned<T> grad({2, heads, time_q, value_dim}), dq({2, heads, time_q, dim});
    Owned<T> dk({2, kv_heads, time_k, dim}), dv({2, kv_heads, time_k, value_dim});
    Owned<Compute<T>> lse({2, heads, time_q}), sinks({heads}), dsinks({2, heads});
    Owned<Compute<T>> bias({2, heads, time_q, time_k}), dbias({2, heads, time_q, time_k});
    const std::vector<Array> inputs{q.array, k.array, v.array, kNone, kNone, kNone, kNone};
    const auto both = [&](std::vector<Array> given, std::vector<Array> wanted,
                          std::vector<double> numbers) {
        given.insert(given.end(), {out.array, lse.array});
        run("attention", given, numbers);
        given.resize(7);
        given.insert(given.end(), {grad.array, out.array, lse.array, dq.array, dk.array, dv.array});
        given.insert(given.end(), wanted.begin(), wanted.end());
        run("attention_backward", given, numbers);
    };
    std::vector<Array> given = inputs;
    for (double right : {-1., 0., 3.}) both(given, {kNone, kNone}, {0.3, 0, 5, right, 1});
    given[4] = sinks.array;
    both(given, {kNone, dsinks.array}, {0.3, 2, -1, causal ? 0. : -1., 1});
    given[3] = bias.array, given[4] = kNone;
    both(given, {dbias.array, kNone}, {0.3, 0, -1, causal ? 0. : -1., 0});
    Array shared = dbias.array;  // one for all heads of all sequences
    shared.strides[0] = shared.strides[1] = 0;
    both(given, {shared, kNone}, {0.3, 0, -1, causal ? 0. : -1., 0});
    Owned<Compute<T>> least({2, heads, time_q, time_k});  // hides every other query's keys, finitely
    for (long i = 0; i < least.array.size; ++i)
        if (i / time_k % 2) least.set(i, -3e38);
    given[3] = least.array, given[4] = sinks.array;
    both(given, {kNone, dsinks.array}, {0.3, 2, -1, causal ? 0. : -1., 0});
    given[3] = bias.array, given[4] = kNone;
    both(given, {kNone, kNone}, {0.3, 0, -1, causal ? 0. : -1., 0});
    const long head = 3, t = time_q - 1;  // one row against plain loops, with the bias
    std::vector<double> weights(time_k);
    double total = 0;
    for (long s = 0; s < time_k; ++s) {
        double score = bias[(head * time_q + t) * time_k + s];
        for (long d = 0; d < dim; ++d)
            score += 0.3 * q[(head * time_q + t) * dim + d] * k[(time_k + s) * dim + d];
        weights[s] = !causal || s <= t ? std::exp(score) : 0;
        total += weights[s];
    }
    for (long d = 0; d < value_dim; ++d) {
        double sum = 0;
        for (long s = 0; s < time_k; ++s)
            sum += weights[s] / total * v[(time_k + s) * value_dim + d];
        close<T>("attention", out[(head * time_q + t) * value_dim + d], sum, 1e-4);
    }
}

// Three sequences, the second without queries.
template <typename T>
static void check_packed_attention(long time_q, long time_k, long dim) {
    Owned<T> q({1, 4, time_q, dim}), k({1, 2, time_k, dim}), v({1, 2, time_k, dim});
    Owned<T> out({1, 4, time_q, dim}), grad({1, 4, time_q, dim});
    Owned<T> dq({1, 4, time_q, dim}), dk({1, 2, time_k, dim}), dv({1, 2, time_k, dim});
    Owned<Compute<T>> lse({1, 4, time_q});
    Owned<long> starts_q({4}), starts_k({4});
    starts_q.memory = {0, 1, 1, time_q};
    starts_k.memory = {0, time_k / 2, time_k - 1, time_k};
    starts_q.array.data = starts_q.memory.data(), starts_k.array.data = starts_k.memory.data();
    const std::vector<double> numbers{0.3, 0, -1, 0, 1};
    run("attention", {q.array, k.array, v.array, kNone, kNone, starts_q.array, starts_k.array,
                      out.array, lse.array},
        numbers);
    run("attention_backward",
        {q.array, k.array, v.array, kNone, kNone, starts_q.array, starts_k.array, grad.array,
         out.array, lse.array, dq.array, dk.array, dv.array, kNone, kNone},
        numbers);
}

// Along the middle dimension, and for the last one what only rows have.
template <typename T>
static void check_softmax(long outer, long columns, long inner) {
    Owned<T> x({outer, columns, inner}, 3), grad({outer, columns, inner});
    Owned<T> out({outer, columns, inner}), dx({outer, columns, inner});
    for (const char* name : {"log_softmax", "softmax"}) {
        run(name, {x.array, out.array}, {1});
        run((std::string(name) + "_backward").c_str(), {grad.array, out.array, dx.array}, {1});
    }
    for (long i = 0; i < outer; ++i)
        for (long k = 0; k < inner; ++k) {
            double sum = 0;
            for (long j = 0; j < columns; ++j) sum += out[(i * columns + j) * inner + k];
            close<T>("softmax", sum, 1, 1e-4);
        }
    if (inner > 1) return;
    Owned<T> totals({outer}), dtotals({outer});
    run("logsumexp", {x.array, totals.array});
    run("logsumexp_backward", {dtotals.array, x.array, totals.array, dx.array});
}

template <typename T>
static void check_norms(long rows, long columns) {
    using C = Compute<T>;
    Owned<T> x({rows, columns}, 3), residual({rows, columns}), sum({rows, columns});
    Owned<T> out({rows, columns}), grad({rows, columns}), dx({rows, columns});
    Owned<C> weight({columns}), bias({columns}), dweight({columns}), dbias({columns});
    Owned<C> mean({rows}), rstd({rows});
    run("layer_norm",
        {x.array, residual.array, kNone, kNone, out.array, sum.array, mean.array, rstd.array},
        {1e-5});
    for (long i = 0; i < rows; ++i) {
        double total = 0;
        for (long j = 0; j < columns; ++j) total += out[i * columns + j];
        close<T>("layer_norm", total / columns, 0, 1e-5);
    }
    run("layer_norm",
        {x.array, kNone, weight.array, bias.array, out.array, kNone, mean.array, rstd.array},
        {1e-5});
    for (const Array& more : {kNone, residual.array})
        run("layer_norm_backward", {grad.array, x.array, weight.array, mean.array, rstd.array, more,
                                    dx.array, dweight.array, dbias.array});
    run("rms_norm", {x.array, kNone, weight.array, kNone, out.array, kNone, kNone, rstd.array},
        {1e-5});
    run("rms_norm_backward", {grad.array, x.array, weight.array, kNone, rstd.array, kNone, dx.array,
                              dweight.array, kNone});
}

template <typename T>
static void check_decoding(long batch, long heads, long dim, long time) {
    const long width = heads * dim, hidden = 2 * width + 1;
    Owned<T> x({batch, width}), out({batch, width}), norm({width}), qkv({3 * width, width}, 0.1);
    Owned<T> qkv_bias({3 * width}), proj({width, width}, 0.1), up({hidden, width}, 0.1);
    Owned<T> up_bias({hidden}), down({width, hidden}, 0.1), zero({width, hidden}, 0);
    Owned<T> keys({batch, heads, time, dim}), values({batch, heads, time, dim});
    const auto decode = [&](const Array& last, const Array& bias) {
        run("decode_blocks",
            {x.array, norm.array, norm.array, qkv.array, qkv_bias.array, proj.array, norm.array,
             norm.array, kNone, up.array, up_bias.array, last, bias, keys.array, values.array,
             kNone, kNone, kNone, out.array},
            {1e-5, 3});
    };
    decode(zero.array, kNone);  // leaves x + W_o attention + b_o
    const std::vector<double> stream = [&] {
        std::vector<double> found;
        for (long i = 0; i < batch * width; ++i) found.push_back(out[i]);
        return found;
    }();
    decode(zero.array, norm.array);
    for (long i = 0; i < batch * width; ++i)
        close<T>("decode_blocks", out[i], stream[i] + norm[i % width], 1e-4);
    decode(down.array, norm.array);
    const std::vector<Array> block{norm.array, kNone, qkv.array, kNone, proj.array, kNone,
                                   norm.array, kNone, up.array, kNone, down.array, kNone,
                                   keys.array, values.array};
    std::vector<Array> two{x.array};
    for (int i = 0; i < 2; ++i) two.insert(two.end(), block.begin(), block.end());
    Owned<T> head({heads * time + 3, width}), logits({batch, heads * time + 3});
    two.insert(two.end(), {norm.array, kNone, head.array, logits.array});
    run("decode_blocks", two, {1e-5, 3});
}

template <typename T>
static void check_elementwise(long rows, long columns) {
    Owned<T> x({rows, columns}, 3), grad({rows, columns}), out({rows, columns}), other({rows, columns});
    for (const char* name : {"exp", "log", "tanh", "sigmoid", "erf"}) run(name, {x.array, out.array});
    for (const char* name : {"silu", "gelu_tanh", "gelu"}) {
        run(name, {x.array, out.array});
        run(name, {grad.array, x.array, out.array});
    }
    run("add", {x.array, grad.array, out.array});
    if constexpr (std::is_same_v<T, float>) {
        Owned<bfloat16> narrow({rows, columns});
        run("cast", {x.array, narrow.array});
        run("cast", {narrow.array, out.array});
        for (long i = 0; i < out.array.size; ++i) close<T>("cast", out[i], x[i], 0.01);
    }
    Owned<T> both({rows, 2 * columns});  // its halves, each with the stride of the whole
    Array gate = both.array, up = both.array;
    gate.shape[1] = up.shape[1] = columns;
    gate.size = up.size = rows * columns;
    up.data = both.memory.data() + columns;
    run("swiglu", {gate, up, out.array});
    run("swiglu", {grad.array, x.array, out.array, gate, up});

    Owned<long> random({6}, 1000);
    Owned<T> ones({rows, columns});
    for (long i = 0; i < ones.array.size; ++i) ones.set(i, 1);
    run("dropout", {ones.array, out.array, random.array}, {0.5});
    for (long i = 0; i < out.array.size; ++i)
        if (out[i] != 0) close<T>("dropout", out[i], 2, 0);

    const long half = columns / 2;
    if (!half) return;
    using C = Compute<T>;
    Owned<T> heads({2, rows, 2 * half}), turned({2, rows, 2 * half});
    Owned<C> cosine({rows, half}), sine({rows, half});
    for (long i = 0; i < cosine.array.size; ++i) {
        cosine.set(i, std::cos(double(i)));
        sine.set(i, std::sin(double(i)));
    }
    for (double interleaved : {0, 1}) {
        run("rope", {heads.array, turned.array, cosine.array, sine.array}, {interleaved, 0});
        run("rope", {turned.array, turned.array, cosine.array, sine.array}, {interleaved, 1});
        for (long i = 0; i < turned.array.size; ++i)
            close<T>("rope", turned[i], heads[i], 1e-5);
    }
}

template <typename T>
static void check_tables(long rows, long columns) {
    using C = Compute<T>;
    Owned<T> x({rows, columns}, 3), dx({rows, columns}), table({7, columns}), sums({7, columns});
    Owned<C> loss({rows}), lse({rows}), scale({rows}), total_loss({1});
    Owned<long> target({rows}), index({rows});
    for (long i = 0; i < rows; ++i) {
        target.set(i, i % 3 ? i % columns : -1);
        index.set(i, i * i % 7);
    }
    run("cross_entropy", {x.array, target.array, loss.array, lse.array, kNone}, {0.1, 0.01, -1, 0});
    run("cross_entropy", {x.array, target.array, loss.array, lse.array, total_loss.array},
        {0.1, 0.01, -1, 1});
    run("cross_entropy_backward",
        {scale.array, x.array, target.array, lse.array, dx.array}, {0.1, 0.01, -1, 1});
    if constexpr (std::is_same_v<T, float>) {
        Owned<bfloat16> narrow({rows, columns});
        run("cross_entropy_backward",
            {total_loss.array, x.array, target.array, lse.array, narrow.array}, {0, 0, -1, 0});
    }
    run("embedding", {table.array, index.array, dx.array});
    run("embedding_backward", {x.array, index.array, sums.array}, {0});
    double total = 0, expected = 0;
    for (long i = 0; i < 7; ++i) total += sums[i * columns];
    for (long i = 0; i < rows; ++i) expected += x[i * columns];
    close<T>("embedding_backward", total, expected, 1e-3);
    run("embedding_backward", {x.array, index.array, sums.array}, {1});
}

template <typename T>
static void check_optimizers(long size) {
    Owned<T> p({size}), g({size}), m({size}), v({size}), other({3}), slope({3}), one({3}), two({3});
    for (long i = 0; i < size; ++i) v.set(i, std::abs(v[i]));
    for (long i = 0; i < 3; ++i) two.set(i, std::abs(two[i]));
    Owned<bfloat16> copy({size});
    Owned<T> row({1});  // the gradient of the last of three rows of one number
    Owned<long> which({1});
    which.set(0, 2);
    const Array into = std::is_same_v<T, float> ? copy.array : kNone;
    std::vector<Array> lists{p.array, other.array, g.array, slope.array, into, kNone, kNone, kNone};
    const auto sweep = [&](const char* name, std::vector<Array> states, std::vector<double> rule) {
        std::vector<Array> arrays = lists;
        arrays.insert(arrays.end(), states.begin(), states.end());
        std::vector<double> numbers{0.5};
        for (int i = 0; i < 2; ++i) numbers.insert(numbers.end(), rule.begin(), rule.end());
        run(name, arrays, numbers);
    };
    for (bool some : {false, true}) {
        if (some) lists[3] = row.array, lists[7] = which.array;
        sweep("adamw", {m.array, one.array, v.array, two.array}, {0.9, 0.99, 1, 0.1, 1, 1e-8});
        sweep("sgd", {}, {0.1, 0.2});
        sweep("sgd_momentum", {m.array, one.array}, {0.1, 0.2, 0.9, 1, 1});
        sweep("lion", {m.array, one.array}, {0.9, 0.99, 1, 0.1});
        sweep("follow", {}, {0.1});
    }
    Owned<double> norm({1});
    run("l2_norm", {p.array, copy.array, norm.array});
}

template <typename T>
static void check_all() {
    for (long m : {1, 3, 8, 9, 37, 100})
        for (long n : {1, 17, 65})
            for (long k : {1, 5, 64, 400}) check_matmul<T>(m, n, k);
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
    check_latent_heads<T>(2, 3, 4, 3, 6, 5);
    check_latent_heads<T>(1, 40, 2, 33, 18, 17);
    if constexpr (!std::is_same_v<T, bfloat16>) {
        check_lightning<T>(1, 1, 1, 1, 1);
        check_lightning<T>(2, 37, 3, 9, 8);
        check_lightning<T>(1, 20, 2, 33, 64);
    }
    for (bool causal : {false, true}) {
        check_attention<T>(1, 1, 1, 1, causal);
        check_attention<T>(37, 37, 16, 24, causal);
        check_attention<T>(5, 130, 33, 7, causal);
        check_attention<T>(150, 150, 8, 8, causal);
    }
    check_packed_attention<T>(5, 9, 16);
    check_packed_attention<T>(70, 130, 24);
    for (long batch : {1, 3, 9}) check_decoding<T>(batch, 2, 17, 21);
    for (long outer : {1, 7, 300})
        for (long columns : {1, 3, 16, 97})
            for (long inner : {1, 5, 70}) check_softmax<T>(outer, columns, inner);
    for (long rows : {1, 7, 300})
        for (long columns : {1, 3, 16, 97}) {
            check_norms<T>(rows, columns);
            check_elementwise<T>(rows, columns);
            check_tables<T>(rows, columns);
        }
}

int main() {
    for (int threads : {1, 3}) {
        set_num_threads(threads);
        check_all<float>();
        check_all<double>();
        check_all<bfloat16>();
        for (long size : {1, 17, 40000}) {
            check_optimizers<float>(size);
            check_optimizers<double>(size);
        }
    }
    Owned<float> x({1000}), sums({3});
    Owned<double> wide_sums({3}), operations({1});
    Owned<bfloat16> narrow_sums({3});
    for (const Array& out : {sums.array, wide_sums.array, narrow_sums.array})
        run("peak_arithmetic", {out, operations.array}, {100});
    run("peak_read", {x.array, sums.array}, {2});
    for (const auto& [name, kernel] : kernels())
        if (!ran.count(name)) {
            std::printf("%s is not run here\n", name.c_str());
            return 1;
        }
    std::printf("fine\n");
}
