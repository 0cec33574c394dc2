// One new token of each sequence through a block of a GPT, in one call:
//
//     y = x + W_o attention(layer_norm(x)) + b_o
//     out = y + W_2 f(W_1 layer_norm(y) + b_1) + b_2
//
// Every weight is read once for a token, and reading them is all the time that there has to be. But
// whatever Python does between two products has to be fetched into the caches again, past which the
// weights have streamed, and takes several times as long as it does in a loop of its own. Here
// there is nothing between.

#include "attention.h"
#include "dispatch.h"
#include "norms.h"

namespace minitorch::MT_INSTRUCTION_SET {

// What a token of each sequence reads and writes; the order of the arrays.
struct DecodedBlock {
    const Array& x;
    const Array &norm_1, &shift_1, &qkv, &qkv_bias, &proj, &proj_bias;
    const Array &norm_2, &shift_2, &up, &up_bias, &down, &down_bias;
    const Array &keys, &values;  // (batch, heads, time, head_dim): the last rows are written here
    const Array& out;

    long batch() const { return x.dim(0); }
    long width() const { return x.dim(-1); }
    long hidden() const { return up.dim(0); }
    long heads() const { return keys.dim(1); }
    long head_dim() const { return keys.dim(3); }
};

static DecodedBlock block_of(const Array* a) {
    return {a[0], a[1], a[2],  a[3],  a[4],  a[5],  a[6],  a[7],
            a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]};
}

static void check(const DecodedBlock& b) {
    const long width = b.width(), hidden = b.hidden();
    const auto lies = [&](const Array& x, long size) {
        return !x || (x.dtype == b.x.dtype && x.size == size && x.stride(-1) == 1);
    };
    const auto projects = [&](const Array& weight, const Array& bias, long from, long to) {
        return weight.ndim == 2 && weight.dtype == b.x.dtype && weight.dim(0) == to &&
               weight.dim(1) == from && lies(bias, to);
    };
    const auto caches = [&](const Array& x) {
        return x.ndim == 4 && x.dtype == b.x.dtype && x.dim(0) == b.batch() && x.dim(2) > 0 &&
               x.dim(1) * x.dim(3) == width && x.stride(3) == 1;
    };
    require(b.x.ndim == 2 && b.x.size > 0 && lies(b.x, b.x.size) && lies(b.out, b.x.size) &&
                lies(b.norm_1, width) && lies(b.shift_1, width) && lies(b.norm_2, width) &&
                lies(b.shift_2, width) && projects(b.qkv, b.qkv_bias, width, 3 * width) &&
                projects(b.proj, b.proj_bias, width, width) &&
                projects(b.up, b.up_bias, width, hidden) &&
                projects(b.down, b.down_bias, hidden, width) && caches(b.keys) && caches(b.values),
            "decode_block: arrays that do not fit");
}

// f(x weightᵀ + bias) + residual, of rows without gaps.
template <typename T>
static void project(long rows, const T* x, const Array& weight, const Array& bias, T* out,
                    const T* residual, Activation activation) {
    const long n = weight.dim(0), k = weight.dim(1);
    Epilogue<T, Compute<T>> epilogue;
    epilogue.bias = bias.as<const T>();
    if (residual) epilogue.residual = {residual, n, 1};
    epilogue.activation = activation;
    const Matrix<const T> b{weight.as<const T>(), weight.stride(1), weight.stride(0)};
    product<T, T>(rows, n, k, {x, k, 1}, b, {out, n, 1}, epilogue);
}

// The heads of the new tokens, whose keys and values join the others. qkv: (batch, 3 * width).
template <typename T>
static void attend_last(const DecodedBlock& b, const T* qkv, T* out) {
    using C = Compute<T>;
    const long heads = b.heads(), dim = b.head_dim(), width = b.width(), time = b.keys.dim(2);
    const Scores<C> s{1,  time,    dim, dim, C(1) / square_root(C(dim)), 0, time - 1, -1,
                      -1, nullptr, {},  {}};
    const auto rows_of = [](const Array& x, long i, long head) {
        return Head<T>{x.as<T>() + i * x.strides[0] + head * x.strides[1], x.strides[2], 1};
    };
    parallel_ranges(b.batch() * heads, rows_per_piece(2 * time * dim), [&](long begin, long end) {
        for (long at = begin; at < end; ++at) {
            const long i = at / heads, head = at % heads;
            const T* query = qkv + i * 3 * width + head * dim;
            const Head<T> keys = rows_of(b.keys, i, head), values = rows_of(b.values, i, head);
            __builtin_memcpy(keys.at(time - 1, 0), query + width, sizeof(T) * dim);
            __builtin_memcpy(values.at(time - 1, 0), query + 2 * width, sizeof(T) * dim);
            C log_normaliser;
            attend_alone<T>(s, 0, query, {keys.data, keys.row, 1}, {values.data, values.row, 1},
                            out + i * width + head * dim, &log_normaliser);
        }
    });
}

template <typename T>
static void decode(const DecodedBlock& b, Compute<T> eps, Activation activation) {
    using C = Compute<T>;
    const long rows = b.batch(), width = b.width();
    T* normed = scratch<T>(6, rows * (6 * width + b.hidden()));
    T* qkv = normed + rows * width;
    T* attended = qkv + rows * 3 * width;
    T* stream = attended + rows * width;
    T* units = stream + rows * width;
    C* means = scratch<C>(7, 2 * rows);
    const auto normalise = [&](const T* x, const Array& weight, const Array& bias) {
        norm<T, true>(x, static_cast<const T*>(nullptr), weight.as<const T>(), bias.as<const T>(),
                      normed, static_cast<T*>(nullptr), means, means + rows, rows, width, eps);
    };
    const T* x = b.x.as<const T>();
    const T* nothing = nullptr;
    normalise(x, b.norm_1, b.shift_1);
    project<T>(rows, normed, b.qkv, b.qkv_bias, qkv, nothing, Activation::none);
    attend_last<T>(b, qkv, attended);
    project<T>(rows, attended, b.proj, b.proj_bias, stream, x, Activation::none);
    normalise(stream, b.norm_2, b.shift_2);
    project<T>(rows, normed, b.up, b.up_bias, units, nothing, activation);
    project<T>(rows, units, b.down, b.down_bias, b.out.as<T>(), stream, Activation::none);
}

// x (batch, width); weight and bias, or None, of the first norm, of the projection to queries, keys
// and values, of that of the heads, of the second norm, and of both layers of the feed-forward
// part; keys, values (batch, heads, time, head_dim), whose last rows are written; out, like x; eps,
// the number of an Activation. All of one dtype.
KERNEL(decode_block) {
    require(num_arrays == 16, "decode_block: expected 16 arrays");
    const DecodedBlock block = block_of(arrays);
    check(block);
    by_dtype(block.x, "decode_block: expected float32, float64 or bfloat16", [&](auto kind) {
        using T = decltype(kind);
        decode<T>(block, Compute<T>(numbers[0]),
                  static_cast<Activation>(static_cast<int>(numbers[1])));
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
