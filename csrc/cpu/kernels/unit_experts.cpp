// Experts of one hidden unit each, some of a large table for every token:
//
//     y = Σ_j w_j gelu(p_j) u_j,   p_j = <d_j, x>          d_j, u_j: rows of two tables
//
// A row is read where it lies and used at once, so that the rows of all tokens, k times as much as
// the tokens themselves, are nowhere together. With v the gradient of y, and r_j = <u_j, v>,
//
//     dw_j = gelu(p_j) r_j     dp_j = w_j gelu'(p_j) r_j     dx = Σ_j dp_j d_j
//     dd_j += dp_j x           du_j += w_j gelu(p_j) v
//
// of which the last two add up for a row of a table over the tokens that chose it, as an
// embedding's gradient does: one thread makes a row, its tokens in their order.

#include "activations.h"
#include "dispatch.h"
#include "embedding.h"
#include "rows.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "unit_experts: expected float32, float64 or bfloat16";

template <typename T>
struct UnitExperts {
    using C = Compute<T>;
    long tokens, k, width, rows;
    const T *x, *weights, *down, *up;  // (tokens, width), (tokens, k), (rows, width) both
    const int64_t* index;              // (tokens, k)

    explicit UnitExperts(const Array* arrays)
        : tokens(arrays[0].shape[0]),
          k(arrays[4].dim(-1)),
          width(arrays[0].dim(-1)),
          rows(arrays[2].shape[0]),
          x(arrays[0].as<T>()),
          weights(arrays[1].as<T>()),
          down(arrays[2].as<T>()),
          up(arrays[3].as<T>()),
          index(arrays[4].as<int64_t>()) {
        const Array &at = arrays[4], &table = arrays[2];
        require(at.dtype == Dtype::int64 && at.ndim == 2 && at.shape[0] == tokens &&
                    arrays[1].size == at.size && table.ndim == 2 && table.shape[1] == width &&
                    arrays[3].size == table.size,
                "unit_experts: arrays that do not fit");
        for (int i = 1; i < 4; ++i)
            require(arrays[i].dtype == arrays[0].dtype, "unit_experts: dtypes that differ");
        for (long i = 0; i < at.size; ++i)
            require(0 <= index[i] && index[i] < rows, "unit_experts: an index that is no expert");
    }

    // each(token, choices of the token from a number on) for all tokens, side by side.
    template <typename F>
    void for_tokens(F each) const {
        parallel_ranges(tokens, rows_per_piece(2 * k * width), [&](long begin, long end) {
            for (long t = begin; t < end; ++t) each(t, t * k);
        });
    }

    // The rows of a table that a token chose.
    auto chosen(const T* table, long first) const {
        return [=, this](long j) { return table + index[first + j] * width; };
    }

    void forward(T* pre, T* out) const {
        for_tokens([&](long t, long first) {
            C *units = scratch<C>(0, k), *sum = scratch<C>(1, width);
            dot_rows(k, chosen(down, first), x + t * width, units, width);
            for_each_vector<C>(k, [&](long, auto get, auto put) {
                const Vector<C> read = get(units);
                put(pre + first, read);
                put(units, Gelu<C>().value(read) * get(weights + first));
            });
            add_rows<T>(k, chosen(up, first), [=](long j) { return units[j]; }, sum, width);
            for_each_vector<C>(width,
                               [&](long, auto get, auto put) { put(out + t * width, get(sum)); });
        });
    }

    // slopes: dp, units: w gelu(p), (tokens, k) both. dx may be null.
    void backward(const T* grad, const T* pre, T* slopes, T* units, T* dx, T* dweights) const {
        for_tokens([&](long t, long first) {
            C *read = scratch<C>(0, k), *sum = scratch<C>(1, width);
            dot_rows(k, chosen(up, first), grad + t * width, read, width);
            for_each_vector<C>(k, [&](long, auto get, auto put) {
                const Vector<C> p = get(pre + first), w = get(weights + first), r = get(read);
                const Vector<C> unit = Gelu<C>().value(p), slope = w * Gelu<C>().slope(p) * r;
                put(dweights + first, unit * r);
                put(units + first, unit * w);
                put(slopes + first, slope);
                put(read, slope);
            });
            if (!dx) return;
            add_rows<T>(k, chosen(down, first), [=](long j) { return read[j]; }, sum, width);
            for_each_vector<C>(width,
                               [&](long, auto get, auto put) { put(dx + t * width, get(sum)); });
        });
    }

    // out[row] = Σ factors[i] vectors[token of i] over the choices i of this row, which are
    // order[i] and tokens[i] from first[row] on.
    void sum_by_row(const T* factors, const T* vectors, const long* first, const long* order,
                    const long* token, T* out) const {
        const long average = width * (1 + tokens * k / (rows > 0 ? rows : 1));
        parallel_ranges(rows, rows_per_piece(average), [&](long begin, long end) {
            C* wide = nullptr;
            if constexpr (!__is_same(T, C)) wide = scratch<C>(2, width);
            for (long r = begin; r < end; ++r) {
                const long *choice = order + first[r], *from = token + first[r];
                const auto row = [=, this](long i) { return vectors + from[i] * width; };
                const auto factor = [=](long i) { return load_one(factors + choice[i]); };
                T* to = out + r * width;
                if constexpr (__is_same(T, C)) {
                    add_rows<T>(first[r + 1] - first[r], row, factor, to, width);
                } else {
                    add_rows<T>(first[r + 1] - first[r], row, factor, wide, width);
                    for_each_vector<C>(width,
                                       [&](long, auto get, auto put) { put(to, get(wide)); });
                }
            }
        });
    }
};

// x, weights, down, up, index; pre (tokens, k), p, which the backward needs; out. All contiguous.
KERNEL(unit_experts) {
    require(num_arrays == 7 && arrays[5].size == arrays[4].size &&
                arrays[6].size == arrays[0].size && arrays[5].dtype == arrays[0].dtype &&
                arrays[6].dtype == arrays[0].dtype,
            "unit_experts: arrays that do not fit");
    by_dtype(arrays[0], kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        UnitExperts<T>(arrays).forward(arrays[5].as<T>(), arrays[6].as<T>());
    });
}

// x, weights, down, up, index; grad, pre; slopes and units (tokens, k), of which nothing is kept;
// dx, dweights, ddown, dup, none where not wanted, but for dweights. All contiguous.
KERNEL(unit_experts_backward) {
    const Array &x = arrays[0], &down = arrays[2], &index = arrays[4];
    const auto fits = [&](int i, long size) {
        return !arrays[i] || (arrays[i].size == size && arrays[i].dtype == x.dtype);
    };
    require(num_arrays == 13 && arrays[5] && arrays[6] && arrays[7] && arrays[8] && arrays[10] &&
                fits(5, x.size) && fits(6, index.size) && fits(7, index.size) &&
                fits(8, index.size) && fits(9, x.size) && fits(10, index.size) &&
                fits(11, down.size) && fits(12, down.size),
            "unit_experts: arrays that do not fit");
    by_dtype(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const UnitExperts<T> layer(arrays);
        const auto at = [&](int i) { return arrays[i].as<T>(); };
        layer.backward(at(5), at(6), at(7), at(8), at(9), at(10));
        if (!arrays[11] && !arrays[12]) return;
        long* first = scratch<long>(3, layer.rows + 2);
        long* order = scratch<long>(4, index.size);
        by_destination(layer.index, index.size, layer.rows, first, order);
        long* token = scratch<long>(5, index.size);
        require(index.size < 1L << 32, "unit_experts: too many choices");
        for (long i = 0; i < index.size; ++i)  // division of 64 bits is slow
            token[i] = static_cast<uint32_t>(order[i]) / static_cast<uint32_t>(layer.k);
        if (arrays[11]) layer.sum_by_row(at(7), layer.x, first, order, token, at(11));
        if (arrays[12]) layer.sum_by_row(at(8), at(5), first, order, token, at(12));
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
