"""Attention for long texts: by chunks, and sparse in the prompt."""

import dataclasses
import itertools

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from minitorch.random import Generator
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.context import PADDING, place, place_packed
from models.blocks.dual_chunk import Chunks, DualChunkAttention
from models.blocks.positions import Rotary
from models.blocks.sparse_chunks import SparseDualChunkAttention
from models.blocks.streaming import StreamingAttention
from models.blocks.vertical_slash import Budget, VerticalSlashAttention, kept
from models.qwen import Qwen2Config

CONFIG = AttentionConfig(
    hidden_size=12, num_heads=4, num_kv_heads=2, head_dim=6, rotary=Rotary(6, 50.0)
)
CHUNKS = Chunks(trained=8, local=3)  # chunks of 5
FLOAT64 = np.dtype(np.float64)


def alike(kind, *parts, config=CONFIG):
    """A layer of the kind, with the weights that all of them have here."""
    layer = kind(config, *parts, FLOAT64, Generator(3))
    with mt.no_grad():
        for param in layer.parameters():
            param.mul_(3.0)
    return layer.eval()


def stream(time, batch=2, seed=0):
    return mt.from_numpy(np.random.default_rng(seed).standard_normal((batch, time, 12)))


def context(time, mask=None):
    return place(time, mask, np.empty((1, 0), int), None, "cpu")


def out(layer, x, mask=None):
    with mt.no_grad():
        return layer(x, context(x.shape[1], mask)).numpy()


def test_layers_of_one_model_may_have_chunks_of_their_own():
    """What layers share of a step is shared by those with the same distances."""
    layers = [
        alike(DualChunkAttention, CHUNKS),
        alike(DualChunkAttention, Chunks(trained=6, local=2)),
    ]
    x, together = stream(17), context(17)
    for layer in layers:
        with mt.no_grad():
            found = layer(x, together).numpy()
        np.testing.assert_array_equal(found, out(layer, x))


@pytest.mark.parametrize("time", [1, 4, 7])
def test_with_the_first_tokens_a_short_text_has_plain_attention(time):
    config = dataclasses.replace(CONFIG, window=5)
    streaming = alike(StreamingAttention, 2, config=config)
    np.testing.assert_allclose(
        out(streaming, stream(time)), out(alike(Attention), stream(time)), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize(("window", "first"), [(5, 2), (1, 1), (3, 6)])
def test_the_first_tokens_are_as_near_as_the_cache_is_long(window, first):
    """Every pair of positions by itself, the distance turned into the query alone."""
    time, x = 17, stream(17, 1)
    layer = alike(StreamingAttention, first, config=dataclasses.replace(CONFIG, window=window))
    projections = layer.q_proj, layer.k_proj, layer.v_proj
    q, k, v = (x.numpy()[0] @ projection.weight.data.T for projection in projections)
    expected = np.zeros((time, 24))
    for head in range(4):
        mine, theirs = (slice(6 * h, 6 * h + 6) for h in (head, head // 2))
        for i in range(time):
            seen = [j for j in range(i + 1) if i - j < window or j < first]
            scores = []
            for j in seen:
                apart = i - j if i - j < window else min(i, first + window - 1) - j
                turned = mt.from_numpy(q[i : i + 1, mine][None, None])
                at = layer.config.rotary.at(np.array([[apart]]), turned, context(1), apart)
                scores.append(float(at.numpy()[0, 0, 0] @ k[j, theirs]) / 6**0.5)
            weights = np.exp(scores) / np.exp(scores).sum()
            expected[i, mine] = weights @ v[seen][:, theirs]
    expected = expected @ layer.o_proj.weight.data.T
    np.testing.assert_allclose(out(layer, x)[0], expected, rtol=1e-10, atol=1e-11)


def test_a_text_without_end_takes_no_more_memory():
    layer = alike(StreamingAttention, 2, config=dataclasses.replace(CONFIG, window=4))
    cache, x, past, sizes = layer.new_cache(), stream(60), np.empty((1, 0), int), []
    with mt.no_grad():
        whole = layer(x, context(60)).numpy()
        for t in range(60):
            at = place(1, None, past, 60, "cpu")
            past = at.key
            step = layer(x[:, t : t + 1], at, cache).numpy()
            np.testing.assert_allclose(step[:, 0], whole[:, t], rtol=1e-11, atol=1e-12)
            sizes.append(cache.nbytes)
    assert len({*sizes[8:]}) == 1


def test_first_tokens_of_several_texts_in_a_row():
    layer = alike(StreamingAttention, 2, config=dataclasses.replace(CONFIG, window=3))
    x, segments = stream(16, 1), np.array([[1] * 7 + [2] * 8 + [0]])
    with mt.no_grad():
        packed = layer(x, place_packed(segments, "cpu")).numpy()
    for part in (slice(0, 7), slice(7, 15)):
        np.testing.assert_allclose(packed[:, part], out(layer, x[:, part]), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("first", "changes"),
    [(0, {"window": 3}), (2, {}), (2, {"window": 3, "rotary": None, "alibi": True})],
)
def test_first_tokens_need_a_window_and_rotations(first, changes):
    with pytest.raises(ConfigError, match="first_tokens: expected at least 1, with a window"):
        alike(StreamingAttention, first, config=dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize("time", [1, 4, 5])
def test_inside_a_chunk_it_is_plain_attention(time):
    x = stream(time)
    plain, chunked = alike(Attention), alike(DualChunkAttention, CHUNKS)
    np.testing.assert_allclose(out(chunked, x), out(plain, x), rtol=1e-12, atol=1e-13)


def test_beyond_a_chunk_it_is_not():
    x = stream(20)
    difference = out(alike(DualChunkAttention, CHUNKS), x) - out(alike(Attention), x)
    far = np.abs(difference[:, :, :]).max((0, 2))
    assert (far[:5] < 1e-12).all()
    assert far[10:].max() > 1e-3


def shown(i, j, chunks):
    """The distance that a query at i shows to a key at j, by the paper's three cases."""
    s, c = chunks.size, chunks.trained
    if i // s == j // s:
        return i % s - j % s
    if i // s == j // s + 1:
        return min(i % s + s, c - 1) - j % s
    return c - 1 - j % s


def scores_by_formula(layer, x, distance):
    """Every pair of positions by itself, the distance turned into the query alone.

    distance(i, j). Returns scores (heads, time, time), -inf after the query, and values, for each
    head of queries: (heads, time, head_dim).
    """
    time, theta = x.shape[1], 50.0 ** (-np.arange(0, 6, 2) / 6)
    query, key, value = (part.detach().numpy()[0] for part in layer.project(x, context(time)))
    scores = np.full((4, time, time), -np.inf)
    for head in range(4):
        for i in range(time):
            for j in range(i + 1):
                angle = distance(i, j) * theta
                a, b = np.split(query[head, i], 2)
                turned = [
                    a * np.cos(angle) - b * np.sin(angle),
                    b * np.cos(angle) + a * np.sin(angle),
                ]
                scores[head, i, j] = np.concatenate(turned) @ key[head // 2, j] / np.sqrt(6)
    return scores, value[[0, 0, 1, 1]]


def softmax(scores):
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    return probs / probs.sum(-1, keepdims=True)


@pytest.mark.parametrize("chunks", [CHUNKS, Chunks(trained=9, local=1), Chunks(trained=6, local=5)])
def test_it_is_its_formula(chunks):
    x, layer = stream(23, 1), alike(DualChunkAttention, chunks)
    scores, value = scores_by_formula(layer, x, lambda i, j: shown(i, j, chunks))
    expected = layer.join(mt.from_numpy((softmax(scores) @ value)[None])).detach().numpy()
    np.testing.assert_allclose(out(layer, x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("held", [0, 3, 11, 22])
def test_by_chunks_is_by_pairs(window, held):
    """Values, and the gradients of both sides, of a prompt or of what follows a cache."""
    config = dataclasses.replace(CONFIG, window=window)
    layer = alike(DualChunkAttention, CHUNKS, config=config)
    rng = np.random.default_rng(1)
    data = [rng.standard_normal(s) for s in [(2, 4, 23 - held, 6)] * 3 + [(2, 2, 23, 6)] * 2]
    cotangent = mt.from_numpy(rng.standard_normal((2, 4, 23 - held, 6)))
    where = place(23 - held, None, np.arange(held)[None], None, "cpu")
    assert_same(layer, data, cotangent, where)


def assert_same(layer, data, cotangent, where):
    found = []
    for attend in (layer.blockwise, layer.by_pairs):
        *queries, key, value = leaves = [mt.Tensor(x, requires_grad=True) for x in data]
        out = attend(queries, key, value, where)
        out.backward(cotangent)
        found.append([out.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def rows_of_texts(kind):
    """The context of two rows of 23 columns, and how many came before those of the step."""
    mask = np.ones((2, 23), bool)
    if kind == "packed":
        segments = np.repeat([[1, 2, 3, 0], [1, 1, 2, 3]], [12, 4, 6, 1], 1)
        return place_packed(segments, "cpu"), 0
    if kind == "left":
        mask[0, :9] = False
    elif kind == "right":
        mask[1, 17:] = False
    else:  # in the middle, all of a row, and behind a cache
        mask[0, 5:9], mask[1] = False, False
        past = np.arange(11)[None] - np.array([[3], [0]])
        return place(23, mask, np.where(past < 0, PADDING, past), None, "cpu"), 11
    return place(23, mask, np.empty((1, 0), int), None, "cpu"), 0


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("kind", ["left", "right", "middle", "packed"])
def test_texts_one_by_one_are_by_pairs(kind, window):
    layer = alike(DualChunkAttention, CHUNKS, config=dataclasses.replace(CONFIG, window=window))
    where, held = rows_of_texts(kind)
    rng = np.random.default_rng(1)
    shapes = [(2, 4, 23, 6)] * 3 + [(2, 2, held + 23, 6)] * 2
    data = [rng.standard_normal(s) for s in shapes]
    assert_same(layer, data, mt.from_numpy(rng.standard_normal((2, 4, 23, 6))), where)


def test_a_prompt_is_read_by_chunks(monkeypatch):
    layer = alike(DualChunkAttention, CHUNKS)
    monkeypatch.setattr(layer, "by_pairs", None)
    out(layer, stream(23))
    out(layer, stream(23), np.arange(23) >= np.array([[0], [7]]))


def test_no_distance_is_longer_than_trained_and_near_ones_are_exact():
    for chunks in (CHUNKS, Chunks(trained=64, local=16), Chunks(trained=6, local=5)):
        for i in range(150):
            for j in range(i + 1):
                distance = shown(i, j, chunks)
                assert 0 <= distance <= chunks.trained - 1
                if i - j < chunks.local and i // chunks.size - j // chunks.size <= 1:
                    assert distance == i - j


MODEL = Qwen2Config(
    vocab_size=19,
    hidden_size=12,
    num_hidden_layers=2,
    max_position_embeddings=64,
    intermediate_size=20,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    dual_chunk_attention_config={"chunk_size": 8, "local_size": 3},
)


def test_a_chunked_model_decodes_through_its_cache_and_with_padding():
    model = MODEL.build(FLOAT64, Generator(0)).eval()
    ids = np.random.default_rng(0).integers(0, 19, (2, 17))
    mask = np.ones((2, 17), bool)
    mask[0, :6] = False
    with mt.no_grad():
        for param in model.parameters():
            param.mul_(20.0 if param.ndim > 1 else 1.0)
        whole = model(mt.from_numpy(ids), mask=mt.from_numpy(mask))[0].numpy()
        alone = model(mt.from_numpy(ids[:1, 6:].copy()))[0].numpy()
        cache, at = model.new_cache(), [9, 10, 14]
        pieces = [
            model(mt.from_numpy(i.copy()), cache=cache, mask=mt.from_numpy(m.copy()))[0].numpy()
            for i, m in zip(np.split(ids, at, 1), np.split(mask, at, 1))
        ]
        plain = dataclasses.replace(MODEL, dual_chunk_attention_config=None).build(FLOAT64, None)
        plain.load_state_dict(model.state_dict())
        other = plain(mt.from_numpy(ids[:1, 6:].copy()))[0].numpy()
    together = np.concatenate(pieces, 1)
    np.testing.assert_allclose(together[mask], whole[mask], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(whole[0, 6:], alone[0], rtol=1e-9, atol=1e-10)
    assert np.abs(other - alone)[0, 5:].max() > 1e-3


def test_a_chunked_model_has_gradients():
    model = MODEL.build(FLOAT64, Generator(0))
    ids = mt.from_numpy(np.random.default_rng(0).integers(0, 19, (2, 17)))
    model.loss(ids, ids).backward()
    rng = np.random.default_rng(3)
    for name, param in model.named_parameters():
        start, direction = param.data.copy(), rng.standard_normal(param.shape)
        losses = []
        for h in (1e-5, -1e-5):
            param.data[...] = start + h * direction
            with mt.no_grad():
                losses.append(model.loss(ids, ids).item())
        param.data[...] = start
        slope = (losses[0] - losses[1]) / 2e-5
        found = (param.grad.numpy() * direction).sum()
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-9), name


def test_bad_chunks_are_refused():
    for trained, local in ((8, 8), (8, 0), (0, 0)):
        with pytest.raises(ConfigError, match="local < trained"):
            Chunks(trained=trained, local=local)
    for changes in ({"rotary": None}, {"sinks": True}, {"softcap": 2.0}):
        with pytest.raises(ConfigError, match="rotated positions"):
            alike(DualChunkAttention, CHUNKS, config=dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize("variant", [{}, {"window": 9}, {"sinks": True}, {"softcap": 1.5}])
@pytest.mark.parametrize(("columns", "diagonals"), [(40, 0), (0, 40), (40, 40)])
def test_with_the_full_budget_sparse_is_dense(variant, columns, diagonals):
    config, x = dataclasses.replace(CONFIG, **variant), stream(40)
    budget = Budget(columns=columns, diagonals=diagonals, last=8, sinks=0, nearest=0)
    sparse = alike(VerticalSlashAttention, budget, config=config)
    dense = alike(Attention, config=config)
    np.testing.assert_allclose(out(sparse, x), out(dense, x), rtol=1e-11, atol=1e-12)


def test_what_is_kept():
    """One column and one diagonal that all queries want are found, and nothing else is kept."""
    time, dim = 32, 32
    query, key = np.zeros((1, 2, time, dim)), np.zeros((1, 2, time, dim))
    query[0, 0, :, 0] = 9.0
    key[0, 0, 11, 0] = 9.0  # head 0: everyone wants key 11
    query[0, 1] = 9.0 * np.roll(np.eye(time), -5, 1)  # head 1: everyone wants the key 5 back
    key[0, 1] = 9.0 * np.eye(time)
    budget = Budget(columns=1, diagonals=1, last=8, sinks=2, nearest=1)
    seen = kept(query, key, budget, 1.0)
    assert not seen[:, :, np.triu(np.ones((time, time), bool), 1)].any()
    assert seen[0, 0, 11:, 11].all()
    assert all(seen[0, 1, i, i - 5] for i in range(5, time))
    assert seen[0, :, 1:, :2].all()
    assert seen[0, :, np.arange(time), np.arange(time)].all()
    assert seen.sum(-1).max() <= 5


SPARSE = Budget(columns=3, diagonals=2, last=4, sinks=1, nearest=2)
WIDE = Chunks(trained=12, local=3)  # chunks of 9


def cuts(time, *places):
    """Where parts begin and end."""
    edges = sorted({0, time, *places})
    return list(itertools.pairwise(edges))


def chosen(scores, parts, budget):
    """By its definition, query by query and key by key: (heads, time, time) bool.

    parts: of queries that are estimated for together, (first, after the last) each.
    """
    heads, time, _ = scores.shape
    seen = np.zeros(scores.shape, bool)
    for head in range(heads):
        for first, end in parts:
            if end - first <= budget.last:
                seen[head, first:end] = np.tri(time, dtype=bool)[first:end]
                continue
            columns, slashes = np.zeros(end), np.zeros(end)
            for i in range(end - budget.last, end):
                for j, p in enumerate(softmax(scores[head, i, : i + 1])):
                    columns[j] += p
                    slashes[i - j] += p
            best = {*np.argsort(-columns)[: budget.columns], *range(budget.sinks)}
            lines = {*np.argsort(-slashes)[: budget.diagonals], *range(budget.nearest)}
            for i in range(first, end):
                seen[head, i, : i + 1] = [j in best or i - j in lines for j in range(i + 1)]
    return seen


def in_pieces(layer, x, *places):
    """What a layer gives where a prompt comes in pieces, through a cache."""
    cache, past, found = layer.new_cache(), np.empty((1, 0), int), []
    with mt.no_grad():
        for first, end in cuts(x.shape[1], *places):
            at = place(end - first, None, past, x.shape[1], "cpu")
            found.append(layer(x[:, first:end], at, cache).numpy())
            past = at.key
    return np.concatenate(found, 1)


@pytest.mark.parametrize("pieces", [(), (9, 18), (7, 20, 22), (30,)])
def test_sparse_chunks_are_their_formula(pieces):
    """The estimate has the scores of the full matrix, chunk by chunk and piece by piece."""
    x, layer = stream(31, 1), alike(SparseDualChunkAttention, WIDE, SPARSE)
    scores, value = scores_by_formula(layer, x, lambda i, j: shown(i, j, WIDE))
    seen = chosen(scores, cuts(31, *pieces, 9, 18, 27), SPARSE)
    mixed = softmax(np.where(seen, scores, -np.inf)) @ value
    expected = layer.join(mt.from_numpy(mixed[None])).detach().numpy()
    assert seen.sum() < 0.9 * np.isfinite(scores).sum()
    np.testing.assert_allclose(in_pieces(layer, x, *pieces), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pieces", [(), (16,), (7, 20, 22)])
def test_a_sparse_prompt_in_pieces_is_its_formula(pieces):
    x, layer = stream(31, 1), alike(VerticalSlashAttention, SPARSE)
    scores, value = scores_by_formula(layer, x, lambda i, j: i - j)
    seen = chosen(scores, cuts(31, *pieces), SPARSE)
    mixed = softmax(np.where(seen, scores, -np.inf)) @ value
    expected = layer.join(mt.from_numpy(mixed[None])).detach().numpy()
    np.testing.assert_allclose(in_pieces(layer, x, *pieces), expected, rtol=1e-10, atol=1e-12)


def test_chosen_by_plain_distances_less_of_the_probability_is_read():
    """The negative control: beyond the first chunks other pairs are chosen, and worse ones."""
    recalled = {"shown": [], "plain": []}
    parts, budget = cuts(72, *range(0, 72, 9)), dataclasses.replace(SPARSE, sinks=0, nearest=1)
    for seed in range(6):
        x, layer = stream(72, 1, seed), alike(SparseDualChunkAttention, WIDE, budget)
        scores, _ = scores_by_formula(layer, x, lambda i, j: shown(i, j, WIDE))
        plain, _ = scores_by_formula(layer, x, lambda i, j: i - j)
        one, other = (chosen(part, parts, budget) for part in (scores, plain))
        assert (one[:, :9] == other[:, :9]).all()
        assert (one[:, 27:] != other[:, 27:]).any((0, 2)).mean() > 0.5
        for name, seen in (("shown", one), ("plain", other)):
            recalled[name].append((softmax(scores) * seen).sum(-1)[:, 27:].mean())
    assert np.mean(recalled["shown"]) > np.mean(recalled["plain"]) + 0.02


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("columns", "diagonals"), [(40, 0), (0, 40)])
@pytest.mark.parametrize("pieces", [(), (13, 25)])
def test_with_the_full_budget_sparse_chunks_are_dense(window, columns, diagonals, pieces):
    config, x = dataclasses.replace(CONFIG, window=window), stream(40)
    budget = Budget(columns=columns, diagonals=diagonals, last=4, sinks=0, nearest=0)
    sparse = alike(SparseDualChunkAttention, WIDE, budget, config=config)
    dense = alike(DualChunkAttention, WIDE, config=config)
    np.testing.assert_allclose(in_pieces(sparse, x, *pieces), out(dense, x), rtol=1e-11, atol=1e-12)


def test_inside_a_chunk_it_is_plain_sparse_attention():
    x, chunks = stream(40), Chunks(trained=64, local=20)
    sparse, plain = (
        alike(SparseDualChunkAttention, chunks, SPARSE),
        alike(VerticalSlashAttention, SPARSE),
    )
    np.testing.assert_allclose(out(sparse, x), out(plain, x), rtol=1e-11, atol=1e-12)


def test_sparse_chunks_are_dense_in_training_and_decoding_and_each_text_is_its_own():
    x, sparse = stream(40), alike(SparseDualChunkAttention, WIDE, SPARSE)
    dense = alike(DualChunkAttention, WIDE)
    assert np.abs(out(sparse, x) - out(dense, x)).max() > 1e-3
    np.testing.assert_array_equal(out(sparse.train(), x), out(dense, x))
    one_by_one = in_pieces(sparse.eval(), x, *range(40))
    np.testing.assert_allclose(one_by_one, out(dense, x), rtol=1e-11, atol=1e-12)
    padded = out(sparse, x, np.arange(40) >= np.array([[0], [7]]))
    np.testing.assert_allclose(padded[1, 7:], out(sparse, x[1:, 7:])[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [alike(VerticalSlashAttention, SPARSE), alike(SparseDualChunkAttention, WIDE, SPARSE)],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_read_sparsely_has_gradients(layer):
    """Of what was chosen: the choice itself has none."""
    x, cotangent = stream(31).requires_grad_(), stream(31, seed=1)
    (layer(x, context(31)) * cotangent).sum().backward()
    direction = stream(31, seed=2)
    more, less = (out(layer, x.detach() + direction * h) for h in (1e-6, -1e-6))
    slope = ((more - less) * cotangent.numpy()).sum() / 2e-6
    assert (x.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        (None, VerticalSlashAttention),
        ({"chunk_size": 12, "local_size": 3}, SparseDualChunkAttention),
    ],
)
def test_a_model_s_prompt_is_read_sparsely(chunks, kind):
    """In pieces of whole chunks as at once; with a full budget as without one."""
    config = dataclasses.replace(MODEL, dual_chunk_attention_config=chunks)
    ids = mt.from_numpy(np.random.default_rng(0).integers(0, 19, (2, 36)))
    found = []
    for prefill in (None, {"columns": 36, "diagonals": 0, "last": 4}, dataclasses.asdict(SPARSE)):
        model = dataclasses.replace(config, sparse_prefill=prefill).build(FLOAT64, None).eval()
        rng = np.random.default_rng(1)
        for param in model.parameters():
            param.data[...] = rng.standard_normal(param.shape) / 2
        assert (prefill is not None) == all(type(x.self_attn) is kind for x in model.layers)
        with mt.no_grad():
            found.append(model(ids)[0].numpy())
            cache = model.new_cache()
            parts = [model(ids[:, i : i + 9], cache=cache)[0].numpy() for i in range(0, 36, 9)]
        if chunks or prefill is None:
            np.testing.assert_allclose(np.concatenate(parts, 1), found[-1], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-10)
    assert np.abs(found[2] - found[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, "chunk_size and local_size"),
        (
            {"dual_chunk_attention_config": {"chunk_size": 8, "local_size": 8}},
            "0 < local < trained",
        ),
        ({"sparse_prefill": {"columns": 4}}, "columns and diagonals"),
        ({"sparse_prefill": {"columns": 4, "diagonals": 4, "rows": 1}}, "rows"),
        ({"sparse_prefill": {"columns": -1, "diagonals": 4}}, "columns to be an integer of at"),
        ({"sparse_prefill": {"columns": 4, "diagonals": 4, "last": 0}}, "last to be an integer of"),
        ({"sparse_prefill": {"columns": 4.0, "diagonals": 4}}, "got 4.0"),
    ],
    ids=str,
)
def test_a_configuration_that_means_nothing_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(MODEL, **wrong)


def test_only_a_prompt_is_read_sparsely():
    budget = Budget(columns=2, diagonals=2, last=8, sinks=1, nearest=2)
    sparse, dense, x = alike(VerticalSlashAttention, budget), alike(Attention), stream(40)
    assert np.abs(out(sparse, x) - out(dense, x)).max() > 1e-3
    np.testing.assert_array_equal(out(sparse.train(), x), out(dense, x))
    short = stream(8)
    np.testing.assert_array_equal(out(sparse.eval(), short), out(dense, short))
