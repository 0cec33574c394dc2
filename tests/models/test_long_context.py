"""Attention for long texts: by chunks, and sparse in the prompt."""

import dataclasses

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from minitorch.random import Generator
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.context import PADDING, place, place_packed
from models.blocks.dual_chunk import Chunks, DualChunkAttention
from models.blocks.positions import Rotary
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


@pytest.mark.parametrize("chunks", [CHUNKS, Chunks(trained=9, local=1), Chunks(trained=6, local=5)])
def test_it_is_its_formula(chunks):
    """Every pair of positions by itself, the distance turned into the query alone."""
    time, x = 23, stream(23, 1)
    layer = alike(DualChunkAttention, chunks)
    query, key, value = (part.detach().numpy()[0] for part in layer.project(x, context(time)))
    theta = 50.0 ** (-np.arange(0, 6, 2) / 6)
    mixed = np.zeros((4, time, 6))
    for head in range(4):
        for i in range(time):
            scores = np.empty(i + 1)
            for j in range(i + 1):
                angle = shown(i, j, chunks) * theta
                a, b = np.split(query[head, i], 2)
                turned = [
                    a * np.cos(angle) - b * np.sin(angle),
                    b * np.cos(angle) + a * np.sin(angle),
                ]
                scores[j] = np.concatenate(turned) @ key[head // 2, j] / np.sqrt(6)
            probs = np.exp(scores - scores.max())
            mixed[head, i] = probs / probs.sum() @ value[head // 2, : i + 1]
    expected = layer.join(mt.from_numpy(mixed[None])).detach().numpy()
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


def test_only_a_prompt_is_read_sparsely():
    budget = Budget(columns=2, diagonals=2, last=8, sinks=1, nearest=2)
    sparse, dense, x = alike(VerticalSlashAttention, budget), alike(Attention), stream(40)
    assert np.abs(out(sparse, x) - out(dense, x)).max() > 1e-3
    np.testing.assert_array_equal(out(sparse.train(), x), out(dense, x))
    short = stream(8)
    np.testing.assert_array_equal(out(sparse.eval(), short), out(dense, short))
