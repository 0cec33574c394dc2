// Kernels that go along rows or over all elements, and optimizers.

#include "driver.h"

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
    if constexpr (std::is_same_v<T, C>) {
        const Array &gate = residual.array, &dgate = sum.array;
        for (const Array& scale : {kNone, weight.array}) {
            run("gated_rms_norm", {x.array, gate, scale, out.array, rstd.array}, {1e-5});
            run("gated_rms_norm_backward",
                {grad.array, x.array, gate, scale, rstd.array, dx.array, dgate, dweight.array});
        }
        for (long i = 0; i < columns; ++i) {
            const double s = 1 / (1 + std::exp(-residual[i])), y = x[i] * rstd[0] * weight[i];
            close<T>("gated_rms_norm", out[i], s * y, 1e-5);
            close<T>("gated_rms_norm_backward", sum[i], grad[i] * y * s * (1 - s), 1e-5);
        }
    }
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
        sweep("direction", {m.array, one.array}, {0.95, 1});
        sweep("follow", {}, {0.1});
    }
    Owned<T> wide({5, 37}), tall({70, 33});
    run("newton_schulz", {wide.array, tall.array}, {3.4445, -4.775, 2.0315, 3, 1e-7});
    Owned<double> norm({1});
    run("l2_norm", {p.array, copy.array, norm.array});
}

template <typename T>
static void check_all() {
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

void check_rows() {
    check_all<float>();
    check_all<double>();
    check_all<bfloat16>();
    for (long size : {1, 17, 40000}) {
        check_optimizers<float>(size);
        check_optimizers<double>(size);
    }
}
