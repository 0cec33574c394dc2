// What latent attention does between its projections and the softmax, and the way back: queries and
// keys of every head are put together out of a part that has no position and one that is turned,
//
//     q_h = (q^C_h, R q^R_h)          (q^C_h, q^R_h) = query, head by head
//     k_h = (k^C_h, R k^R)            (k^C_h, v_h) = made, head by head; k^R one for all heads
//
// in one visit of each token. Source: DeepSeek-AI 2024, DeepSeek-V2, equations 14 to 17.

#include "dispatch.h"
#include "rope.h"

namespace minitorch::MT_INSTRUCTION_SET {

constexpr char kBadDtype[] = "latent_heads: expected float32, float64 or bfloat16";

// Features of a head: plain and turned of queries and keys, and of values.
struct Heads {
    long batch, time, heads, plain, turned, value;

    // Of queries (batch, time, heads, plain + turned), made (batch, time, heads, plain + value).
    Heads(const Array& queries, const Array& made, const Array& key)
        : batch(queries.shape[0]),
          time(queries.shape[1]),
          heads(queries.shape[2]),
          plain(queries.shape[3] - key.shape[2]),
          turned(key.shape[2]),
          value(made.shape[3] - plain) {
        require(queries.ndim == 4 && made.ndim == 4 && key.ndim == 3 && plain >= 0 && value >= 0 &&
                    turned % 2 == 0 && made.size == tokens() * heads * (plain + value) &&
                    key.size == tokens() * turned && made.dtype == queries.dtype &&
                    key.dtype == queries.dtype,
                "latent_heads: arrays that do not fit");
    }
    long tokens() const { return batch * time; }
    long both() const { return plain + turned; }
};

// The table's rows of a position, (turned / 2,) both, and which way: -1 is back.
template <typename C>
struct Angles {
    const C *cosine, *sine;
    long half;
    bool interleaved;
    C sign;

    Angles(const Array& cos, const Array& sin, const Heads& heads, bool interleaved, int sign)
        : cosine(cos.as<C>()),
          sine(sin.as<C>()),
          half(heads.turned / 2),
          interleaved(interleaved),
          sign(C(sign)) {
        require(cos.size == heads.time * half && sin.size == cos.size,
                "latent_heads: tables that do not fit");
    }
    template <typename T>
    void turn(const T* x, T* out, long position) const {
        const C *c = cosine + position * half, *s = sine + position * half;
        if (interleaved)
            rotate_neighbours(x, out, c, s, half, sign);
        else
            rotate_halves(x, out, c, s, half, sign);
    }
};

template <typename T>
static void copy(const T* from, T* to, long count) {
    __builtin_memcpy(to, from, sizeof(T) * count);
}

// query (batch, time, heads, plain + turned), made (batch, time, heads, plain + value), key (batch,
// time, turned), cosine and sine (time, turned / 2) of the compute type; queries and keys as query;
// interleaved (0 or 1). All contiguous.
KERNEL(latent_heads) {
    const Heads of(arrays[0], arrays[1], arrays[2]);
    require(num_arrays == 7 && arrays[5].size == arrays[0].size && arrays[6].size == arrays[0].size,
            "latent_heads: arrays that do not fit");
    by_dtype(arrays[0], kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        const Angles<Compute<T>> angles(arrays[3], arrays[4], of, numbers[0] != 0, 1);
        const T *query = arrays[0].as<T>(), *made = arrays[1].as<T>(), *key = arrays[2].as<T>();
        T *queries = arrays[5].as<T>(), *keys = arrays[6].as<T>();
        const long row = of.heads * of.both(), made_row = of.heads * (of.plain + of.value);
        parallel_ranges(of.tokens(), rows_per_piece(4 * row), [&](long begin, long end) {
            for (long t = begin; t < end; ++t) {
                T* first = keys + t * row + of.plain;  // the turned key, of the first head
                if (of.heads) angles.turn(key + t * of.turned, first, t % of.time);
                for (long h = 0; h < of.heads; ++h) {
                    const T* from = query + t * row + h * of.both();
                    T* to = queries + t * row + h * of.both();
                    copy(from, to, of.plain);
                    angles.turn(from + of.plain, to + of.plain, t % of.time);
                    T* head = keys + t * row + h * of.both();
                    copy(made + t * made_row + h * (of.plain + of.value), head, of.plain);
                    if (h) copy(first, head + of.plain, of.turned);
                }
            }
        });
    });
}

// dqueries, dkeys (batch, time, heads, plain + turned), dvalues (batch, time, heads, value); cosine
// and sine as above; dquery as dqueries (and may be it), dmade (batch, time, heads, plain + value),
// dkey (batch, time, turned): the sum over the heads; interleaved. All contiguous.
KERNEL(latent_heads_backward) {
    const Array &dqueries = arrays[0], &dkeys = arrays[1], &dvalues = arrays[2];
    const Heads of(dqueries, arrays[6], arrays[7]);
    require(num_arrays == 8 && dkeys.size == dqueries.size && arrays[5].size == dqueries.size &&
                dvalues.size == of.tokens() * of.heads * of.value,
            "latent_heads: arrays that do not fit");
    by_dtype(dqueries, kBadDtype, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const Angles<C> angles(arrays[3], arrays[4], of, numbers[0] != 0, -1);
        T *dquery = arrays[5].as<T>(), *dmade = arrays[6].as<T>(), *dkey = arrays[7].as<T>();
        const long row = of.heads * of.both(), made_row = of.heads * (of.plain + of.value);
        parallel_ranges(of.tokens(), rows_per_piece(4 * row), [&](long begin, long end) {
            for (long t = begin; t < end; ++t) {
                const T *from = dqueries.as<T>() + t * row, *key = dkeys.as<T>() + t * row;
                T *to = dquery + t * row, *made = dmade + t * made_row, *sum = dkey + t * of.turned;
                for_each_vector<C>(of.turned, [&](long, auto get, auto put) {
                    Vector<C> total{};
                    for (long h = 0; h < of.heads; ++h)
                        total += get(key + h * of.both() + of.plain);
                    put(sum, total);
                });
                angles.turn(sum, sum, t % of.time);
                for (long h = 0; h < of.heads; ++h, from += of.both(), to += of.both()) {
                    if (to != from) copy(from, to, of.plain);
                    angles.turn(from + of.plain, to + of.plain, t % of.time);
                    copy(key + h * of.both(), made, of.plain);
                    copy(dvalues.as<T>() + (t * of.heads + h) * of.value, made + of.plain,
                         of.value);
                    made += of.plain + of.value;
                }
            }
        });
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
