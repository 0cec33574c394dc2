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

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "unit_experts: expected float32, float64 or bfloat16";

template <typename T>
static Compute<T> dot(const T* a, const T* b, long count) {
    using C = Compute<T>;
    Vector<C> sum{};
    for_each_vector<C>(count, [&](long, auto get, auto) { sum += get(a) * get(b); });
    return sum_of_lanes<C>(sum);
}

template <typename T>
static void add_scaled(Compute<T> factor, const T* x, Compute<T>* sum, long count) {
    for_each_vector<Compute<T>>(
        count, [&](long, auto get, auto put) { put(sum, get(sum) + factor * get(x)); });
}

template <typename T>
static void prefetch(const T* row, long count) {
    constexpr long line = 64 / sizeof(T);
    for (long i = 0; i < count; i += line) __builtin_prefetch(row + i);
}

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

    const T* row(const T* table, long i) const { return table + index[i] * width; }
    void prefetch_after(const T* table, long i) const {
        if (i + 1 < tokens * k) prefetch(row(table, i + 1), width);
    }

    void forward(T* pre, T* out) const {
        for_tokens([&](long t, long first) {
            C* units = scratch<C>(0, k);
            C* sum = scratch<C>(1, width);
            for (long j = 0; j < k; ++j) {
                prefetch_after(down, first + j);
                store_one(pre + first + j, dot(row(down, first + j), x + t * width, width));
            }
            for_each_vector<C>(k, [&](long, auto get, auto put) {
                put(units, Gelu<C>().value(get(pre + first)) * get(weights + first));
            });
            for (long p = 0; p < width; ++p) sum[p] = 0;
            for (long j = 0; j < k; ++j) {
                prefetch_after(up, first + j);
                add_scaled(units[j], row(up, first + j), sum, width);
            }
            for_each_vector<C>(width,
                               [&](long, auto get, auto put) { put(out + t * width, get(sum)); });
        });
    }

    // slopes: dp, units: w gelu(p), (tokens, k) both. dx may be null.
    void backward(const T* grad, const T* pre, T* slopes, T* units, T* dx, T* dweights) const {
        for_tokens([&](long t, long first) {
            C* read = scratch<C>(0, k);
            C* sum = scratch<C>(1, width);
            for (long j = 0; j < k; ++j) {
                prefetch_after(up, first + j);
                read[j] = dot(row(up, first + j), grad + t * width, width);
            }
            for_each_vector<C>(k, [&](long, auto get, auto put) {
                const Vector<C> p = get(pre + first), w = get(weights + first), r = get(read);
                const Vector<C> unit = Gelu<C>().value(p);
                put(dweights + first, unit * r);
                put(units + first, unit * w);
                put(slopes + first, w * Gelu<C>().slope(p) * r);
            });
            if (!dx) return;
            for (long p = 0; p < width; ++p) sum[p] = 0;
            for (long j = 0; j < k; ++j) {
                prefetch_after(down, first + j);
                add_scaled(load_one(slopes + first + j), row(down, first + j), sum, width);
            }
            for_each_vector<C>(width,
                               [&](long, auto get, auto put) { put(dx + t * width, get(sum)); });
        });
    }

    // out[row] = Σ factors[i] vectors[token of i] over the choices i of this row.
    void sum_by_row(const T* factors, const T* vectors, const long* first, const long* order,
                    T* out) const {
        const long average = width * (1 + tokens * k / (rows > 0 ? rows : 1));
        parallel_ranges(rows, rows_per_piece(average), [&](long begin, long end) {
            C* sum = scratch<C>(2, width);
            for (long r = begin; r < end; ++r) {
                for (long p = 0; p < width; ++p) sum[p] = 0;
                for (long i = first[r]; i < first[r + 1]; ++i)
                    add_scaled(load_one(factors + order[i]), vectors + order[i] / k * width, sum,
                               width);
                for_each_vector<C>(
                    width, [&](long, auto get, auto put) { put(out + r * width, get(sum)); });
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
        if (arrays[11]) layer.sum_by_row(at(7), layer.x, first, order, at(11));
        if (arrays[12]) layer.sum_by_row(at(8), at(5), first, order, at(12));
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
