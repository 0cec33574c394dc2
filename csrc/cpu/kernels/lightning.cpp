// Lightning attention of one head of one text after another, block by block:
//
//     o_i = Σ_{j ≤ i} λ^{i-j} (q_i · k_j) v_j + λ^i q_i S,    S ← λ^n S + Σ_j λ^{n-j} k_j v_jᵀ
//
// with i, j = 1, ..., n within a block of n tokens and S what the blocks before it left. Backward
// from the last block to the first, with D the gradient of S, g that of o, P the products q_i · k_j
// and R the products g_i · v_j, of both those with j ≤ i, times λ^{i-j}:
//
//     dq = R k + λ^i g Sᵀ,    dk = Rᵀ q + λ^{n-j} v Dᵀ,    dv = Pᵀ g + λ^{n-j} k D
//     D ← λ^n D + Σ_i λ^i q_i g_iᵀ
//
// All powers are of differences, which are not negative. Source: Qin et al. 2024, "Lightning
// Attention-2" (arXiv 2401.04658), algorithms 1 and 2.

#include <cmath>

#include "dispatch.h"
#include "matmul.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "lightning_attention: expected float32 or float64";
constexpr char kMisfit[] = "lightning_attention: arrays that do not fit";

// One head of one text: rows of q, k and v, or of their gradients, which are `row` apart.
template <typename T>
struct Head {
    T *query, *key, *value;
    long row;

    Head(T* x, long batch, long head, long time, long heads, long dim)
        : query(x + batch * time * heads * 3 * dim + head * 3 * dim),
          key(query + dim),
          value(key + dim),
          row(heads * 3 * dim) {}
    // From a token on.
    Head from(long token) const {
        Head later = *this;
        later.query += token * row, later.key += token * row, later.value += token * row;
        return later;
    }
};

// The shapes of a call, and the work on one head. x (batch, time, heads 3 dim), slopes (heads,).
template <typename T>
struct Lightning {
    long batch, time, heads, dim, block;
    const double* slopes;

    Lightning(const Array& x, const Array& slopes, const Array& out, double block_size)
        : batch(x.shape[0]),
          time(x.shape[1]),
          heads(slopes.size),
          dim(heads ? x.shape[2] / heads / 3 : 0),
          block(block_size < time ? static_cast<long>(block_size) : time),
          slopes(slopes.as<double>()) {
        require(x.ndim == 3 && slopes.dtype == Dtype::float64 && x.shape[2] == heads * 3 * dim &&
                    out.dtype == x.dtype && out.size == batch * time * heads * dim &&
                    (block >= 1 || !x.size),
                kMisfit);
    }
    long blocks() const { return ceil_div(time, block); }
    long tokens(long b) const { return b + 1 < blocks() ? block : time - b * block; }
    long square() const { return dim * dim; }

    // λ^0, ..., λ^block
    void powers(long head, T* power) const {
        for (long i = 0; i <= block; ++i) power[i] = T(std::exp(-slopes[head] * i));
    }
    // to[i] = λ^(first + step i) from[i] of a block's rows
    void scaled(const T* from, long row, long n, const T* power, long first, long step,
                T* to) const {
        for (long i = 0; i < n; ++i)
            for_each_vector<T>(dim, [&](long, auto get, auto put) {
                put(to + i * dim, get(from + i * row) * power[first + step * i]);
            });
    }
    // out (n, n) = a bᵀ, of which a token meets those up to itself, each λ as often as it is away
    void products(const T* a, long a_row, const T* b, long b_row, long n, const T* power,
                  T* out) const {
        product<T, T>(n, n, dim, {a, a_row, 1}, {b, 1, b_row}, {out, n, 1}, {});
        for (long i = 0; i < n; ++i)
            for (long j = 0; j < n; ++j) out[i * n + j] *= j <= i ? power[i - j] : T(0);
    }
    // state = λ^n state + aᵀ b, of n rows; without a state before, the product alone
    void remember(const T* a, const T* b, long b_row, long n, const T* power, bool first,
                  T* state) const {
        for (long i = 0; !first && i < square(); ++i) state[i] *= power[n];
        product<T, T>(dim, dim, n, {a, 1, dim}, {b, b_row, 1}, {state, dim, 1}, {1, !first});
    }

    void forward(const Head<const T>& x, T* out, long out_row, const T* power, T* work) const {
        T *scores = work, *rows = scores + block * block, *state = rows + block * dim;
        for (long b = 0; b < blocks(); ++b, out += block * out_row) {
            const long n = tokens(b);
            const Head<const T> in = x.from(b * block);
            products(in.query, in.row, in.key, in.row, n, power, scores);
            product<T, T>(n, dim, n, {scores, n, 1}, {in.value, in.row, 1}, {out, out_row, 1}, {});
            if (b) {
                scaled(in.query, in.row, n, power, 1, 1, rows);
                product<T, T>(n, dim, dim, {rows, dim, 1}, {state, dim, 1}, {out, out_row, 1},
                              {1, true});
            }
            if (b + 1 == blocks()) return;
            scaled(in.key, in.row, n, power, n - 1, -1, rows);
            remember(rows, in.value, in.row, n, power, b == 0, state);
        }
    }

    void backward(const T* grad, long grad_row, const Head<const T>& x, const Head<T>& dx,
                  const T* power, T* work) const {
        T *scores = work, *dscores = scores + block * block, *rows = dscores + block * block;
        T *dstate = rows + block * dim,
          *states = dstate + square();  // before each block but the first
        for (long b = 0; b + 1 < blocks(); ++b) {
            const Head<const T> in = x.from(b * block);
            T* state = states + b * square();
            if (b) __builtin_memcpy(state, state - square(), sizeof(T) * square());
            scaled(in.key, in.row, block, power, block - 1, -1, rows);
            remember(rows, in.value, in.row, block, power, b == 0, state);
        }
        for (long b = blocks(); b-- > 0;) {
            const long n = tokens(b);
            const bool last = b + 1 == blocks();
            const Head<const T> in = x.from(b * block);
            const Head<T> to = dx.from(b * block);
            const T* g = grad + b * block * grad_row;
            const Matrix<const T> query{in.query, in.row, 1}, key{in.key, in.row, 1};
            const Matrix<const T> gradient{g, grad_row, 1}, scaled_rows{rows, dim, 1};
            const Matrix<T> dquery{to.query, to.row, 1}, dkey{to.key, to.row, 1};
            const Matrix<T> dvalue{to.value, to.row, 1};
            products(in.query, in.row, in.key, in.row, n, power, scores);
            products(g, grad_row, in.value, in.row, n, power, dscores);
            product<T, T>(n, dim, n, {dscores, n, 1}, key, dquery, {});
            product<T, T>(n, dim, n, {dscores, 1, n}, query, dkey, {});
            product<T, T>(n, dim, n, {scores, 1, n}, gradient, dvalue, {});
            if (!last) {
                scaled(in.value, in.row, n, power, n - 1, -1, rows);
                product<T, T>(n, dim, dim, scaled_rows, {dstate, 1, dim}, dkey, {1, true});
                scaled(in.key, in.row, n, power, n - 1, -1, rows);
                product<T, T>(n, dim, dim, scaled_rows, {dstate, dim, 1}, dvalue, {1, true});
            }
            if (!b) return;
            scaled(g, grad_row, n, power, 1, 1, rows);
            product<T, T>(n, dim, dim, scaled_rows, {states + (b - 1) * square(), 1, dim}, dquery,
                          {1, true});
            scaled(in.query, in.row, n, power, 1, 1, rows);
            remember(rows, g, grad_row, n, power, last, dstate);
        }
    }

    // one(b, h, power, work) for every head of every text; `work` has so many numbers.
    template <typename F>
    void for_heads(long size, F one) const {
        parallel_for(batch * heads, [&](long i) {
            T* power = scratch<T>(3, block + 1 + size);
            powers(i % heads, power);
            one(i / heads, i % heads, power, power + block + 1);
        });
    }
};

// x (batch, time, heads 3 dim): query, key and value of a head side by side; slopes (heads,)
// float64, λ = exp(-slope); out (batch, time, heads dim); block_size. All contiguous.
KERNEL(lightning_attention) {
    const Array &x = arrays[0], &out = arrays[2];
    require(num_arrays == 3, kMisfit);
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const Lightning<T> of(x, arrays[1], out, numbers[0]);
        const long row = of.heads * of.dim;
        const long size = of.block * (of.block + of.dim) + of.square();
        of.for_heads(size, [&](long b, long h, const T* power, T* work) {
            of.forward({x.as<const T>(), b, h, of.time, of.heads, of.dim},
                       out.as<T>() + b * of.time * row + h * of.dim, row, power, work);
        });
    });
}

// grad (batch, time, heads dim), x and slopes as above, dx as x; block_size. All contiguous.
KERNEL(lightning_attention_backward) {
    const Array &grad = arrays[0], &x = arrays[1], &dx = arrays[3];
    require(num_arrays == 4 && dx.size == x.size && dx.dtype == x.dtype, kMisfit);
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const Lightning<T> of(x, arrays[2], grad, numbers[0]);
        const long row = of.heads * of.dim;
        const long size = of.block * (2 * of.block + of.dim) + of.blocks() * of.square();
        of.for_heads(size, [&](long b, long h, const T* power, T* work) {
            of.backward(grad.as<const T>() + b * of.time * row + h * of.dim, row,
                        {x.as<const T>(), b, h, of.time, of.heads, of.dim},
                        {dx.as<T>(), b, h, of.time, of.heads, of.dim}, power, work);
        });
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
