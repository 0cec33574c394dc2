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
#include "few_rows.h"
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
    // One of all heads of `of`, the keys or the values: those of a sequence lie beside each other.
    template <typename T>
    Head<T> head(const Array& of, long at) const {
        const long i = at / heads(), head = at % heads();
        return {of.as<T>() + i * of.strides[0] + head * of.strides[1], of.strides[2], 1};
    }
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

// One head of a new token, whose key and value join the others. qkv: (batch, 3 * width).
template <typename T>
static void attend_last(const DecodedBlock& b, long at, const T* qkv, T* out) {
    using C = Compute<T>;
    const long heads = b.heads(), dim = b.head_dim(), width = heads * dim, time = b.keys.dim(2);
    const long i = at / heads, head = at % heads;
    const Scores<C> s{1,  time,    dim, dim, C(1) / square_root(C(dim)), 0, time - 1, -1,
                      -1, nullptr, {},  {}};
    const T* query = qkv + i * 3 * width + head * dim;
    const Head<T> keys = b.head<T>(b.keys, at), values = b.head<T>(b.values, at);
    __builtin_memcpy(keys.at(time - 1, 0), query + width, sizeof(T) * dim);
    __builtin_memcpy(values.at(time - 1, 0), query + 2 * width, sizeof(T) * dim);
    C log_normaliser;
    attend_alone<T>(s, 0, query, {keys.data, keys.row, 1}, {values.data, values.row, 1},
                    out + i * width + head * dim, &log_normaliser);
}

// What the rows of a block need on their way.
template <typename T>
struct Room {
    T *normed, *qkv, *attended, *stream, *units, *last;

    Room(long rows, long width, long hidden)
        : normed(scratch<T>(6, rows * (7 * width + hidden))),
          qkv(normed + rows * width),
          attended(qkv + rows * 3 * width),
          stream(attended + rows * width),
          units(stream + rows * width),
          last(units + rows * hidden) {}
};

template <typename T>
static void normalise(long rows, long width, const T* from, const Array& weight, const Array& bias,
                      T* to, Compute<T> eps) {
    Compute<T>* means = scratch<Compute<T>>(7, 2 * rows);
    norm<T, true>(from, static_cast<const T*>(nullptr), weight.as<const T>(), bias.as<const T>(),
                  to, static_cast<T*>(nullptr), means, means + rows, rows, width, eps);
}

// All that happens to a token, in steps: of each block the projection to queries, keys and values,
// attention, the projection of the heads, and the layers of the feed-forward part; then the head.
template <typename T>
struct Path {
    static constexpr long kSteps = 5;  // of a block

    // f(x weightᵀ + bias) + residual; x: the rows of `from`, normalised if there is a norm.
    struct Projection {
        const Array &weight, &bias, &norm, &shift;
        const T *from, *residual;
        T* to;
        Activation activation;
    };

    const Array *x, *blocks, *norm, *out;  // norm: and bias, and the head's weight
    long rows, width, num_blocks;
    Compute<T> eps;
    Activation activation;
    Room<T> room;

    const Array& head() const { return norm[2]; }
    long steps() const { return kSteps * num_blocks + (head() ? 1 : 0); }
    DecodedBlock block(long step) const {
        return DecodedBlock(blocks + step / kSteps * DecodedBlock::kArrays);
    }
    bool attends(long step) const { return step < kSteps * num_blocks && step % kSteps == 1; }
    T* after_blocks() const { return head() ? room.last : out->as<T>(); }

    Projection projection(long step) const {
        T* stream = after_blocks();
        if (step == kSteps * num_blocks)
            return {head(),  kNone,   norm[0],        norm[1],
                    stream, nullptr, out->as<T>(), Activation::none};
        const T* before = step < kSteps ? x->as<const T>() : stream;
        const DecodedBlock b = block(step);
        switch (step % kSteps) {
            case 0:
                return {b.qkv, b.qkv_bias, b.norm_1, b.shift_1, before, nullptr, room.qkv,
                        Activation::none};
            case 2:
                return {b.proj, b.proj_bias, kNone, kNone, room.attended, before, room.stream,
                        Activation::none};
            case 3:
                return {b.up, b.up_bias, b.norm_2, b.shift_2, room.stream, nullptr, room.units,
                        activation};
            default:
                return {b.down, b.down_bias, kNone, kNone, room.units, room.stream, stream,
                        Activation::none};
        }
    }

    void run() const {
        for (long i = 0; i < steps(); ++i) {
            if (attends(i)) {
                const DecodedBlock b = block(i);
                parallel_ranges(rows * b.heads(), rows_per_piece(2 * b.keys.dim(2) * b.head_dim()),
                                [&](long begin, long end) {
                    for (; begin < end; ++begin) attend_last<T>(b, begin, room.qkv, room.attended);
                });
                continue;
            }
            const Projection p = projection(i);
            if (p.norm) normalise(rows, width, p.from, p.norm, p.shift, room.normed, eps);
            const long n = p.weight.dim(0), k = p.weight.dim(1);
            product<T, T>(rows, n, k, {p.norm ? room.normed : p.from, k, 1},
                          {p.weight.template as<const T>(), p.weight.stride(1), p.weight.stride(0)},
                          {p.to, n, 1}, epilogue(p));
        }
        finish_blocks();
    }

    // The norm after the blocks, if nothing follows.
    void finish_blocks() const {
        if (!head() && norm[0])
            normalise(rows, width, out->as<const T>(), norm[0], norm[1], out->as<T>(), eps);
    }

    Epilogue<T, Compute<T>> epilogue(const Projection& p) const {
        Epilogue<T, Compute<T>> epilogue;
        epilogue.bias = p.bias.template as<const T>();
        if (p.residual) epilogue.residual = {p.residual, width, 1};
        epilogue.activation = p.activation;
        return epilogue;
    }

    static constexpr Array kNone{nullptr, Dtype::none, 0, 0, {}, {}};
};

// The same of few rows, where memory decides and may not pause: a thread that waits for the others
// to end a step fetches what it reads in the next one. Each thread normalises for itself.
template <typename T>
struct WithoutPause {
    static constexpr long kTurn = 512, kLine = 64;  // bytes

    const Path<T>& path;

    Shrinking pieces(long step) const {
        const Array& weight = path.projection(step).weight;
        return pieces_of_columns<T>(weight.dim(0), weight.dim(1));
    }

    void run() const {
        const long count = path.steps();
        long* number = scratch<long>(5, count);
        for (long i = 0; i < count; ++i)
            number[i] = path.attends(i) ? path.rows * path.block(i).heads() : pieces(i).pieces();
        const Steps steps{count, number,
                          [](void* self, Piece piece, bool first) {
                              static_cast<const WithoutPause*>(self)->compute(piece, first);
                          },
                          [](void* self, Piece piece, long turn) {
                              return static_cast<const WithoutPause*>(self)->fetch(piece, turn);
                          }};
        parallel_steps(steps, const_cast<WithoutPause*>(this));
        path.finish_blocks();
    }

    void compute(Piece piece, bool first) const {
        if (path.attends(piece.step))
            return attend_last<T>(path.block(piece.step), piece.number, path.room.qkv,
                                  path.room.attended);
        const auto p = path.projection(piece.step);
        const long n = p.weight.dim(0), k = p.weight.dim(1);
        const T* from = p.from;
        if (p.norm) {
            T* normed = scratch<T>(1, path.rows * k);
            if (first) normalise(path.rows, k, from, p.norm, p.shift, normed, path.eps);
            from = normed;
        }
        dot_columns<T, T>(pieces(piece.step).piece(piece.number), path.rows, k, {from, k, 1},
                          {p.weight.template as<const T>(), 1, k}, {p.to, n, 1}, path.epilogue(p));
    }

    // The turn's part of what a piece reads; whether there was one.
    bool fetch(Piece piece, long turn) const {
        if (path.attends(piece.step)) {
            const DecodedBlock b = path.block(piece.step);
            const Head<T> keys = b.head<T>(b.keys, piece.number);
            const Head<T> values = b.head<T>(b.values, piece.number);
            for (const T* from : {keys.at(turn, 0), values.at(turn, 0)})
                fetch_ahead(from, b.head_dim());
            return turn + 1 < b.keys.dim(2);
        }
        const Array& weight = path.projection(piece.step).weight;
        constexpr long together = places_of<T>(1), part = kTurn / sizeof(T);
        const long k = weight.dim(1);
        const Places places(pieces(piece.step).piece(piece.number), together,
                            Lanes<Compute<T>>::count);
        const long place = turn % together, at = turn / together * part;
        if (places.first(place) < places.end)
            fetch_ahead(weight.as<const T>() + places.first(place) * k + at, part);
        return at + part < places.apart * k;
    }
};

static bool lie_as_read(const Array* blocks, int num_blocks, const Array& head) {
    const auto lies = [](const Array& weight) {
        return weight.stride(1) == 1 && weight.stride(0) == weight.dim(1);
    };
    for (int i = 0; i < num_blocks; ++i) {
        const DecodedBlock b(blocks + i * DecodedBlock::kArrays);
        if (!lies(b.qkv) || !lies(b.proj) || !lies(b.up) || !lies(b.down)) return false;
    }
    return !head || lies(head);
}

// x (batch, width); of each block weight and bias, or None, of the first norm, of the projection to
// queries, keys and values, of that of the heads, of the second norm, and of both layers of the
// feed-forward part; its keys, values (batch, heads, time, head_dim), whose last rows are written; at
// the end weight and bias of a norm, the weight of a head (vocabulary, width), each of which may be
// None, and out: (batch, vocabulary), or like x. eps, the number of an Activation. All of one dtype.
KERNEL(decode_blocks) {
    constexpr int each = DecodedBlock::kArrays, others = 5;
    require(num_arrays >= others + each && (num_arrays - others) % each == 0,
            "decode_blocks: expected x, 14 arrays for each block, a norm, a head and out");
    const int num_blocks = (num_arrays - others) / each;
    const Array &x = arrays[0], &out = arrays[num_arrays - 1];
    const Array* norm = arrays + num_arrays - 4;
    const Array& head = norm[2];
    const long width = x.dim(-1);
    require(x.ndim == 2 && x.size > 0 && lies(x, x.dtype, x.size) && out && out.ndim == 2 &&
                lies(norm[0], x.dtype, width) && lies(norm[1], x.dtype, width) &&
                (norm[0] || !norm[1]) &&
                (!head || (head.ndim == 2 && head.dtype == x.dtype && head.dim(1) == width)) &&
                lies(out, x.dtype, x.dim(0) * (head ? head.dim(0) : width)),
            "decode_blocks: arrays that do not fit");
    long hidden = 0;
    for (int i = 0; i < num_blocks; ++i) {
        const DecodedBlock block(arrays + 1 + i * each);
        check(block, x);
        hidden = block.hidden() > hidden ? block.hidden() : hidden;
    }
    by_dtype(x, "decode_blocks: expected float32, float64 or bfloat16", [&](auto kind) {
        using T = decltype(kind);
        const Path<T> path{&x, arrays + 1, norm, &out, x.dim(0), width, num_blocks,
                           Compute<T>(numbers[0]),
                           static_cast<Activation>(static_cast<int>(numbers[1])),
                           Room<T>(x.dim(0), width, hidden)};
        if (path.rows <= kFewRows && lie_as_read(arrays + 1, num_blocks, head))
            WithoutPause<T>{path}.run();
        else
            path.run();
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
