// What latent attention does between its projections and the softmax, and the way back: queries and
// keys of every head are put together out of a part that has no position and one that is turned,
//
//     q_h = (q^C_h, R q^R_h)          (q^C_h, q^R_h) = query, head by head
//     k_h = (k^C_h, R k^R)            (k^C_h, v_h) = made, head by head; k^R one for all heads
//
// in one visit of each token; and the same with the projections before it,
//
//     query = W_qb norm(W_qa x)   or   W_qb x
//     made = W_b norm(c),  (c, k^R) = W_a x
//
// Source: DeepSeek-AI 2024, DeepSeek-V2, equations 9 to 17.

#include "latent.h"

#include "matmul.h"
#include "norms.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "latent_heads: expected float32, float64 or bfloat16";
constexpr char kMisfit[] = "latent_heads: arrays that do not fit";

// query (batch, time, heads, plain + turned), made (batch, time, heads, plain + value), key (batch,
// time, turned), cosine and sine (time, turned / 2) of the compute type; queries and keys as query;
// interleaved (0 or 1). All contiguous.
KERNEL(latent_heads) {
    const Array &query = arrays[0], &made = arrays[1], &key = arrays[2];
    const Heads of(query, made, key.dim(-1));
    require(num_arrays == 7 && arrays[5].size == query.size && arrays[6].size == query.size &&
                key.size == of.tokens() * of.turned && key.dtype == query.dtype,
            kMisfit);
    by_dtype(query, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const Angles<Compute<T>> angles(arrays[3], arrays[4], of, numbers[0] != 0, 1);
        join_heads(of, angles, query.as<const T>(), made.as<const T>(), key.as<const T>(),
                   of.turned, arrays[5].as<T>(), arrays[6].as<T>());
    });
}

// dqueries, dkeys (batch, time, heads, plain + turned), dvalues (batch, time, heads, value); cosine
// and sine as above; dquery as dqueries (and may be it), dmade (batch, time, heads, plain + value),
// dkey (batch, time, turned): the sum over the heads; interleaved. All contiguous.
KERNEL(latent_heads_backward) {
    const Array &dqueries = arrays[0], &dkeys = arrays[1], &dvalues = arrays[2];
    const Array &dmade = arrays[6], &dkey = arrays[7];
    const Heads of(dqueries, dmade, dkey.dim(-1));
    require(num_arrays == 8 && dkeys.size == dqueries.size && arrays[5].size == dqueries.size &&
                dvalues.size == of.tokens() * of.heads * of.value &&
                dkey.size == of.tokens() * of.turned,
            kMisfit);
    by_dtype(dqueries, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const Angles<Compute<T>> angles(arrays[3], arrays[4], of, numbers[0] != 0, -1);
        part_heads(of, angles, dqueries.as<const T>(), dkeys.as<const T>(), dvalues.as<const T>(),
                   arrays[5].as<T>(), dmade.as<T>(), dkey.as<T>(), of.turned);
    });
}

// x (rows, in) times the transpose of a matrix (out, in).
template <typename T>
static void project(long rows, long in, long out, const T* x, const T* matrix, T* to) {
    product<T, T>(rows, out, in, {x, in, 1}, {matrix, 1, in}, {to, out, 1}, {});
}

// From the gradient of that to those of x, added to it or not, and of the matrix; null: not wanted.
template <typename T>
static void project_back(long rows, long in, long out, const T* grad, const T* x, const T* matrix,
                         T* dx, bool add, T* dmatrix) {
    if (dx)
        product<T, T>(rows, in, out, {grad, out, 1}, {matrix, in, 1}, {dx, in, 1}, {1, add});
    if (dmatrix)
        product<T, T>(out, in, rows, {grad, 1, out}, {x, in, 1}, {dmatrix, in, 1}, {});
}

// out (rows, columns) = rows of x, which are x_row apart.
template <typename T>
static void gather(const T* x, long x_row, T* out, long out_row, long rows, long columns) {
    parallel_ranges(rows, rows_per_piece(columns), [=](long begin, long end) {
        for (long t = begin; t < end; ++t) copy(x + t * x_row, out + t * out_row, columns);
    });
}

// The projections' sizes: ranks of the latents of queries (0: they have none), and of keys and
// values.
struct Ranks {
    long width, query, made;

    // As x (tokens, width), W_qa (query, width) or none, W_qb (row, query or width), W_a (made +
    // turned, width) and W_b (made row, made) have them, and their norms' weights or none.
    Ranks(const Array& x, const Array* weights, const Heads& of)
        : width(x.dim(-1)),
          query(weights[0] ? weights[0].shape[0] : 0),
          made(weights[5].dim(-1)) {
        const long sizes[] = {query * width, query, of.row() * (query ? query : width),
                              (made + of.turned) * width, made, of.made_row() * made};
        bool fits = x.size == of.tokens() * width && weights[2] && weights[3] && weights[5];
        for (int i = 0; i < 6; ++i)
            fits = fits && (!weights[i] ||
                            (weights[i].size == sizes[i] && weights[i].dtype == x.dtype));
        require(fits, "latent_projections: arrays that do not fit");
    }
};

// x (tokens, width); W_qa, its norm, W_qb, W_a, its norm, W_b; cosine and sine (time, turned / 2).
// Results: queries and keys (batch, time, heads, plain + turned), made (batch, time, heads, plain +
// value), and what the way back needs: of the queries' latent itself (tokens, rank), normalised, and
// 1 / deviation (tokens,), and the same of the other one. interleaved, eps. All contiguous.
KERNEL(latent_projections) {
    const Array &x = arrays[0], *weights = arrays + 1, &queries = arrays[9], &made = arrays[11];
    const Heads of(queries, made, 2 * arrays[7].dim(-1));
    const Ranks rank(x, weights, of);
    const long tokens = of.tokens(), kept[] = {tokens * rank.query, tokens * rank.query,
                                               rank.query ? tokens : 0, tokens * rank.made,
                                               tokens * rank.made, tokens};
    require(num_arrays == 18 && arrays[10].size == queries.size, kMisfit);
    for (int i = 0; i < 6; ++i) require(arrays[12 + i].size == kept[i], kMisfit);
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const auto at = [&](int i) { return arrays[i].template as<T>(); };
        const Angles<T> angles(arrays[7], arrays[8], of, numbers[0] != 0, 1);
        const auto normalise = [&](int latent, int weight, long size) {
            norm<T, false, T>(at(latent), nullptr, at(weight), nullptr, at(latent + 1), nullptr,
                              nullptr, at(latent + 2), tokens, size, T(numbers[1]));
        };
        if (rank.query) {
            project(tokens, rank.width, rank.query, at(0), at(1), at(12));
            normalise(12, 2, rank.query);
            project(tokens, rank.query, of.row(), at(13), at(3), at(9));
        } else {
            project(tokens, rank.width, of.row(), at(0), at(3), at(9));
        }
        const long both = rank.made + of.turned;
        T* latent = scratch<T>(5, tokens * both);
        project(tokens, rank.width, both, at(0), at(4), latent);
        gather(latent, both, at(15), rank.made, tokens, rank.made);
        normalise(15, 5, rank.made);
        project(tokens, rank.made, of.made_row(), at(16), at(6), at(11));
        join_heads<T>(of, angles, at(9), at(11), latent + rank.made, both, at(9), at(10));
    });
}

// dqueries (which is overwritten), dkeys and dvalues as above; what latent_projections was given;
// what it kept; dx and the gradients of the six weights, none where not wanted. interleaved. All
// contiguous.
KERNEL(latent_projections_backward) {
    const Array &dqueries = arrays[0], &dkeys = arrays[1], &dvalues = arrays[2], &x = arrays[3];
    const Array *weights = arrays + 4, *kept = arrays + 12, *results = arrays + 18;
    Array made = dvalues;
    made.shape[3] += dqueries.dim(-1) - 2 * arrays[10].dim(-1);
    made.size = made.shape[0] * made.shape[1] * made.shape[2] * made.shape[3];
    const Heads of(dqueries, made, 2 * arrays[10].dim(-1));
    const Ranks rank(x, weights, of);
    const long tokens = of.tokens(), sizes[] = {tokens * rank.query, tokens * rank.query,
                                                rank.query ? tokens : 0, tokens * rank.made,
                                                tokens * rank.made, tokens};
    require(num_arrays == 25 && dkeys.size == dqueries.size && x.dtype == dqueries.dtype, kMisfit);
    for (int i = 0; i < 6; ++i) require(kept[i].size == sizes[i], kMisfit);
    for (int i = 0; i < 7; ++i)
        require(!results[i] || results[i].size == arrays[3 + i].size, kMisfit);
    by_float(x, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const auto at = [&](int i) { return arrays[i].template as<T>(); };
        const Angles<T> angles(arrays[10], arrays[11], of, numbers[0] != 0, -1);
        const long both = rank.made + of.turned;
        const long most = rank.query > rank.made ? rank.query : rank.made;
        T* dmade = scratch<T>(5, tokens * (of.made_row() + both + 2 * most) + most);
        T *dlatent = dmade + tokens * of.made_row(), *dnormed = dlatent + tokens * both;
        T *dplain = dnormed + tokens * most, *unwanted = dplain + tokens * most;
        const auto denormalise = [&](int latent, int weight, T* dweight, long size) {
            norm_backward<T, false>(dnormed, at(latent), at(weight), nullptr, at(latent + 2),
                                    nullptr, dplain, dweight ? dweight : unwanted, nullptr, tokens,
                                    size);
        };
        part_heads<T>(of, angles, at(0), at(1), at(2), at(0), dmade, dlatent + rank.made, both);
        project_back<T>(tokens, rank.made, of.made_row(), dmade, at(16), at(9), dnormed, false,
                        at(24));
        denormalise(15, 8, at(23), rank.made);
        gather(dplain, rank.made, dlatent, both, tokens, rank.made);
        T* dx = at(18);
        project_back<T>(tokens, rank.width, both, dlatent, at(3), at(7), dx, false, at(22));
        if (!rank.query)
            return project_back<T>(tokens, rank.width, of.row(), at(0), at(3), at(6), dx, true,
                                   at(21));
        project_back<T>(tokens, rank.query, of.row(), at(0), at(13), at(6), dnormed, false, at(21));
        denormalise(12, 5, at(20), rank.query);
        project_back<T>(tokens, rank.width, rank.query, dplain, at(3), at(4), dx, true, at(19));
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
