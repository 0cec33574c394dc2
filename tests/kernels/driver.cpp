// Runs every compiled kernel without Python, on odd sizes and with threads, for what only compilers
// can check: sanitizers, and processors that are not here (under an emulator). The numbers are held
// against the references in Python; here matmul, softmax and attention are held against plain loops.
//
//     g++ -std=c++20 -O1 -g -fsanitize=address,undefined -DMT_INSTRUCTION_SET=portable
//         -DMT_VECTOR_BYTES=16 -I csrc/cpu tests/kernels/driver.cpp -pthread

#include "kernels/activations.cpp"
#include "kernels/attention.cpp"
#include "kernels/cross_entropy.cpp"
#include "kernels/elementwise.cpp"
#include "kernels/matmul.cpp"
#include "kernels/norms.cpp"
#include "kernels/optimizers.cpp"
#include "kernels/peaks.cpp"
#include "kernels/softmax.cpp"
#include "threads.cpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>

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

// An array that owns its memory, exactly as much as it has elements, so that a sanitizer sees a
// read or a write beside it.
template <typename T>
struct Owned {
    std::vector<T> memory;
    Array array{};

    Owned(std::initializer_list<long> shape, double scale = 1) {
        array.ndim = static_cast<int>(shape.size());
        array.size = 1;
        std::copy(shape.begin(), shape.end(), array.shape);
        for (int i = array.ndim - 1; i >= 0; --i) {
            array.strides[i] = array.size;
            array.size *= array.shape[i];
        }
        memory.resize(array.size);
        for (T& x : memory) x = static_cast<T>(scale * (std::rand() % 2001 - 1000) / 1000.0);
        array.data = memory.data();
        array.dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
        if (!std::is_floating_point_v<T>) array.dtype = Dtype::int64;
    }
    T& operator[](long i) { return memory[i]; }
};

static const Array kNone{nullptr, Dtype::none, 0, 0, {}, {}};

static void run(const char* name, std::vector<Array> arrays, std::vector<double> numbers = {}) {
    numbers.push_back(0);
    kernels().at(name)(arrays.data(), static_cast<int>(arrays.size()), numbers.data());
}

static void close(const char* what, double found, double expected, double bound) {
    if (!(std::abs(found - expected) <= bound)) {
        std::printf("%s: %g, expected %g\n", what, found, expected);
        std::exit(1);
    }
}

template <typename T>
static void check_matmul(long m, long n, long k) {
    Owned<T> a({m, k}), b({n, k}), out({m, n}), bias({n}), rest({m, n}), sums({m});
    Array turned = b.array;  // (n, k) seen as (k, n)
    std::swap(turned.shape[0], turned.shape[1]);
    std::swap(turned.strides[0], turned.strides[1]);
    run("matmul", {a.array, turned, out.array, bias.array, rest.array, sums.array}, {0.5, 0});
    for (long i = 0; i < m; ++i)
        for (long j = 0; j < n; ++j) {
            double sum = 0;
            for (long p = 0; p < k; ++p) sum += double(a[i * k + p]) * b[j * k + p];
            close("matmul", out[i * n + j], 0.5 * sum + bias[j] + rest[i * n + j], 1e-3);
        }
    run("matmul", {a.array, turned, out.array, kNone, kNone, kNone}, {1, 1});
}

template <typename T>
static void check_attention(long time_q, long time_k, long dim, long value_dim, bool causal) {
    const long heads = 4, kv_heads = 2;
    Owned<T> q({2, heads, time_q, dim}), k({2, kv_heads, time_k, dim});
    Owned<T> v({2, kv_heads, time_k, value_dim}), out({2, heads, time_q, value_dim});
    Owned<T> lse({2, heads, time_q}), grad({2, heads, time_q, value_dim});
    Owned<T> dq({2, heads, time_q, dim}), dk({2, kv_heads, time_k, dim});
    Owned<T> dv({2, kv_heads, time_k, value_dim}), bias({2, heads, time_q, time_k});
    Owned<T> dbias({2, heads, time_q, time_k}), sinks({heads}), dsinks({2, heads});
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
    for (double right : {-1., 0., 3.})
        both(given, {kNone, kNone}, {0.3, 0, 5, right, 1});
    given[4] = sinks.array;
    both(given, {kNone, dsinks.array}, {0.3, 2, -1, causal ? 0. : -1., 1});
    given[3] = bias.array, given[4] = kNone;
    both(given, {dbias.array, kNone}, {0.3, 0, -1, causal ? 0. : -1., 0});
    Array shared = dbias.array;  // one for all heads of all sequences
    shared.strides[0] = shared.strides[1] = 0;
    both(given, {shared, kNone}, {0.3, 0, -1, causal ? 0. : -1., 0});
    const long head = 3, t = time_q - 1;  // one row against plain loops, with the bias
    const T* query = &q[(head * time_q + t) * dim];
    std::vector<double> weights(time_k);
    double total = 0;
    for (long s = 0; s < time_k; ++s) {
        double score = bias[(head * time_q + t) * time_k + s];
        for (long d = 0; d < dim; ++d) score += 0.3 * query[d] * k[(time_k + s) * dim + d];
        weights[s] = !causal || s <= t ? std::exp(score) : 0;
        total += weights[s];
    }
    for (long d = 0; d < value_dim; ++d) {
        double sum = 0;
        for (long s = 0; s < time_k; ++s)
            sum += weights[s] / total * v[(time_k + s) * value_dim + d];
        close("attention", out[(head * time_q + t) * value_dim + d], sum, 1e-4);
    }
}

// Three sequences, the second without queries.
static void check_packed_attention(long time_q, long time_k, long dim) {
    Owned<float> q({1, 4, time_q, dim}), k({1, 2, time_k, dim}), v({1, 2, time_k, dim});
    Owned<float> out({1, 4, time_q, dim}), lse({1, 4, time_q}), grad({1, 4, time_q, dim});
    Owned<float> dq({1, 4, time_q, dim}), dk({1, 2, time_k, dim}), dv({1, 2, time_k, dim});
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

template <typename T>
static void check_rows(long rows, long columns) {
    Owned<T> x({rows, columns}, 3), grad({rows, columns}), out({rows, columns}), dx({rows, columns});
    Owned<T> weight({columns}), bias({columns}), dweight({columns}), dbias({columns});
    Owned<T> mean({rows}), rstd({rows}), loss({rows});
    Owned<long> target({rows});
    for (long i = 0; i < rows; ++i) target[i] = i % 3 ? i % columns : -1;
    run("softmax", {x.array, out.array}, {1});
    for (long i = 0; i < rows; ++i) {
        double sum = 0;
        for (long j = 0; j < columns; ++j) sum += out[i * columns + j];
        close("softmax", sum, 1, 1e-4);
    }
    run("softmax_backward", {grad.array, out.array, dx.array}, {1});
    run("layer_norm", {x.array, weight.array, bias.array, out.array, mean.array, rstd.array},
        {1e-5});
    run("layer_norm_backward", {grad.array, x.array, weight.array, mean.array, rstd.array, dx.array,
                                dweight.array, dbias.array});
    run("rms_norm", {x.array, weight.array, kNone, out.array, kNone, rstd.array}, {1e-5});
    run("rms_norm_backward",
        {grad.array, x.array, weight.array, kNone, rstd.array, dx.array, dweight.array, kNone});
    for (const char* name : {"silu", "gelu_tanh"}) {
        run(name, {x.array, out.array});
        run(name, {grad.array, x.array, out.array});
    }
    run("add", {x.array, grad.array, out.array});
    run("cross_entropy", {x.array, target.array, loss.array, rstd.array}, {0.1});
    run("cross_entropy_backward", {loss.array, x.array, target.array, rstd.array, dx.array}, {0.1});
    Owned<double> norm({1});
    run("l2_norm", {x.array, weight.array, norm.array});
    Owned<T> m({rows, columns}), v({rows, columns});
    for (T& y : v.memory) y = std::abs(y);
    run("adamw", {x.array, grad.array, m.array, v.array}, {1, 0.9, 0.99, 1, 0.1, 1, 1e-8});
}

int main() {
    for (int threads : {1, 3}) {
        set_num_threads(threads);
        for (long m : {1, 3, 8, 9, 37, 100})
            for (long n : {1, 17, 65})
                for (long k : {1, 5, 64, 400}) {
                    check_matmul<float>(m, n, k);
                    check_matmul<double>(m, n, k);
                }
        for (bool causal : {false, true}) {
            check_attention<float>(1, 1, 1, 1, causal);
            check_attention<float>(37, 37, 16, 24, causal);
            check_attention<double>(5, 130, 33, 7, causal);
            check_attention<double>(150, 150, 8, 8, causal);
        }
        check_packed_attention(5, 9, 16);
        check_packed_attention(70, 130, 24);
        for (long rows : {1, 7, 300})
            for (long columns : {3, 16, 97}) {
                check_rows<float>(rows, columns);
                check_rows<double>(rows, columns);
            }
    }
    std::printf("fine\n");
}
