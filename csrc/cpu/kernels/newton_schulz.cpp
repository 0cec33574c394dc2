// Newton-Schulz steps: matrices whose singular values are all brought to about 1, for Muon.
//
//     X = X / |X|,   then X = (a I + b A + c A²) X with A = X Xᵀ, so many times
//
// A is of the shorter side of X; where that is the columns, all is turned: A = Xᵀ X, X = X (...).
// A model has many small matrices. Each is one thread's, which has it in its own caches for all steps
// and waits for nobody, unless one is so large that the others would wait for it.
//
// Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.

#include "dispatch.h"
#include "matmul.h"
#include "optimizers.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kMisfit[] = "newton_schulz: expected contiguous matrices, float32 or float64";

struct Polynomial {
    double a, b, c;
    long steps;
    double eps;
};

template <typename T>
struct Orthogonal {
    T* x;
    long rows, columns;

    bool tall() const { return rows > columns; }
    long side() const { return tall() ? columns : rows; }
    long size() const { return rows * columns; }
    double work() const { return 2.0 * double(size() + side() * side()) * double(side()); }

    // x (rows, columns) = p(x), so many times.
    void apply(const Polynomial& p) const {
        const long n = side(), square = n * n, room = round_up(square, 64);
        T* gram = scratch<T>(5, 2 * room + size());
        T *polynomial = gram + room, *other = polynomial + room;
        divide_by_norm(T(p.eps));
        T *from = x, *to = other;
        for (long step = 0; step < p.steps; ++step) {
            const Matrix<const T> here{from, columns, 1}, factor{polynomial, n, 1};
            times_its_transpose(tall() ? rows : columns, tall() ? here.transposed() : here, {}, gram);
            for (long i = 0; i < square; ++i) polynomial[i] = T(p.b) * gram[i];
            for (long i = 0; i < n; ++i) polynomial[i * n + i] += T(p.a);
            times_its_transpose(n, {gram, n, 1}, {T(p.c), true}, polynomial);
            if (tall())
                product<T, T>(rows, n, n, here, factor, {to, columns, 1}, {});
            else
                product<T, T>(n, columns, n, factor, here, {to, columns, 1}, {});
            T* const before = from;
            from = to;
            to = before;
        }
        if (from != x) __builtin_memcpy(x, from, sizeof(T) * size());
    }

    // out (side, side) = m mᵀ, m (side, k): what lies above the diagonal, and below it the same.
    void times_its_transpose(long k, Matrix<const T> m, Epilogue<T, T> epilogue, T* out) const {
        const long n = side();
        epilogue.wanted = 1;
        product<T, T>(n, n, k, m, m.transposed(), {out, n, 1}, epilogue);
        constexpr long block = 32;  // of it and what lies across, all lines stay in the nearest cache
        for (long from = 0; from < n; from += block)
            for (long across = 0; across <= from; across += block)
                for (long i = from; i < from + block && i < n; ++i)
                    for (long j = across; j < across + block && j < i; ++j)
                        out[i * n + j] = out[j * n + i];
    }

    void divide_by_norm(T eps) const {
        const T norm = T(__builtin_sqrt(sum_of_squares(x, size())));
        const T scale = norm > eps || norm != norm ? norm : eps;
        for_each_vector<T>(size(), [&](long, auto get, auto put) { put(x, get(x) / scale); });
    }
};

// Matrices (rows, columns), which are changed in place; a, b, c, how many steps, the least norm.
KERNEL(newton_schulz) {
    if (!num_arrays) return;
    const Polynomial p{numbers[0], numbers[1], numbers[2], long(numbers[3]), numbers[4]};
    by_float(arrays[0], kMisfit, [&](auto kind) {
        using T = decltype(kind);
        auto* matrices = scratch<Orthogonal<T>>(6, num_arrays);
        double all = 0, most = 0;
        for (int i = 0; i < num_arrays; ++i) {
            const Array& x = arrays[i];
            require(x.ndim == 2 && x.dtype == arrays[0].dtype && x.size > 0, kMisfit);
            matrices[i] = {x.as<T>(), x.shape[0], x.shape[1]};
            all += matrices[i].work();
            most = matrices[i].work() > most ? matrices[i].work() : most;
        }
        if (most * num_threads() <= all)
            parallel_one_after_another(num_arrays, [&](long i) { matrices[i].apply(p); });
        else
            for (int i = 0; i < num_arrays; ++i) matrices[i].apply(p);
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
