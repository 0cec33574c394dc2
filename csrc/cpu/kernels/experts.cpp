// Mixture of experts: all that happens between the tokens and their sum over the experts,
//
//     out_t = Σ_j w_tj W_down h(x_t) + v_t U_down h'(x_t)
//     h(x) = silu(gate) ⊙ up,   (gate, up) = W_gate_up x,   h' likewise,   v_t = s(<scale, x_t>)
//
// with the matrices W of expert e_tj, and those of the shared expert, U, which sees all tokens; s
// is the logistic function. Some rows of one expert at a time are gathered, go through both
// products while they are in a near cache, and are summed by token in the end. The shared expert's
// rows are the tokens themselves.

#include "activations.h"
#include "dispatch.h"
#include "groups.h"
#include "matmul.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "moe_swiglu: expected float32, float64 or bfloat16";
constexpr char kMisfit[] = "moe_swiglu: arrays that do not fit";

// Rows of an expert that are computed together, at most: enough for packing the weights to pay.
constexpr long kBlockRows = 256;

// Rows lie where no processor would look next, or have long left the near caches: each is asked for
// so many rows before its turn.
constexpr long kAhead = 4;
template <typename T>
static void fetch(const T* row, long count) {
    constexpr long line = 64 / sizeof(T);
    for (long i = 0; i < count; i += line) __builtin_prefetch(row + i);
}

// take(block) for the rows of an expert, cut into blocks of one size, give or take a row.
template <typename F>
static void in_blocks(Block rows, F take) {
    const long parts = ceil_div(rows.rows(), kBlockRows);
    for (long i = 0; i < parts; ++i)
        take(Block{rows.group, rows.begin + rows.rows() * i / parts,
                   rows.begin + rows.rows() * (i + 1) / parts});
}

// The matrices of one expert: gate and up (hidden, width), down (width, hidden).
template <typename T>
struct Gated {
    const T *gate, *up, *down;
    long width, hidden;

    // Whether gate and up are one matrix.
    bool together() const { return up == gate + hidden * width; }

    // both (rows, 2 hidden): gate and up of x (rows, width).
    void enter(const T* x, long rows, T* both) const {
        const auto multiply = [&](const T* matrix, long columns, T* out) {
            product<T, T>(rows, columns, width, {x, width, 1}, {matrix, 1, width},
                          {out, 2 * hidden, 1}, {});
        };
        if (together()) return multiply(gate, 2 * hidden, both);
        multiply(gate, hidden, both);
        multiply(up, hidden, both + hidden);
    }
    // out (rows, width), of units (rows, hidden).
    void leave(const T* units, long rows, T* out) const {
        product<T, T>(rows, width, hidden, {units, hidden, 1}, {down, 1, hidden}, {out, width, 1},
                      {});
    }
    // The gradient of units, from that of out.
    void back_to_units(const T* grad, long rows, T* dunits) const {
        product<T, T>(rows, hidden, width, {grad, width, 1}, {down, hidden, 1}, {dunits, hidden, 1},
                      {});
    }
    // The gradient of x, from that of both.
    void back_to_input(const T* dboth, long rows, T* dx) const {
        const auto multiply = [&](const T* from, const T* matrix, long columns, bool accumulate) {
            product<T, T>(rows, width, columns, {from, 2 * hidden, 1}, {matrix, width, 1},
                          {dx, width, 1}, {1, accumulate});
        };
        if (together()) return multiply(dboth, gate, 2 * hidden, false);
        multiply(dboth, gate, hidden, false);
        multiply(dboth + hidden, up, hidden, true);
    }
};

// What is given: x (tokens, width), weights (tokens, k) or none, gate_up (experts, 2 hidden,
// width), down (experts, width, hidden), places (tokens, k), ends (experts,); of the shared expert
// gate and up (its hidden, width), down (width, its hidden) and scale (1, width), or none. All are
// contiguous.
template <typename T>
struct Experts {
    const Array &places, &ends;
    long tokens, k, width, hidden;
    const T *x, *weights, *gate_up, *down;
    Gated<T> shared;  // without matrices there is none
    const T* scale;

    static constexpr int kInputs = 10;

    explicit Experts(const Array* inputs)
        : places(inputs[4]),
          ends(inputs[5]),
          tokens(inputs[0].shape[0]),
          k(places.shape[1]),
          width(inputs[0].shape[1]),
          hidden(inputs[3].shape[2]),
          x(inputs[0].as<T>()),
          weights(inputs[1].as<T>()),
          gate_up(inputs[2].as<T>()),
          down(inputs[3].as<T>()),
          shared{inputs[6].as<T>(), inputs[7].as<T>(), inputs[8].as<T>(), width,
                 inputs[6] ? inputs[6].shape[0] : 0},
          scale(inputs[9].as<T>()) {
        const auto fits = [&](int i, long size) { return !inputs[i] || inputs[i].size == size; };
        require(inputs[0].ndim == 2 && places.ndim == 2 && inputs[2].ndim == 3 &&
                    inputs[3].ndim == 3 && places.dtype == Dtype::int64 &&
                    places.shape[0] == tokens && inputs[2].shape[0] == ends.size &&
                    inputs[2].shape[1] == 2 * hidden && inputs[2].shape[2] == width &&
                    inputs[3].shape[0] == ends.size && inputs[3].shape[1] == width &&
                    fits(1, places.size) && !shared.gate == !shared.up &&
                    !shared.gate == !shared.down && (shared.gate || !scale) &&
                    fits(6, shared.hidden * width) && fits(7, shared.hidden * width) &&
                    fits(8, shared.hidden * width) && fits(9, width),
                kMisfit);
        for (int i = 0; i < kInputs; ++i)
            require(i == 4 || i == 5 || !inputs[i] || inputs[i].dtype == inputs[0].dtype, kMisfit);
        check_ends(ends, places.size);
        join_shared();
    }

    // Gate and up of the shared expert as one matrix, as the others have them, so that its rows are
    // packed once for both. For a few tokens the copy would take longer than that.
    void join_shared() {
        if (!shared.gate || shared.together() || tokens < kBlockRows / 2) return;
        const long size = shared.hidden * width;
        T* both = scratch<T>(8, 2 * size);
        parallel_ranges(size, rows_per_piece(2), [&](long begin, long end) {
            __builtin_memcpy(both + begin, shared.gate + begin, sizeof(T) * (end - begin));
            __builtin_memcpy(both + size + begin, shared.up + begin, sizeof(T) * (end - begin));
        });
        shared.gate = both, shared.up = both + size;
    }

    long rows() const { return places.size; }

    // The shared expert's number is that of the others.
    bool is_shared(Block block) const { return block.group == ends.size; }
    Gated<T> expert(Block block) const {
        if (is_shared(block)) return shared;
        const T* gate = gate_up + block.group * 2 * hidden * width;
        return {gate, gate + hidden * width, down + block.group * width * hidden, width, hidden};
    }

    // Whether a thread may take whole experts: none has more rows than a thread's share of all.
    bool shared_evenly() const { return largest_group(ends) * num_threads() <= rows(); }

    // In scratch memory, the blocks of the shared expert, which are the largest, and those of all
    // experts, if they are wanted; returns how many there are.
    long blocks(bool of_all, Block*& blocks) const {
        const auto each = [&](auto take) {
            if (shared.gate) in_blocks({ends.size, 0, tokens}, take);
            for (long e = 0; of_all && e < ends.size; ++e) in_blocks(rows_of(ends, e), take);
        };
        long count = 0;
        each([&](Block) { ++count; });
        blocks = scratch<Block>(3, count);
        long next = 0;
        each([&](Block block) { blocks[next++] = block; });
        return count;
    }

    // (rows,): which of the choices, token k + choice, stands in each row.
    long* choices() const {
        long* choice = scratch<long>(4, rows());
        for (long row = 0; row < rows(); ++row) choice[row] = -1;
        for (long i = 0; i < rows(); ++i) {
            const long row = places.as<int64_t>()[i];
            require(0 <= row && row < rows() && choice[row] < 0,
                    "moe_swiglu: places have to be a permutation");
            choice[row] = i;
        }
        return choice;
    }

    // The rows of a block out of `from` (tokens, width): copied to `to`, or where the tokens lie.
    const T* gather(const T* from, const long* choice, Block block, T* to) const {
        if (is_shared(block)) return from + block.begin * width;
        for (long row = block.begin; row < block.end; ++row, to += width) {
            if (row + kAhead < block.end) fetch(from + choice[row + kAhead] / k * width, width);
            __builtin_memcpy(to, from + choice[row] / k * width, sizeof(T) * width);
        }
        return to - block.rows() * width;
    }

    // Where the rows of a block begin, in an array of all experts' and then all tokens'.
    long row_of(Block block) const { return block.begin + (is_shared(block) ? rows() : 0); }

    // The tokens that are summed at once.
    long tokens_of_piece() const { return rows_per_piece(k * width); }
    long pieces() const { return ceil_div(tokens, tokens_of_piece()); }

    // out[t] = Σ_j weights[t, j] rows[places[t, j]] of the tokens of a piece, and the shared
    // expert's row + more(t, get), of which v_t is given; weights null: 1.
    template <typename F>
    void sum_by_token(long piece, const T* rows, const T* weights, T* out, F shared_row) const {
        using C = Compute<T>;
        const int64_t* place = places.as<int64_t>();
        const long begin = piece * tokens_of_piece(), end = begin + tokens_of_piece();
        for (long t = begin; t < end && t < tokens; ++t)
            for_each_vector<C>(width, [&](long, auto get, auto put) {
                Vector<C> sum{};
                for (long i = t * k; i < (t + 1) * k; ++i)
                    sum += get(rows + place[i] * width) * (weights ? load_one(weights + i) : C(1));
                if (shared.gate) sum += shared_row(t, get(rows + (this->rows() + t) * width), get);
                put(out + t * width, sum);
            });
    }

    // v_t
    Compute<T> share(long t) const {
        using C = Compute<T>;
        Vector<C> sum{};
        for_each_vector<C>(width,
                           [&](long, auto get, auto) { sum += get(x + t * width) * get(scale); });
        return sigmoid<C>(broadcast<C>(sum_of_lanes<C>(sum)))[0];
    }
};

// What is given, as above; both (tokens k, 2 hidden), gate and up in the order of the rows; of the
// shared expert both (tokens, 2 its hidden), or none, and its shares v (tokens,), none without a
// scale; rows (tokens k, and tokens more for the shared expert, width), of which nothing is kept;
// out (tokens, width). All are contiguous.
KERNEL(moe_swiglu) {
    by_dtype(arrays[0], kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const Experts<T> layer(arrays);
        const Array &both = arrays[10], &shared_both = arrays[11], &shares = arrays[12];
        const Array &rows = arrays[13], &out = arrays[14];
        const long width = layer.width, with_shared = layer.shared.gate ? layer.tokens : 0;
        require(num_arrays == 15 && both.size == layer.rows() * 2 * layer.hidden &&
                    shared_both.size == with_shared * 2 * layer.shared.hidden &&
                    shares.size == (layer.scale ? layer.tokens : 0) &&
                    rows.size == (layer.rows() + with_shared) * width &&
                    out.size == layer.tokens * width,
                kMisfit);
        const long* choice = layer.choices();
        Block* blocks;
        const long count = layer.blocks(true, blocks);
        parallel_for(count, [&](long i) {
            const Block block = blocks[i];
            const Gated<T> expert = layer.expert(block);
            const long m = block.rows(), hidden = expert.hidden;
            T* units = scratch<T>(6, m * hidden);
            T* to = (layer.is_shared(block) ? shared_both : both).template as<T>() +
                    block.begin * 2 * hidden;
            expert.enter(layer.gather(layer.x, choice, block, scratch<T>(5, m * width)), m, to);
            for (long r = 0; r < m; ++r)
                swiglu(to + r * 2 * hidden, to + (2 * r + 1) * hidden, units + r * hidden, hidden);
            expert.leave(units, m, rows.as<T>() + layer.row_of(block) * width);
            if (layer.is_shared(block) && layer.scale)
                for (long t = block.begin; t < block.end; ++t)
                    store_one(shares.as<T>() + t, layer.share(t));
        });
        parallel_for(layer.pieces(), [&](long piece) {
            layer.sum_by_token(piece, rows.as<T>(), layer.weights, out.as<T>(),
                               [&](long t, Vector<C> row, auto) {
                                   return layer.scale ? row * load_one(shares.as<T>() + t) : row;
                               });
        });
    });
}

// Of one row, with u = W_downᵀ grad and h = h(x): dboth is the gradient of gate and up, weighted is
// w h. Returns <h, u>, the gradient of w.
template <typename T>
static Compute<T> swiglu_row_backward(const T* u, const T* both, Compute<T> weight, T* dboth,
                                      T* weighted, long hidden) {
    using C = Compute<T>;
    Vector<C> dot{};
    for_each_vector<C>(hidden, [&](long, auto get, auto put) {
        const Vector<C> x = get(both), y = get(both + hidden), du = get(u), s = sigmoid<C>(x);
        const Vector<C> h = x * s * y, g = du * weight;
        dot += h * du;
        put(weighted, h * weight);
        put(dboth, g * y * (s * (C(1) + x * (C(1) - s))));
        put(dboth + hidden, g * x * s);
    });
    return sum_of_lanes<C>(dot);
}

// The gradient of a matrix (m, n): Σ a[r]ᵀ b[r] over the rows of its expert, a (rows, m), whose
// rows are `a_row` apart, b (rows, n).
template <typename T>
struct Outer {
    T* out;  // or null: not wanted
    long m, n, a_row;

    static constexpr long height = 16 * kRows;  // rows of the result that one thread computes

    long parts() const { return out ? ceil_div(m, height) : 0; }

    void part(long i, long rows, const T* a, const T* b) const {
        const long from = i * height, count = m - from < height ? m - from : height;
        T* to = out + from * n;
        if (rows == 0)
            __builtin_memset(to, 0, sizeof(T) * count * n);
        else
            product<T, T>(count, n, rows, {a + from, 1, a_row}, {b, n, 1}, {to, n, 1}, {});
    }
};

// Of rows of one expert, what the gradients of its matrices are made of.
template <typename T>
struct Room {
    T *grads, *inputs, *dboth, *units;  // (rows, width) twice, (rows, 2 hidden), (rows, hidden)

    Room from(long row, long width, long hidden) const {
        return {grads + row * width, inputs + row * width, dboth + row * 2 * hidden,
                units + row * hidden};
    }
    // For so many rows, of this thread.
    static Room own(long rows, long width, long hidden) {
        T* at = scratch<T>(6, rows * (2 * width + 3 * hidden));
        return {at, at + rows * width, at + rows * 2 * width, at + rows * 2 * (width + hidden)};
    }
};

// The gradients that are wanted, and what the kernel's parts share.
template <typename T>
struct Backward {
    using C = Compute<T>;

    Experts<T> layer;
    const T *grad, *both, *shared_both, *shares;
    T *drows, *dx, *dweights, *dgate_up, *ddown, *dgate, *dup, *dshared_down, *dscale;
    C* dlogits;  // (tokens,), the gradient of <scale, x_t>
    const long* choice;

    // From the gradients of a block's rows to those of what went into them.
    void through(Block block, const Room<T>& room) const {
        const Gated<T> expert = layer.expert(block);
        const long m = block.rows(), hidden = expert.hidden, width = layer.width;
        const bool shared = layer.is_shared(block);
        const T* kept = (shared ? shared_both : both) + block.begin * 2 * hidden;
        T* u = scratch<T>(5, m * hidden);
        expert.back_to_units(layer.gather(grad, choice, block, room.grads), m, u);
        for (long i = 0; i < m; ++i) {
            const long row = block.begin + i;
            const T* given = shared ? shares : layer.weights;
            const long at = shared ? row : choice[row];
            const C weight = given ? load_one(given + at) : C(1);
            if (i + kAhead < m) fetch(kept + (i + kAhead) * 2 * hidden, 2 * hidden);
            const C dot = swiglu_row_backward<T>(u + i * hidden, kept + i * 2 * hidden, weight,
                                                 room.dboth + i * 2 * hidden,
                                                 room.units + i * hidden, hidden);
            if (shared)
                dlogits[at] = dot * weight * (C(1) - weight);
            else if (dweights)
                store_one(dweights + at, dot);
        }
        if (dgate_up && !shared) layer.gather(layer.x, choice, block, room.inputs);
        if (dx) expert.back_to_input(room.dboth, m, drows + layer.row_of(block) * width);
    }

    Outer<T> first(long e) const {
        const long size = 2 * layer.hidden * layer.width;
        return {dgate_up ? dgate_up + e * size : nullptr, 2 * layer.hidden, layer.width,
                2 * layer.hidden};
    }
    Outer<T> second(long e) const {
        const long size = layer.hidden * layer.width;
        return {ddown ? ddown + e * size : nullptr, layer.width, layer.hidden, layer.width};
    }
    long parts() const { return first(0).parts() + second(0).parts(); }

    // One of the parts of an expert's matrices.
    void part(long e, long i, const Room<T>& room) const {
        const long m = rows_of(layer.ends, e).rows(), before = first(e).parts();
        if (i < before)
            first(e).part(i, m, room.dboth, room.inputs);
        else
            second(e).part(i - before, m, room.grads, room.units);
    }

    // The same of the shared expert, whose scale is a part more.
    Outer<T> shared_matrix(int which) const {
        const long hidden = layer.shared.hidden, width = layer.width;
        if (which == 2) return {dshared_down, width, hidden, width};
        return {which ? dup : dgate, hidden, width, 2 * hidden};
    }
    long shared_parts() const {
        long count = dscale ? 1 : 0;
        for (int which = 0; which < 3; ++which) count += shared_matrix(which).parts();
        return count;
    }
    void shared_part(long i, const T* dboth, const T* units) const {
        const T* left[] = {dboth, dboth + layer.shared.hidden, grad};
        const T* right[] = {layer.x, layer.x, units};
        for (int which = 0; which < 3; ++which) {
            const Outer<T> matrix = shared_matrix(which);
            if (i < matrix.parts()) return matrix.part(i, layer.tokens, left[which], right[which]);
            i -= matrix.parts();
        }
        const long width = layer.width;
        C* sum = scratch<C>(5, width);
        __builtin_memset(sum, 0, sizeof(C) * width);
        for (long t = 0; t < layer.tokens; ++t)
            for_each_vector<C>(width, [&](long, auto get, auto put) {
                put(sum, get(sum) + get(layer.x + t * width) * dlogits[t]);
            });
        for_each_vector<C>(width, [&](long, auto get, auto put) { put(dscale, get(sum)); });
    }

    void sum_by_token(long piece) const {
        layer.sum_by_token(piece, drows, nullptr, dx, [&](long t, Vector<C> row, auto get) {
            return layer.scale ? row + get(layer.scale) * dlogits[t] : row;
        });
    }
};

// grad (tokens, width); what is given, as above; both, and both and shares of the shared expert, as
// moe_swiglu left them; of which nothing is kept, in the order of the rows: grads and inputs
// (tokens k, width), drows (as moe_swiglu's rows), dboth (tokens k, 2 hidden), units (tokens k,
// hidden), and these two of the shared expert; dx, dweights, dgate_up, ddown and the gradients of
// the shared expert, none where not wanted. All are contiguous.
KERNEL(moe_swiglu_backward) {
    const Array *given = arrays + 1, *kept = given + 10, *room = kept + 3, *results = room + 7;
    by_dtype(given[0], kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const Experts<T> layer(given);
        const long width = layer.width, hidden = layer.hidden, rows = layer.rows();
        const long tokens = layer.shared.gate ? layer.tokens : 0, wide = layer.shared.hidden;
        const long kept_sizes[] = {rows * 2 * hidden, tokens * 2 * wide,
                                   layer.scale ? layer.tokens : 0};
        const long room_sizes[] = {rows * width,      rows * width,  (rows + tokens) * width,
                                   rows * 2 * hidden, rows * hidden, tokens * 2 * wide,
                                   tokens * wide};
        constexpr int of_results[] = {0, 1, 2, 3, 6, 7, 8, 9};
        require(num_arrays == 29 && arrays[0].size == given[0].size &&
                    arrays[0].dtype == given[0].dtype,
                kMisfit);
        for (int i = 0; i < 3; ++i) require(kept[i].size == kept_sizes[i], kMisfit);
        for (int i = 0; i < 7; ++i) require(room[i].size == room_sizes[i], kMisfit);
        for (int i = 0; i < 8; ++i)
            require(!results[i] || results[i].size == (i == 1 ? rows : given[of_results[i]].size),
                    kMisfit);
        const auto at = [](const Array& array) { return array.as<T>(); };
        const Backward<T> all{
            layer,          at(arrays[0]),  at(kept[0]),           at(kept[1]),
            at(kept[2]),    at(room[2]),    at(results[0]),        at(results[1]),
            at(results[2]), at(results[3]), at(results[4]),        at(results[5]),
            at(results[6]), at(results[7]), scratch<C>(7, tokens), layer.choices()};
        const Room<T> of_rows{at(room[0]), at(room[1]), at(room[3]), at(room[4])};
        const Room<T> of_tokens{of_rows.grads, of_rows.inputs, at(room[5]), at(room[6])};
        const bool evenly = layer.shared_evenly();
        Block* blocks;
        const long count = layer.blocks(!evenly, blocks);
        parallel_for(count + (evenly ? layer.ends.size : 0), [&](long i) {
            if (i < count) {
                const Block block = blocks[i];
                const bool shared = layer.is_shared(block);
                return all.through(block, (shared ? of_tokens : of_rows)
                                              .from(block.begin, width, shared ? wide : hidden));
            }
            // An expert's rows are near when its matrices' turn comes.
            const Block rows = rows_of(layer.ends, i - count);
            const Room<T> own = Room<T>::own(rows.rows(), width, hidden);
            in_blocks(rows, [&](Block block) {
                all.through(block, own.from(block.begin - rows.begin, width, hidden));
            });
            for (long part = 0; part < all.parts(); ++part) all.part(rows.group, part, own);
        });
        const long shared_parts = tokens ? all.shared_parts() : 0, parts = all.parts();
        const long expert_parts = evenly ? 0 : layer.ends.size * parts;
        parallel_for(shared_parts + expert_parts + (all.dx ? layer.pieces() : 0), [&](long i) {
            if (i < shared_parts) return all.shared_part(i, of_tokens.dboth, of_tokens.units);
            if ((i -= shared_parts) < expert_parts) {
                const long e = i / parts, first = rows_of(layer.ends, e).begin;
                return all.part(e, i % parts, of_rows.from(first, width, hidden));
            }
            all.sum_by_token(i - expert_parts);
        });
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
