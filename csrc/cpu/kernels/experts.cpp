// Mixture of experts: matrix products of groups of rows, one after another or side by side, and all
// that happens between the tokens and their sum over the experts:
//
//     out_t = Σ_j w_tj W_down h(x_t),   h(x) = silu(gate) ⊙ up,   (gate, up) = W_gate_up x
//
// with the matrices of expert e_tj. Some rows of one expert at a time are gathered, go through both
// products while they are in a near cache, and are summed by token in the end.

#include "activations.h"
#include "dispatch.h"
#include "matmul.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "grouped product: expected float32, float64 or bfloat16";

// The groups' ends rise to `rows`.
static void check_ends(const Array& ends, long rows) {
    require(ends.dtype == Dtype::int64 && ends.ndim == 1 && ends.size > 0 &&
                (ends.size == 1 || ends.strides[0] == 1),
            "grouped product: ends have to be contiguous int64");
    long before = 0;
    for (long e = 0; e < ends.size; ++e) {
        const long end = ends.as<int64_t>()[e];
        require(before <= end && end <= rows, "grouped product: ends out of order");
        before = end;
    }
    require(before == rows, "grouped product: the last group has to end with the rows");
}

// one(group, begin, end) for every group. Small products run one to a thread, large ones on all.
template <typename F>
static void for_groups(const Array& ends, long work_per_row, F one) {
    const int64_t* end = ends.as<int64_t>();
    const auto begin = [&](long e) { return e == 0 ? 0L : static_cast<long>(end[e - 1]); };
    long most = 0;
    for (long e = 0; e < ends.size; ++e)
        if (end[e] - begin(e) > most) most = end[e] - begin(e);
    const auto groups = [&](long first, long last) {
        for (long e = first; e < last; ++e) one(e, begin(e), static_cast<long>(end[e]));
    };
    if (2.0 * most * work_per_row < 4e6)
        parallel_ranges(ends.size, rows_per_piece(most * work_per_row / 16 + 1),
                        [&](long first, long last) { groups(first, last); });
    else
        groups(0, ends.size);
}

// x (rows, k), weight (groups, k, n), ends (groups,), out (rows, n) contiguous:
// out[r] = x[r] weight[e] for the rows of each group.
KERNEL(grouped_mm) {
    const Array &x = arrays[0], &weight = arrays[1], &ends = arrays[2], &out = arrays[3];
    if (!out.size) return;  // NumPy gives empty arrays strides of its own
    require(num_arrays == 4 && x.ndim == 2 && weight.ndim == 3 && out.ndim == 2 &&
                x.dtype == weight.dtype && x.dtype == out.dtype && x.dim(-1) == weight.dim(-2) &&
                x.dim(-2) == out.dim(-2) && weight.dim(-1) == out.dim(-1) &&
                weight.shape[0] == ends.size && (out.stride(-1) == 1 || out.dim(-1) <= 1),
            "grouped_mm: arrays that do not fit");
    check_ends(ends, x.dim(-2));
    const long n = weight.dim(-1), k = weight.dim(-2);
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        for_groups(ends, n * k, [&](long e, long begin, long end) {
            if (begin == end) return;
            product<T, T>(
                end - begin, n, k,
                Matrix<const T>{x.as<const T>() + begin * x.stride(-2), x.stride(-2), x.stride(-1)},
                Matrix<const T>{weight.as<const T>() + e * weight.strides[0], weight.stride(-2),
                                weight.stride(-1)},
                Matrix<T>{out.as<T>() + begin * out.stride(-2), out.stride(-2), 1}, {}, nullptr);
        });
    });
}

// x (rows, m), y (rows, n), ends (groups,), out (groups, m, n) contiguous:
// out[e] = Σ x[r]ᵀ y[r] over the rows of each group, 0 for an empty one.
KERNEL(grouped_outer) {
    const Array &x = arrays[0], &y = arrays[1], &ends = arrays[2], &out = arrays[3];
    if (!out.size) return;
    require(num_arrays == 4 && x.ndim == 2 && y.ndim == 2 && out.ndim == 3 && x.dtype == y.dtype &&
                x.dtype == out.dtype && x.dim(-2) == y.dim(-2) && x.dim(-1) == out.dim(-2) &&
                y.dim(-1) == out.dim(-1) && out.shape[0] == ends.size &&
                (out.stride(-1) == 1 || out.dim(-1) <= 1),
            "grouped_outer: arrays that do not fit");
    check_ends(ends, x.dim(-2));
    const long m = out.dim(-2), n = out.dim(-1);
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        for_groups(ends, m * n, [&](long e, long begin, long end) {
            T* result = out.as<T>() + e * out.strides[0];
            if (begin == end) {
                __builtin_memset(result, 0, sizeof(T) * m * n);
                return;
            }
            product<T, T>(
                m, n, end - begin,
                Matrix<const T>{x.as<const T>() + begin * x.stride(-2), x.stride(-1), x.stride(-2)},
                Matrix<const T>{y.as<const T>() + begin * y.stride(-2), y.stride(-2), y.stride(-1)},
                Matrix<T>{result, out.stride(-2), 1}, {}, nullptr);
        });
    });
}

// Rows of an expert that are computed together, at most: enough for packing the weights to pay.
constexpr long kBlockRows = 256;

struct Block {
    long expert, begin, end;
};

// The rows of expert e.
static Block rows_of(const Array& ends, long e) {
    const int64_t* end = ends.as<int64_t>() + e;
    return {e, e ? static_cast<long>(end[-1]) : 0L, static_cast<long>(*end)};
}

// take(block) for the rows of an expert, cut into blocks of one size, give or take a row.
template <typename F>
static void in_blocks(Block rows, F take) {
    const long count = rows.end - rows.begin, parts = ceil_div(count, kBlockRows);
    for (long i = 0; i < parts; ++i)
        take(Block{rows.expert, rows.begin + count * i / parts,
                   rows.begin + count * (i + 1) / parts});
}

// Whether a thread may take whole experts: none has more rows than a thread's share of all.
static bool shared_evenly(const Array& ends) {
    long most = 0;
    for (long e = 0; e < ends.size; ++e) {
        const Block rows = rows_of(ends, e);
        if (rows.end - rows.begin > most) most = rows.end - rows.begin;
    }
    return most * num_threads() <= rows_of(ends, ends.size - 1).end;
}

// one(expert, begin, end) for rows of one expert, side by side.
template <typename F>
static void for_blocks(const Array& ends, F one) {
    const auto each = [&](auto take) {
        for (long e = 0; e < ends.size; ++e) in_blocks(rows_of(ends, e), take);
    };
    long count = 0;
    each([&](Block) { ++count; });
    Block* blocks = scratch<Block>(3, count);
    long next = 0;
    each([&](Block block) { blocks[next++] = block; });
    parallel_for(count, [&](long i) { one(blocks[i].expert, blocks[i].begin, blocks[i].end); });
}

template <typename T>
struct Experts {
    const Array &places, &ends;
    long tokens, k, width, hidden;
    const T *gate_up, *down;  // (experts, 2 hidden, width), (experts, width, hidden)

    Experts(const Array& x, const Array& weights, const Array& gate_up_, const Array& down_,
            const Array& places_, const Array& ends_)
        : places(places_),
          ends(ends_),
          tokens(x.shape[0]),
          k(places_.shape[1]),
          width(x.shape[1]),
          hidden(down_.shape[2]),
          gate_up(gate_up_.as<T>()),
          down(down_.as<T>()) {
        require(x.ndim == 2 && places.ndim == 2 && gate_up_.ndim == 3 && down_.ndim == 3 &&
                    places.dtype == Dtype::int64 && places.shape[0] == tokens &&
                    gate_up_.shape[0] == ends.size && gate_up_.shape[1] == 2 * hidden &&
                    gate_up_.shape[2] == width && down_.shape[0] == ends.size &&
                    down_.shape[1] == width && gate_up_.dtype == x.dtype &&
                    down_.dtype == x.dtype &&
                    (!weights || (weights.size == places.size && weights.dtype == x.dtype)),
                "moe_swiglu: arrays that do not fit");
        check_ends(ends, places.size);
    }

    // (rows,): which of the choices, token k + choice, stands in each row.
    long* choices() const {
        long* choice = scratch<long>(4, places.size);
        for (long row = 0; row < places.size; ++row) choice[row] = -1;
        for (long i = 0; i < places.size; ++i) {
            const long row = places.as<int64_t>()[i];
            require(0 <= row && row < places.size && choice[row] < 0,
                    "moe_swiglu: places have to be a permutation");
            choice[row] = i;
        }
        return choice;
    }

    void gather(const T* x, const long* choice, long begin, long end, T* to) const {
        for (long row = begin; row < end; ++row, to += width)
            __builtin_memcpy(to, x + choice[row] / k * width, sizeof(T) * width);
    }

    // out[t] = Σ_j weights[t, j] rows[places[t, j]]; weights null: 1.
    void sum_by_token(const T* rows, const T* weights, T* out) const {
        using C = Compute<T>;
        const int64_t* place = places.as<int64_t>();
        parallel_ranges(tokens, rows_per_piece(k * width), [&](long begin, long end) {
            for (long t = begin; t < end; ++t)
                for_each_vector<C>(width, [&](long, auto get, auto put) {
                    Vector<C> sum{};
                    for (long i = t * k; i < (t + 1) * k; ++i)
                        sum +=
                            get(rows + place[i] * width) * (weights ? load_one(weights + i) : C(1));
                    put(out + t * width, sum);
                });
        });
    }
};

// x (tokens, width), weights (tokens, k) or none, gate_up (experts, 2 hidden, width), down
// (experts, width, hidden), places (tokens, k), ends (experts,); both (tokens k, 2 hidden), gate
// and up in the order of the rows, rows (tokens k, width), of which nothing is kept, out (tokens,
// width). All are contiguous.
KERNEL(moe_swiglu) {
    const Array &x = arrays[0], &weights = arrays[1];
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const Experts<T> layer(x, weights, arrays[2], arrays[3], arrays[4], arrays[5]);
        const long width = layer.width, hidden = layer.hidden, count = arrays[4].size;
        require(num_arrays == 9 && arrays[6].size == count * 2 * hidden &&
                    arrays[7].size == count * width && arrays[8].size == x.size,
                "moe_swiglu: arrays that do not fit");
        T *both = arrays[6].as<T>(), *rows = arrays[7].as<T>();
        const long* choice = layer.choices();
        for_blocks(arrays[5], [&](long e, long begin, long end) {
            const long m = end - begin;
            T* in = scratch<T>(5, m * width);
            T* units = scratch<T>(6, m * hidden);
            layer.gather(x.as<T>(), choice, begin, end, in);
            product<T, T>(m, 2 * hidden, width, Matrix<const T>{in, width, 1},
                          Matrix<const T>{layer.gate_up + e * 2 * hidden * width, 1, width},
                          Matrix<T>{both + begin * 2 * hidden, 2 * hidden, 1}, {}, nullptr);
            for (long i = 0; i < m; ++i) {
                const T* gate = both + (begin + i) * 2 * hidden;
                swiglu(gate, gate + hidden, units + i * hidden, hidden);
            }
            product<T, T>(m, width, hidden, Matrix<const T>{units, hidden, 1},
                          Matrix<const T>{layer.down + e * width * hidden, 1, hidden},
                          Matrix<T>{rows + begin * width, width, 1}, {}, nullptr);
        });
        layer.sum_by_token(rows, weights.as<T>(), arrays[8].as<T>());
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

// The gradient of an expert's matrix (m, n): Σ a[r]ᵀ b[r] over its rows, a (rows, m), b (rows, n).
template <typename T>
struct Outer {
    T* out;  // (experts, m, n), or null: not wanted
    long m, n;

    static constexpr long kPart = 16 * kRows;  // rows of the result that one thread computes
    long parts() const { return out ? ceil_div(m, kPart) : 0; }

    void part(long e, long i, long rows, const T* a, const T* b) const {
        const long from = i * kPart, count = m - from < kPart ? m - from : kPart;
        T* to = out + (e * m + from) * n;
        if (rows == 0)
            __builtin_memset(to, 0, sizeof(T) * count * n);
        else
            product<T, T>(count, n, rows, Matrix<const T>{a + from, 1, m},
                          Matrix<const T>{b, n, 1}, Matrix<T>{to, n, 1}, {}, nullptr);
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

// grad (tokens, width); x to ends as above; both as moe_swiglu left it; of which nothing is kept,
// in the order of the rows: grads, inputs and drows (tokens k, width), dboth (tokens k, 2 hidden),
// units (tokens k, hidden); dx, dweights, dgate_up and ddown, none where not wanted. All are
// contiguous.
KERNEL(moe_swiglu_backward) {
    const Array &grad = arrays[0], &x = arrays[1], &weights = arrays[2], &ends = arrays[6];
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const Experts<T> layer(x, weights, arrays[3], arrays[4], arrays[5], ends);
        const long width = layer.width, hidden = layer.hidden, count = arrays[5].size;
        const auto wide = [&](int i) { return arrays[i].size == count * width; };
        const auto fits = [&](int i, long size) { return !arrays[i] || arrays[i].size == size; };
        require(num_arrays == 17 && grad.size == x.size && grad.dtype == x.dtype &&
                    arrays[7].size == count * 2 * hidden && wide(8) && wide(9) && wide(10) &&
                    arrays[11].size == count * 2 * hidden && arrays[12].size == count * hidden &&
                    fits(13, x.size) && fits(14, count) && fits(15, arrays[3].size) &&
                    fits(16, arrays[4].size),
                "moe_swiglu: arrays that do not fit");
        const auto at = [&](int i) { return arrays[i].as<T>(); };
        const T* both = at(7);
        T *drows = at(10), *dx = at(13), *dweights = at(14), *dgate_up = at(15);
        const long* choice = layer.choices();
        const auto through_layer = [&](long e, long begin, long end, const Room<T>& room) {
            const long m = end - begin;
            T* u = scratch<T>(5, m * hidden);
            layer.gather(grad.as<T>(), choice, begin, end, room.grads);
            product<T, T>(m, hidden, width, Matrix<const T>{room.grads, width, 1},
                          Matrix<const T>{layer.down + e * width * hidden, hidden, 1},
                          Matrix<T>{u, hidden, 1}, {}, nullptr);
            for (long i = 0; i < m; ++i) {
                const long row = begin + i;
                const auto weight =
                    weights ? load_one(weights.as<T>() + choice[row]) : Compute<T>(1);
                const auto dot = swiglu_row_backward<T>(
                    u + i * hidden, both + row * 2 * hidden, weight, room.dboth + i * 2 * hidden,
                    room.units + i * hidden, hidden);
                if (dweights) store_one(dweights + choice[row], dot);
            }
            if (dgate_up) layer.gather(x.as<T>(), choice, begin, end, room.inputs);
            if (dx)
                product<T, T>(m, width, 2 * hidden,
                              Matrix<const T>{room.dboth, 2 * hidden, 1},
                              Matrix<const T>{layer.gate_up + e * 2 * hidden * width, width, 1},
                              Matrix<T>{drows + begin * width, width, 1}, {}, nullptr);
        };
        const Outer<T> first{dgate_up, 2 * hidden, width}, second{at(16), width, hidden};
        const long parts = first.parts() + second.parts();
        const auto part_of_matrices = [&](long e, long part, const Room<T>& room) {
            const Block rows = rows_of(ends, e);
            const long m = rows.end - rows.begin;
            if (part < first.parts())
                first.part(e, part, m, room.dboth, room.inputs);
            else
                second.part(e, part - first.parts(), m, room.grads, room.units);
        };
        if (shared_evenly(ends)) {  // an expert's rows are near when its matrices' turn comes
            parallel_for(ends.size, [&](long e) {
                const Block all = rows_of(ends, e);
                const Room<T> room = Room<T>::own(all.end - all.begin, width, hidden);
                in_blocks(all, [&](Block rows) {
                    through_layer(e, rows.begin, rows.end,
                                  room.from(rows.begin - all.begin, width, hidden));
                });
                for (long part = 0; part < parts; ++part) part_of_matrices(e, part, room);
            });
        } else {
            const Room<T> room{at(8), at(9), at(11), at(12)};
            for_blocks(ends, [&](long e, long begin, long end) {
                through_layer(e, begin, end, room.from(begin, width, hidden));
            });
            parallel_for(ends.size * parts, [&](long i) {
                const long e = i / parts;
                part_of_matrices(e, i % parts,
                                 room.from(rows_of(ends, e).begin, width, hidden));
            });
        }
        if (dx) layer.sum_by_token(drows, nullptr, dx);
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
