// Heads of latent attention: queries and keys put together out of what projections give, and their
// gradients taken apart. See latent.cpp.

#pragma once

#include "dispatch.h"
#include "rope.h"

namespace minitorch::MT_INSTRUCTION_SET {

// Features of a head: plain and turned of queries and keys, and of values.
struct Heads {
    long batch, time, heads, plain, turned, value;

    // Of queries (batch, time, heads, plain + turned), made (batch, time, heads, plain + value).
    Heads(const Array& queries, const Array& made, long turned)
        : batch(queries.shape[0]),
          time(queries.shape[1]),
          heads(queries.shape[2]),
          plain(queries.shape[3] - turned),
          turned(turned),
          value(made.shape[3] - plain) {
        require(queries.ndim == 4 && made.ndim == 4 && plain >= 0 && value >= 0 &&
                    turned % 2 == 0 && made.size == tokens() * made_row() &&
                    made.dtype == queries.dtype,
                "latent_heads: arrays that do not fit");
    }
    long tokens() const { return batch * time; }
    long both() const { return plain + turned; }
    // Numbers of a token: of its queries, or keys, and of what was made for its keys and values.
    long row() const { return heads * both(); }
    long made_row() const { return heads * (plain + value); }
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
void copy(const T* from, T* to, long count) {
    if (from != to) __builtin_memcpy(to, from, sizeof(T) * count);
}

// query (tokens, heads, plain + turned) to queries, which it may be; the keys out of made (tokens,
// heads, plain + value) and of key, whose rows of `turned` are key_row apart.
template <typename T>
void join_heads(const Heads& of, const Angles<Compute<T>>& angles, const T* query, const T* made,
                const T* key, long key_row, T* queries, T* keys) {
    const long row = of.row(), made_row = of.made_row();
    parallel_ranges(of.tokens(), rows_per_piece(4 * row), [&](long begin, long end) {
        for (long t = begin; t < end; ++t) {
            T* first = keys + t * row + of.plain;  // the turned key, of the first head
            if (of.heads) angles.turn(key + t * key_row, first, t % of.time);
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
}

// The way back: dquery may be dqueries; dkey, whose rows are key_row apart, is the sum over heads.
template <typename T>
void part_heads(const Heads& of, const Angles<Compute<T>>& angles, const T* dqueries,
                const T* dkeys, const T* dvalues, T* dquery, T* dmade, T* dkey, long key_row) {
    using C = Compute<T>;
    const long row = of.row(), made_row = of.made_row();
    parallel_ranges(of.tokens(), rows_per_piece(4 * row), [&](long begin, long end) {
        for (long t = begin; t < end; ++t) {
            const T *from = dqueries + t * row, *key = dkeys + t * row;
            T *to = dquery + t * row, *made = dmade + t * made_row, *sum = dkey + t * key_row;
            for_each_vector<C>(of.turned, [&](long, auto get, auto put) {
                Vector<C> total{};
                for (long h = 0; h < of.heads; ++h) total += get(key + h * of.both() + of.plain);
                put(sum, total);
            });
            angles.turn(sum, sum, t % of.time);
            for (long h = 0; h < of.heads; ++h, from += of.both(), to += of.both()) {
                copy(from, to, of.plain);
                angles.turn(from + of.plain, to + of.plain, t % of.time);
                copy(key + h * of.both(), made, of.plain);
                copy(dvalues + (t * of.heads + h) * of.value, made + of.plain, of.value);
                made += of.plain + of.value;
            }
        }
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
