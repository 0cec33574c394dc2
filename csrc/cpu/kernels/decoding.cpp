// One new token of each sequence through blocks of a GPT, in one call; of each block
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

// What a token meets in a block, in the order of the arrays.
struct DecodedBlock {
    static constexpr int kArrays = 14;
    const Array &norm_1, &shift_1, &qkv, &qkv_bias, &proj, &proj_bias;
    const Array &norm_2, &shift_2, &up, &up_bias, &down, &down_bias;
    const Array &keys, &values;  // (batch, heads, time, head_dim): the last rows are written here

    explicit DecodedBlock(const Array* a)
        : norm_1(a[0]), shift_1(a[1]), qkv(a[2]), qkv_bias(a[3]), proj(a[4]), proj_bias(a[5]),
          norm_2(a[6]), shift_2(a[7]), up(a[8]), up_bias(a[9]), down(a[10]), down_bias(a[11]),
          keys(a[12]), values(a[13]) {}

    long hidden() const { return up.dim(0); }
    long heads() const { return keys.dim(1); }
    long head_dim() const { return keys.dim(3); }
};

static bool lies(const Array& x, Dtype dtype, long size) {
    return !x || (x.dtype == dtype && x.size == size && x.stride(-1) == 1);
}

static void check(const DecodedBlock& b, const Array& x) {
    const long width = x.dim(-1), hidden = b.hidden();
    const auto vector = [&](const Array& v, long size) { return lies(v, x.dtype, size); };
    const auto projects = [&](const Array& weight, const Array& bias, long from, long to) {
        return weight.ndim == 2 && weight.dtype == x.dtype && weight.dim(0) == to &&
               weight.dim(1) == from && vector(bias, to);
    };
    const auto caches = [&](const Array& c) {
        return c.ndim == 4 && c.dtype == x.dtype && c.dim(0) == x.dim(0) && c.dim(2) > 0 &&
               c.dim(1) * c.dim(3) == width && c.stride(3) == 1;
    };
    require(vector(b.norm_1, width) && vector(b.shift_1, width) && vector(b.norm_2, width) &&
                vector(b.shift_2, width) && projects(b.qkv, b.qkv_bias, width, 3 * width) &&
                projects(b.proj, b.proj_bias, width, width) &&
                projects(b.up, b.up_bias, width, hidden) &&
                projects(b.down, b.down_bias, hidden, width) && caches(b.keys) &&
                caches(b.values) && b.keys.dim(1) == b.values.dim(1) &&
                b.keys.dim(2) == b.values.dim(2),
            "decode_blocks: arrays that do not fit");
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
    const long heads = b.heads(), dim = b.head_dim(), width = heads * dim, time = b.keys.dim(2);
    const Scores<C> s{1,  time,    dim, dim, C(1) / square_root(C(dim)), 0, time - 1, -1,
                      -1, nullptr, {},  {}};
    const auto rows_of = [](const Array& x, long i, long head) {
        return Head<T>{x.as<T>() + i * x.strides[0] + head * x.strides[1], x.strides[2], 1};
    };
    parallel_ranges(b.keys.dim(0) * heads, rows_per_piece(2 * time * dim), [&](long begin, long end) {
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

// What the rows of a block need on their way.
template <typename T>
struct Room {
    T *normed, *qkv, *attended, *stream, *units;
    Compute<T>* means;

    Room(long rows, long width, long hidden)
        : normed(scratch<T>(6, rows * (6 * width + hidden))),
          qkv(normed + rows * width),
          attended(qkv + rows * 3 * width),
          stream(attended + rows * width),
          units(stream + rows * width),
          means(scratch<Compute<T>>(7, 2 * rows)) {}
};

// x, out: (rows, width), which may be the same.
template <typename T>
static void decode(const DecodedBlock& b, const Room<T>& room, long rows, long width, const T* x,
                   T* out, Compute<T> eps, Activation activation) {
    const auto normalise = [&](const T* from, const Array& weight, const Array& bias) {
        norm<T, true>(from, static_cast<const T*>(nullptr), weight.as<const T>(),
                      bias.as<const T>(), room.normed, static_cast<T*>(nullptr), room.means,
                      room.means + rows, rows, width, eps);
    };
    const T* nothing = nullptr;
    normalise(x, b.norm_1, b.shift_1);
    project<T>(rows, room.normed, b.qkv, b.qkv_bias, room.qkv, nothing, Activation::none);
    attend_last<T>(b, room.qkv, room.attended);
    project<T>(rows, room.attended, b.proj, b.proj_bias, room.stream, x, Activation::none);
    normalise(room.stream, b.norm_2, b.shift_2);
    project<T>(rows, room.normed, b.up, b.up_bias, room.units, nothing, activation);
    project<T>(rows, room.units, b.down, b.down_bias, out, room.stream, Activation::none);
}

// x (batch, width); of each block weight and bias, or None, of the first norm, of the projection to
// queries, keys and values, of that of the heads, of the second norm, and of both layers of the
// feed-forward part; its keys, values (batch, heads, time, head_dim), whose last rows are written; at
// the end out, like x; eps, the number of an Activation. All of one dtype.
KERNEL(decode_blocks) {
    constexpr int each = DecodedBlock::kArrays;
    require(num_arrays >= 2 + each && (num_arrays - 2) % each == 0,
            "decode_blocks: expected x, 14 arrays for each block, and out");
    const Array &x = arrays[0], &out = arrays[num_arrays - 1];
    require(x.ndim == 2 && x.size > 0 && lies(x, x.dtype, x.size) && out &&
                lies(out, x.dtype, x.size),
            "decode_blocks: arrays that do not fit");
    long hidden = 0;
    for (int i = 1; i + 1 < num_arrays; i += each) {
        const DecodedBlock block(arrays + i);
        check(block, x);
        hidden = block.hidden() > hidden ? block.hidden() : hidden;
    }
    by_dtype(x, "decode_blocks: expected float32, float64 or bfloat16", [&](auto kind) {
        using T = decltype(kind);
        const Room<T> room(x.dim(0), x.dim(1), hidden);
        for (int i = 1; i + 1 < num_arrays; i += each)
            decode<T>(DecodedBlock(arrays + i), room, x.dim(0), x.dim(1),
                      i == 1 ? x.as<const T>() : out.as<const T>(), out.as<T>(),
                      Compute<T>(numbers[0]), static_cast<Activation>(static_cast<int>(numbers[1])));
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
