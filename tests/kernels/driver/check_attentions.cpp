// Attention in its forms, and a new token through whole blocks.

#include "driver.h"

// Angles of 0 turn nothing: heads are then copies, and the way back sums those of the shared key.
template <typename T>
static void check_latent_heads(long batch, long time, long heads, long plain, long turned, long value) {
    const long both = plain + turned, of_made = plain + value;
    Owned<T> query({batch, time, heads, both}), made({batch, time, heads, of_made});
    Owned<T> key({batch, time, turned}), queries({batch, time, heads, both});
    Owned<T> keys({batch, time, heads, both}), values({batch, time, heads, value});
    Owned<T> dmade({batch, time, heads, of_made}), dkey({batch, time, turned});
    Owned<Compute<T>> cosine({time, turned / 2}), sine({time, turned / 2});
    for (long i = 0; i < cosine.array.size; ++i) cosine.set(i, 1), sine.set(i, 0);
    for (double interleaved : {0, 1}) {
        run("latent_heads",
            {query.array, made.array, key.array, cosine.array, sine.array, queries.array,
             keys.array},
            {interleaved});
        for (long row = 0; row < batch * time * heads; ++row)
            for (long i = 0; i < both; ++i) {
                close<T>("latent_heads", queries[row * both + i], query[row * both + i], 0);
                const double expected = i < plain ? made[row * of_made + i]
                                                  : key[row / heads * turned + i - plain];
                close<T>("latent_heads", keys[row * both + i], expected, 0);
            }
        run("latent_heads_backward",
            {queries.array, keys.array, values.array, cosine.array, sine.array, queries.array,
             dmade.array, dkey.array},
            {interleaved});
        for (long t = 0; t < batch * time; ++t)
            for (long i = 0; i < turned; ++i) {
                double sum = 0;
                for (long h = 0; h < heads; ++h) sum += keys[(t * heads + h) * both + plain + i];
                close<T>("latent_heads_backward", dkey[t * turned + i], sum, 1e-5);
            }
    }
}

// The plain queries are x W_qbᵀ; of the gradients, those of a scale that norms take away are 0.
template <typename T>
static void check_latent_projections(long time, long width, long heads, long plain, long turned) {
    const long rank = 3, value = 2, both = plain + turned, of_made = plain + value;
    Owned<T> x({1, time, width}), to_query({heads * both, width});
    Owned<T> into({rank + turned, width}), out({heads * of_made, rank});
    Owned<T> cosine({time, turned / 2}), sine({time, turned / 2});
    Owned<T> queries({1, time, heads, both}), keys({1, time, heads, both});
    Owned<T> made({1, time, heads, of_made}), values({1, time, heads, value});
    Owned<T> latent({time, rank}), normed({time, rank}), rstd({time});
    run("latent_projections",
        {x.array, kNone, kNone, to_query.array, into.array, kNone, out.array, cosine.array,
         sine.array, queries.array, keys.array, made.array, kNone, kNone, kNone, latent.array,
         normed.array, rstd.array},
        {1, 1e-9});
    for (long t = 0; t < time; ++t)
        for (long i = 0; i < plain; ++i) {
            double sum = 0;
            for (long p = 0; p < width; ++p) sum += x[t * width + p] * to_query[i * width + p];
            close<T>("latent_projections", queries[t * heads * both + i], sum, 1e-5 * double(width));
        }
    Owned<T> dx({1, time, width}), dquery({heads * both, width}), dinto({rank + turned, width});
    Owned<T> dout({heads * of_made, rank});
    run("latent_projections_backward",
        {queries.array, keys.array, values.array, x.array, kNone, kNone, to_query.array, into.array,
         kNone, out.array, cosine.array, sine.array, kNone, kNone, kNone, latent.array,
         normed.array, rstd.array, dx.array, kNone, kNone, dquery.array, dinto.array, kNone,
         dout.array},
        {1});
    double scale = 0, size = 0;
    for (long i = 0; i < rank * width; ++i)
        scale += into[i] * dinto[i], size += std::abs(into[i] * dinto[i]);
    close<T>("latent_projections_backward", scale, 0, 1e-4 * (1 + size));
}

// Against the sum that defines it; of the gradient, that of the values at the first token.
template <typename T>
static void check_lightning(long batch, long time, long heads, long dim, long block) {
    Owned<T> x({batch, time, heads * 3 * dim}), out({batch, time, heads * dim});
    Owned<T> dx({batch, time, heads * 3 * dim});
    Owned<double> slopes({heads});
    for (long h = 0; h < heads; ++h) slopes.set(h, 0.1 * double(h));
    run("lightning_attention", {x.array, slopes.array, out.array}, {double(block)});
    run("lightning_attention_backward", {out.array, x.array, slopes.array, dx.array},
        {double(block)});
    const auto at = [=](long b, long t, long h, long part, long d) {
        return (((b * time + t) * heads + h) * 3 + part) * dim + d;
    };
    for (long b = 0; b < batch; ++b)
        for (long h = 0; h < heads; ++h) {
            std::vector<double> dvalue(dim);
            for (long t = 0; t < time; ++t) {
                std::vector<double> expected(dim);
                for (long s = 0; s <= t; ++s) {
                    double near = 0;
                    for (long d = 0; d < dim; ++d)
                        near += x[at(b, t, h, 0, d)] * x[at(b, s, h, 1, d)];
                    near *= std::exp(-slopes[h] * double(t - s));
                    for (long d = 0; d < dim; ++d) {
                        expected[d] += near * x[at(b, s, h, 2, d)];
                        if (s == 0) dvalue[d] += near * out[((b * time + t) * heads + h) * dim + d];
                    }
                }
                for (long d = 0; d < dim; ++d)
                    close<T>("lightning_attention", out[((b * time + t) * heads + h) * dim + d],
                             expected[d], 1e-3);
            }
            for (long d = 0; d < dim; ++d)
                close<T>("lightning_attention_backward", dx[at(b, 0, h, 2, d)], dvalue[d],
                         1e-5 * (1 + std::abs(dvalue[d])) * double(time * dim));
        }
}

template <typename T>
static void check_attention(long time_q, long time_k, long dim, long value_dim, bool causal) {
    const long heads = 4, kv_heads = 2;
    Owned<T> q({2, heads, time_q, dim}), k({2, kv_heads, time_k, dim});
    Owned<T> v({2, kv_heads, time_k, value_dim}), out({2, heads, time_q, value_dim});
    Owned<T> grad({2, heads, time_q, value_dim}), dq({2, heads, time_q, dim});
    Owned<T> dk({2, kv_heads, time_k, dim}), dv({2, kv_heads, time_k, value_dim});
    Owned<Compute<T>> lse({2, heads, time_q}), sinks({heads}), dsinks({2, heads});
    Owned<Compute<T>> bias({2, heads, time_q, time_k}), dbias({2, heads, time_q, time_k});
    const std::vector<Array> inputs{q.array, k.array, v.array, kNone, kNone, kNone, kNone};
    const auto both = [&](std::vector<Array> given, std::vector<Array> wanted,
                          std::vector<double> numbers) {
        given.insert(given.end(), {out.array, lse.array});
        run("attention", given, numbers);
        given.resize(7);
        given.insert(given.end(), {grad.array, out.array, lse.array, dq.array, dk.array, dv.array});
        given.insert(given.end(), wanted.begin(), wanted.end());
        run("attention_backward", given, numbers);
    };
    std::vector<Array> given = inputs;
    for (double right : {-1., 0., 3.}) both(given, {kNone, kNone}, {0.3, 0, 5, right, 1});
    given[4] = sinks.array;
    both(given, {kNone, dsinks.array}, {0.3, 2, -1, causal ? 0. : -1., 1});
    given[3] = bias.array, given[4] = kNone;
    both(given, {dbias.array, kNone}, {0.3, 0, -1, causal ? 0. : -1., 0});
    Array shared = dbias.array;  // one for all heads of all sequences
    shared.strides[0] = shared.strides[1] = 0;
    both(given, {shared, kNone}, {0.3, 0, -1, causal ? 0. : -1., 0});
    Owned<Compute<T>> least({2, heads, time_q, time_k});  // hides every other query's keys, finitely
    for (long i = 0; i < least.array.size; ++i)
        if (i / time_k % 2) least.set(i, -3e38);
    given[3] = least.array, given[4] = sinks.array;
    both(given, {kNone, dsinks.array}, {0.3, 2, -1, causal ? 0. : -1., 0});
    given[3] = bias.array, given[4] = kNone;
    both(given, {kNone, kNone}, {0.3, 0, -1, causal ? 0. : -1., 0});
    const long head = 3, t = time_q - 1;  // one row against plain loops, with the bias
    std::vector<double> weights(time_k);
    double total = 0;
    for (long s = 0; s < time_k; ++s) {
        double score = bias[(head * time_q + t) * time_k + s];
        for (long d = 0; d < dim; ++d)
            score += 0.3 * q[(head * time_q + t) * dim + d] * k[(time_k + s) * dim + d];
        weights[s] = !causal || s <= t ? std::exp(score) : 0;
        total += weights[s];
    }
    for (long d = 0; d < value_dim; ++d) {
        double sum = 0;
        for (long s = 0; s < time_k; ++s)
            sum += weights[s] / total * v[(time_k + s) * value_dim + d];
        close<T>("attention", out[(head * time_q + t) * value_dim + d], sum, 1e-4);
    }
}

// Three sequences, the second without queries.
template <typename T>
static void check_packed_attention(long time_q, long time_k, long dim) {
    Owned<T> q({1, 4, time_q, dim}), k({1, 2, time_k, dim}), v({1, 2, time_k, dim});
    Owned<T> out({1, 4, time_q, dim}), grad({1, 4, time_q, dim});
    Owned<T> dq({1, 4, time_q, dim}), dk({1, 2, time_k, dim}), dv({1, 2, time_k, dim});
    Owned<Compute<T>> lse({1, 4, time_q});
    Owned<long> starts_q({4}), starts_k({4});
    starts_q.memory = {0, 1, 1, time_q};
    starts_k.memory = {0, time_k / 2, time_k - 1, time_k};
    starts_q.array.data = starts_q.memory.data(), starts_k.array.data = starts_k.memory.data();
    const std::vector<double> numbers{0.3, 0, -1, 0, 1};
    run("attention", {q.array, k.array, v.array, kNone, kNone, starts_q.array, starts_k.array,
                      out.array, lse.array},
        numbers);
    run("attention_backward",
        {q.array, k.array, v.array, kNone, kNone, starts_q.array, starts_k.array, grad.array,
         out.array, lse.array, dq.array, dk.array, dv.array, kNone, kNone},
        numbers);
}

template <typename T>
static void check_decoding(long batch, long heads, long dim, long time) {
    const long width = heads * dim, hidden = 2 * width + 1;
    Owned<T> x({batch, width}), out({batch, width}), norm({width}), qkv({3 * width, width}, 0.1);
    Owned<T> qkv_bias({3 * width}), proj({width, width}, 0.1), up({hidden, width}, 0.1);
    Owned<T> up_bias({hidden}), down({width, hidden}, 0.1), zero({width, hidden}, 0);
    Owned<T> keys({batch, heads, time, dim}), values({batch, heads, time, dim});
    const auto decode = [&](const Array& last, const Array& bias) {
        run("decode_blocks",
            {x.array, norm.array, norm.array, qkv.array, qkv_bias.array, proj.array, norm.array,
             norm.array, kNone, up.array, up_bias.array, last, bias, keys.array, values.array,
             kNone, kNone, kNone, out.array},
            {1e-5, 3});
    };
    decode(zero.array, kNone);  // leaves x + W_o attention + b_o
    const std::vector<double> stream = [&] {
        std::vector<double> found;
        for (long i = 0; i < batch * width; ++i) found.push_back(out[i]);
        return found;
    }();
    decode(zero.array, norm.array);
    for (long i = 0; i < batch * width; ++i)
        close<T>("decode_blocks", out[i], stream[i] + norm[i % width], 1e-4);
    decode(down.array, norm.array);
    const std::vector<Array> block{norm.array, kNone, qkv.array, kNone, proj.array, kNone,
                                   norm.array, kNone, up.array, kNone, down.array, kNone,
                                   keys.array, values.array};
    std::vector<Array> two{x.array};
    for (int i = 0; i < 2; ++i) two.insert(two.end(), block.begin(), block.end());
    Owned<T> head({heads * time + 3, width}), logits({batch, heads * time + 3});
    two.insert(two.end(), {norm.array, kNone, head.array, logits.array});
    run("decode_blocks", two, {1e-5, 3});
}

template <typename T>
static void check_all() {
    check_latent_heads<T>(2, 3, 4, 3, 6, 5);
    check_latent_heads<T>(1, 40, 2, 33, 18, 17);
    if constexpr (!std::is_same_v<T, bfloat16>) {
        check_latent_projections<T>(1, 5, 1, 1, 2);
        check_latent_projections<T>(40, 33, 3, 7, 18);
    }
    if constexpr (!std::is_same_v<T, bfloat16>) {
        check_lightning<T>(1, 1, 1, 1, 1);
        check_lightning<T>(2, 37, 3, 9, 8);
        check_lightning<T>(1, 20, 2, 33, 64);
    }
    for (bool causal : {false, true}) {
        check_attention<T>(1, 1, 1, 1, causal);
        check_attention<T>(37, 37, 16, 24, causal);
        check_attention<T>(5, 130, 33, 7, causal);
        check_attention<T>(150, 150, 8, 8, causal);
    }
    check_packed_attention<T>(5, 9, 16);
    check_packed_attention<T>(70, 130, 24);
    for (long batch : {1, 3, 9}) check_decoding<T>(batch, 2, 17, 21);
}

void check_attentions() {
    check_all<float>();
    check_all<double>();
    check_all<bfloat16>();
}
