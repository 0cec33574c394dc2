// The best of n² keys, each a sum of one of n first halves and one of n second halves:
//
//     s_ij = <q¹, c_i> + <q², c'_j>
//
// The k best sums are made of the k best of either half, and of those only of pairs (a, b), counted
// from 1 in falling order, with a b <= k: to every other pair at least k are not inferior, those
// with neither number larger. That is about k ln k sums instead of n².
//
// For some queries at a time all 2 n products are computed, searched in a near cache and forgotten.
// Backward, what is not chosen has no gradient: of row r of dq there are k terms,
//
//     dq¹ = Σ g_ij c_i     dc_i += g_ij q¹           and the same of the second half
//
// of which the latter are grouped by key, and each key's sum is made by one thread.

#include "dispatch.h"
#include "embedding.h"
#include "matmul.h"
#include "rows.h"
#include "topk.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "product_keys: expected float32 or float64";

struct Sizes {
    long rows, n, d, k;

    Sizes(const Array& query, const Array& keys, const Array& scores, const Array& indices)
        : rows(query.shape[0]), n(keys.shape[1]), d(keys.shape[2]), k(indices.shape[1]) {
        require(query.ndim == 2 && keys.ndim == 3 && indices.ndim == 2 && keys.shape[0] == 2 &&
                    query.shape[1] == 2 * d && scores.size == indices.size &&
                    indices.shape[0] == rows && indices.dtype == Dtype::int64 &&
                    keys.dtype == query.dtype && scores.dtype == query.dtype,
                "product_keys: arrays that do not fit");
    }
};

// The k best sums of a row of first and one of second halves, and i n + j of each.
template <typename T>
static void best_sums(const T* first, const T* second, long n, long k, T* scores, int64_t* index) {
    const long half = k < n ? k : n;
    int64_t* at = scratch<int64_t>(4, 2 * half + k);
    best(first, n, half, at);
    best(second, n, half, at + half);
    bool finite = true;
    for (long a = 0; a < half; ++a) {
        const T sum = first[at[a]] + second[at[half + a]];
        finite &= sum - sum == T(0);
    }
    // Infinities of both signs are NaN together, and come first: then all pairs are looked at.
    const long most = finite ? k : half * half;
    T* sums = scratch<T>(5, half * half);
    int64_t* of = scratch<int64_t>(6, half * half);
    long count = 0;
    for (long a = 0; a < half; ++a)
        for (long b = 0; b < half && (a + 1) * (b + 1) <= most; ++b) {
            of[count] = at[a] * n + at[half + b];
            sums[count++] = first[at[a]] + second[at[half + b]];
        }
    int64_t* chosen = at + 2 * half;
    best(sums, count, k, chosen);
    for (long j = 0; j < k; ++j) {
        scores[j] = sums[chosen[j]];
        index[j] = of[chosen[j]];
    }
}

// query (rows, 2 d), keys (2, n, d), scores and indices (rows, k); k <= n². All contiguous.
KERNEL(product_keys) {
    const Array &query = arrays[0], &keys = arrays[1], &scores = arrays[2], &indices = arrays[3];
    const Sizes size(query, keys, scores, indices);
    require(num_arrays == 4 && 0 < size.k && size.k <= size.n * size.n,
            "product_keys: arrays that do not fit");
    const long n = size.n, d = size.d, k = size.k;
    constexpr long most = 1 << 16;  // products of a half that are held at a time
    const long together = n < most / 16 ? most / n : 16;
    by_float(query, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        parallel_ranges(size.rows, together < 256 ? together : 256, [&](long begin, long end) {
            const long rows = end - begin;
            T* products = scratch<T>(3, 2 * rows * n);
            for (long half : {0, 1})
                product<T, T>(
                    rows, n, d,
                    Matrix<const T>{query.as<const T>() + (2 * begin + half) * d, 2 * d, 1},
                    Matrix<const T>{keys.as<const T>() + half * n * d, 1, d},
                    Matrix<T>{products + half * rows * n, n, 1}, {}, nullptr);
            for (long r = 0; r < rows; ++r)
                best_sums(products + r * n, products + (rows + r) * n, n, k,
                          scores.as<T>() + (begin + r) * k,
                          indices.as<int64_t>() + (begin + r) * k);
        });
    });
}

// grad (rows, k), query (rows, 2 d), keys (2, n, d), indices (rows, k); dquery and dkeys, either
// none. All contiguous.
KERNEL(product_scores_backward) {
    const Array &grad = arrays[0], &query = arrays[1], &keys = arrays[2], &indices = arrays[3],
                &dquery = arrays[4], &dkeys = arrays[5];
    const Sizes size(query, keys, grad, indices);
    const long n = size.n, d = size.d, k = size.k, choices = indices.size;
    require(num_arrays == 6 &&
                (!dquery || (dquery.size == query.size && dquery.dtype == query.dtype)) &&
                (!dkeys || (dkeys.size == keys.size && dkeys.dtype == keys.dtype)),
            "product_keys: arrays that do not fit");
    require(n <= 1 << 16, "product_keys: more keys than 2^32");  // division of 64 bits is slow
    const auto cut = [](int64_t at, long by) {
        return static_cast<uint32_t>(at) / static_cast<uint32_t>(by);
    };
    int64_t* parts = scratch<int64_t>(3, choices);
    long* first = scratch<long>(4, n + 2);
    long* order = scratch<long>(5, choices);
    long* row = scratch<long>(6, choices);
    by_float(query, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const T *g = grad.as<const T>(), *q = query.as<const T>();
        for (long half : {0, 1}) {
            for (long i = 0; i < choices; ++i) {
                const int64_t at = indices.as<int64_t>()[i];
                require(0 <= at && at < n * n, "product_keys: an index that is no key");
                parts[i] = half ? at - cut(at, n) * n : cut(at, n);
            }
            if (dquery)
                parallel_ranges(size.rows, rows_per_piece(k * d), [=](long begin, long end) {
                    const T* table = keys.as<const T>() + half * n * d;
                    for (long r = begin; r < end; ++r)
                        add_rows<T>(
                            k, [=](long j) { return table + parts[r * k + j] * d; },
                            [=](long j) { return g[r * k + j]; },
                            dquery.as<T>() + (2 * r + half) * d, d);
                });
            if (!dkeys) continue;
            by_destination(parts, choices, n, first, order);
            for (long i = 0; i < choices; ++i) row[i] = cut(order[i], k);
            parallel_ranges(n, rows_per_piece(d * (1 + choices / n)), [=](long begin, long end) {
                for (long i = begin; i < end; ++i) {
                    const long *choice = order + first[i], *from = row + first[i];
                    add_rows<T>(
                        first[i + 1] - first[i],
                        [=](long j) { return q + (2 * from[j] + half) * d; },
                        [=](long j) { return g[choice[j]]; }, dkeys.as<T>() + (half * n + i) * d,
                        d);
                }
            });
        }
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
