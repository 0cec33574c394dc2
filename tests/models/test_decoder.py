"""The shared decoder: a formula typed again in NumPy, padding, caches, and its initial weights."""

import dataclasses
import math

import numpy as np
import pytest

import minitorch as mt
from minitorch import nn
from minitorch.errors import ConfigError, DtypeError, GraphError, ShapeError
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.context import place
from models.blocks.feed_forward import FeedForward
from models.blocks.positions import LearnedPositions, Rotary, SinusoidalPositions, sinusoids
from models.blocks.residual import normalised, post_norm, pre_norm, scaled_post_norm
from models.decoder import Block, Decoder, DecoderConfig
from models.llama import LlamaConfig

SMALL = LlamaConfig(
    vocab_size=19,
    hidden_size=12,
    num_hidden_layers=2,
    max_position_embeddings=32,
    intermediate_size=20,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    rope_theta=100.0,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Varied(LlamaConfig):
    """A Llama with any variant of attention."""

    variant: dict = dataclasses.field(default_factory=dict)

    def attention(self, layer):
        return dataclasses.replace(super().attention(layer), **self.variant)


def varied(**variant):
    return Varied(**dataclasses.asdict(SMALL), variant=variant)


def randomised(config, dtype=np.float64, seed=0):
    """A model none of whose parameters is 0 or 1."""
    model = Decoder(config, dtype)
    rng = np.random.default_rng(seed)
    for name, param in model.named_parameters():
        middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        param.data[...] = middle + 0.3 * rng.standard_normal(param.shape)
    return model


def tokens(shape, seed=1):
    return np.random.default_rng(seed).integers(0, SMALL.vocab_size, shape)


def logits_of(model, ids, cache=None, mask=None):
    mask = None if mask is None else mt.from_numpy(np.ascontiguousarray(mask))
    with mt.no_grad():
        return model(mt.from_numpy(np.ascontiguousarray(ids)), cache=cache, mask=mask)[0].numpy()


def formula(model, ids):
    """The logits of one sequence, token by token and head by head."""
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config, d = model.config, model.config.head_dim

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * w[name]

    def turned(x, position):
        out = np.empty_like(x)
        for i in range(d // 2):
            angle = position * config.rope_theta ** (-2 * i / d)
            a, b = x[i], x[i + d // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + d // 2] = a * math.sin(angle) + b * math.cos(angle)
        return out

    x = w["embed_tokens.weight"][ids]
    for i in range(config.num_hidden_layers):
        at = f"layers.{i}."
        h = norm(x, at + "input_layernorm.weight")
        q, k, v = (h @ w[f"{at}self_attn.{name}_proj.weight"].T for name in "qkv")
        out = np.zeros((len(ids), config.num_attention_heads * d))
        for head in range(config.num_attention_heads):
            group = head // (config.num_attention_heads // config.num_key_value_heads)
            mine, theirs = slice(head * d, (head + 1) * d), slice(group * d, (group + 1) * d)
            for t in range(len(ids)):
                query = turned(q[t, mine], t)
                scores = np.array([query @ turned(k[s, theirs], s) for s in range(t + 1)])
                probs = np.exp(scores / math.sqrt(d))
                out[t, mine] = probs / probs.sum() @ v[: t + 1, theirs]
        x = x + out @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (h @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
    return norm(x, "norm.weight") @ w["lm_head.weight"].T


@pytest.mark.parametrize("time", [1, 5, 9])
def test_logits_and_loss_are_the_formula(time):
    model = randomised(SMALL)
    ids, targets = tokens((2, time)), tokens((2, time), seed=2)
    targets[0, 0] = -100 if time > 1 else targets[0, 0]
    logits, loss = model(mt.from_numpy(ids), mt.from_numpy(targets))
    expected = np.stack([formula(model, row) for row in ids])
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-10, atol=1e-11)
    log_probs = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    rows, columns = np.nonzero(targets != -100)
    picked = log_probs[rows, columns, targets[rows, columns]]
    assert loss.item() == pytest.approx(-picked.mean(), rel=1e-10)
    alone = model.loss(mt.from_numpy(ids), mt.from_numpy(targets))
    assert alone.item() == pytest.approx(-picked.mean(), rel=1e-10)


VARIANTS = {
    "plain": {},
    "multi-query": {"num_kv_heads": 1},
    "multi-head": {"num_kv_heads": 6},
    "biases": {"qkv_bias": True, "out_bias": True},
    "norms": {"qk_norm": 1e-6},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "sinks": {"sinks": True, "window": 4},
    "softcap": {"softcap": 2.0, "scale": 0.7},
    "linear biases": {"rotary": None, "alibi": True},
    "linear biases, window": {"rotary": None, "alibi": True, "window": 3},
    "logarithmic": {"trained_length": 4},
    "partial, interleaved": {"rotary": Rotary(2, 50.0, interleaved=True)},
}
DYNAMIC = Rotary(4, 100.0, {"rope_type": "dynamic", "factor": 2.0}, 4)
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@variants
@pytest.mark.parametrize("parts", [[1] * 9, [5, 1, 3], [2, 7], [8, 1]], ids=str)
def test_cached_is_uncached(variant, parts):
    """In one piece, one by one, or in any pieces: the logits of every position are the same."""
    model = randomised(varied(**variant)).eval()
    ids = tokens((3, 9))
    whole, cache, at = logits_of(model, ids), model.new_cache(), np.cumsum(parts)[:-1]
    pieces = [logits_of(model, piece, cache) for piece in np.split(ids, at, axis=1)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=1e-10, atol=1e-11)


MASK = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1],
    ],
    bool,
)


@variants
@pytest.mark.parametrize("parts", [None, [1] * 9, [4, 1, 4], [6, 3]], ids=str)
def test_padding_on_any_side_changes_nothing(variant, parts):
    """Each row gives what its tokens give alone, cached or not."""
    model = randomised(varied(**variant)).eval()
    ids = tokens(MASK.shape)
    if parts is None:
        together = logits_of(model, ids, mask=MASK)
    else:
        cache, at = model.new_cache(), np.cumsum(parts)[:-1]
        together = np.concatenate(
            [
                logits_of(model, *piece[:1], cache, *piece[1:])
                for piece in zip(np.split(ids, at, 1), np.split(MASK, at, 1))
            ],
            1,
        )
    for row, real, logits in zip(ids, MASK, together):
        alone = logits_of(model, row[None, real])[0]
        np.testing.assert_allclose(logits[real], alone, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("parts", [[1] * 9, [5, 1, 3], [2, 7]], ids=str)
def test_positions_scaled_by_length_stay_as_they_were_planned(parts):
    """Keys in the cache were turned for a length; it is the planned one from the first step on."""
    model = randomised(varied(rotary=DYNAMIC)).eval()
    ids, at = tokens((3, 9)), np.cumsum(parts)[:-1]
    whole = logits_of(model, ids)
    cache = model.new_cache(planned=9)
    planned = [logits_of(model, piece, cache) for piece in np.split(ids, at, axis=1)]
    np.testing.assert_allclose(np.concatenate(planned, 1), whole, rtol=1e-10, atol=1e-11)
    cache = model.new_cache()
    unplanned = [logits_of(model, piece, cache) for piece in np.split(ids, at, axis=1)]
    first = logits_of(model, ids, model.new_cache(planned=parts[0]))
    np.testing.assert_allclose(np.concatenate(unplanned, 1), first, rtol=1e-10, atol=1e-11)
    assert np.abs(first - whole).max() > 1e-3


def test_padded_rows_have_the_gradients_of_rows_alone():
    model = randomised(SMALL)
    ids = tokens(MASK.shape)
    targets = np.where(MASK, tokens(MASK.shape, seed=2), -100)
    model.loss(*(mt.from_numpy(x) for x in (ids, targets, MASK))).backward()
    together = {name: param.grad.numpy().copy() for name, param in model.named_parameters()}
    model.zero_grad()
    for row, real, target in zip(ids, MASK, targets):
        part = model.loss(mt.from_numpy(row[None, real]), mt.from_numpy(target[None, real]))
        (part * (real.sum() / MASK.sum())).backward()
    for name, param in model.named_parameters():
        np.testing.assert_allclose(together[name], param.grad.numpy(), rtol=1e-9, atol=1e-12)


@variants
def test_gradient_is_the_slope_along_a_random_direction(variant):
    model = randomised(varied(**variant))
    ids, targets = mt.from_numpy(tokens((2, 6))), mt.from_numpy(tokens((2, 6), seed=2))
    mask = mt.from_numpy(MASK[[0, 2], :6])
    model.loss(ids, targets, mask).backward()
    rng = np.random.default_rng(3)
    for name, param in model.named_parameters():
        start, direction = param.data.copy(), rng.standard_normal(param.shape)
        losses = []
        for h in (1e-5, -1e-5):
            param.data[...] = start + h * direction
            with mt.no_grad():
                losses.append(model.loss(ids, targets, mask).item())
        param.data[...] = start
        slope = (losses[0] - losses[1]) / 2e-5
        assert (param.grad.numpy() * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8), (
            name
        )


def test_a_window_hides_what_is_older():
    model = randomised(varied(window=2))
    ids = tokens((1, 9))
    changed = ids.copy()
    changed[0, 2] = (ids[0, 2] + 1) % SMALL.vocab_size
    before, after = logits_of(model, ids), logits_of(model, changed)
    moved = (np.abs(before - after)[0].max(-1) > 1e-9).nonzero()[0]
    np.testing.assert_array_equal(moved, [2, 3, 4])  # one further back for each of two layers


def test_a_window_bounds_the_cache():
    model = randomised(varied(window=4)).eval()
    full, windowed = randomised(SMALL).eval().new_cache(), model.new_cache()
    for piece in np.split(tokens((1, 96)), 96, axis=1):
        logits_of(model, piece, windowed)
    assert windowed.length == 96
    assert all(layer.columns == 4 for layer in windowed.layers)
    assert windowed.nbytes <= 2 * 8 * 2 * 2 * 4 * 8  # layers, columns, k and v, heads, features
    logits_of(randomised(SMALL), tokens((1, 96)), full)
    assert full.nbytes == 2 * 128 * 2 * 2 * 4 * 8


def test_caches_refuse_what_they_cannot_hold():
    model = randomised(SMALL)
    with pytest.raises(GraphError, match="no_grad"):
        model(mt.from_numpy(tokens((2, 3))), cache=model.new_cache())
    cache = model.new_cache()
    logits_of(model, tokens((2, 5)), cache)
    with pytest.raises(ShapeError, match="new_cache"):
        logits_of(model, tokens((3, 1)), cache)


def test_bad_input_is_refused():
    model = Decoder(SMALL)
    with pytest.raises(ShapeError, match="batch, time"):
        model(mt.from_numpy(tokens(5)))
    with pytest.raises(DtypeError, match="integer"):
        model(mt.zeros(1, 3))
    with pytest.raises(ShapeError, match="mask"):
        model(mt.from_numpy(tokens((2, 3))), mask=mt.ones(2, 4))
    with pytest.raises(ShapeError, match=r"\[0, 19\)"):
        model(mt.from_numpy(np.array([[19]])))
    for field in ("vocab_size", "num_hidden_layers", "intermediate_size"):
        with pytest.raises(ConfigError, match=field):
            dataclasses.replace(SMALL, **{field: 0})
    with pytest.raises(ConfigError, match="divisor of num_attention_heads"):
        dataclasses.replace(SMALL, num_key_value_heads=4)
    with pytest.raises(ConfigError, match="llama-2-7b"):
        LlamaConfig.preset("llama-4")


def test_dropout_of_attention_acts_in_training_alone():
    mt.manual_seed(0)
    model = randomised(dataclasses.replace(SMALL, attention_dropout=0.5))
    ids = tokens(MASK.shape)
    for mask in (None, MASK):
        model.train()
        assert (logits_of(model, ids, mask=mask) != logits_of(model, ids, mask=mask)).any()
        model.eval()
        expected = logits_of(randomised(SMALL), ids, mask=mask)
        np.testing.assert_array_equal(logits_of(model, ids, mask=mask), expected)


def test_hidden_states_lead_to_the_features():
    model = randomised(SMALL)
    ids = mt.from_numpy(tokens((2, 5)))
    states = model.hidden_states(ids)
    assert len(states) == SMALL.num_hidden_layers + 1
    features = model.norm(states[-1]).detach().numpy()
    np.testing.assert_array_equal(features, model.features(ids).detach().numpy())


def test_counting_allocates_nothing():
    assert LlamaConfig.preset("llama-3.1-405b").num_parameters() == 405_853_388_800
    for tied in (False, True):
        config = dataclasses.replace(SMALL, tie_word_embeddings=tied)
        assert Decoder(config).num_parameters() == config.num_parameters()


def test_initial_weights():
    config = LlamaConfig.preset("toy", num_hidden_layers=2)
    for name, param in Decoder(config, generator=mt.Generator(0)).named_parameters():
        if "norm" in name:
            assert (param.data == 1).all()
        else:
            into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(4) if into_stream else 0.02
            assert param.data.std() == pytest.approx(std, rel=0.05), name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed(Varied):
    """Positions that are added to the embeddings."""

    learnt: bool = True

    def positions(self, dtype, generator):
        if self.learnt:
            return LearnedPositions(self.max_position_embeddings, self.hidden_size, dtype)
        return SinusoidalPositions(self.hidden_size, dtype)


@pytest.mark.parametrize("learnt", [True, False])
def test_added_positions(learnt):
    config = Placed(
        **{**dataclasses.asdict(SMALL), "max_position_embeddings": 9},
        variant={"rotary": None},
        learnt=learnt,
    )
    model = randomised(config).eval()
    ids = tokens(MASK.shape)
    table = model.embed_positions.weight.data if learnt else sinusoids(9, 12)
    embedded = model.hidden_states(mt.from_numpy(ids))[0].detach().numpy()
    np.testing.assert_allclose(embedded, model.embed_tokens.weight.data[ids] + table, rtol=1e-12)
    together = logits_of(model, ids, mask=MASK)
    for row, real, logits in zip(ids, MASK, together):
        np.testing.assert_allclose(logits[real], logits_of(model, row[None, real])[0], rtol=1e-9)
    cache = model.new_cache()
    pieces = [logits_of(model, piece, cache) for piece in np.split(ids, [4, 5], 1)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), logits_of(model, ids), rtol=1e-9)
    if learnt:
        with pytest.raises(ShapeError, match="at most 9 tokens"):
            logits_of(model, ids[:, :1], cache)
    else:
        logits_of(model, ids[:, :1], cache)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arranged(DecoderConfig):
    """Layers whose branches are added in any way."""

    residual: object = pre_norm
    sandwich: bool = False

    def block(self, layer, dtype, generator):
        attention = AttentionConfig(
            hidden_size=self.hidden_size, num_heads=2, num_kv_heads=2, head_dim=3
        )
        norms = [self.norm(dtype) for _ in range(4)]
        return Block(
            Attention(attention, dtype, generator),
            FeedForward(self.hidden_size, 7, "relu", dtype=dtype, generator=generator),
            tuple(norms[:2]),
            (self.residual, self.residual),
            tuple(norms[2:]) if self.sandwich else None,
        )


@pytest.mark.parametrize(
    ("residual", "sandwich", "expected"),
    [
        (pre_norm, False, lambda x, n, m, f: x + f(n(x))),
        (pre_norm, True, lambda x, n, m, f: x + m(f(n(x)))),
        (post_norm, False, lambda x, n, m, f: n(x + f(x))),
        (scaled_post_norm(1.7), False, lambda x, n, m, f: n(1.7 * x + f(x))),
        (normalised(1.3, 0.6), False, lambda x, n, m, f: 1.3 * n(x) + 0.6 * f(n(x))),
    ],
    ids=["pre", "sandwich", "post", "scaled", "normalised"],
)
def test_where_norms_stand(residual, sandwich, expected):
    config = Arranged(
        vocab_size=19,
        hidden_size=6,
        num_hidden_layers=1,
        max_position_embeddings=8,
        residual=residual,
        sandwich=sandwich,
    )
    model = randomised(config)
    block = model.layers[0]
    before, after = (state.detach() for state in model.hidden_states(mt.from_numpy(tokens((2, 5)))))
    context = place(5, None, np.empty((1, 0), int), None, "cpu")

    def formula(x, norm, outer, branch):
        def wrapped(module):
            return lambda a: module(mt.from_numpy(np.ascontiguousarray(a))).detach().numpy()

        return expected(x, wrapped(norm), wrapped(outer), wrapped(branch))

    x = formula(
        before.numpy(),
        block.input_layernorm,
        block.attention_output_norm,
        lambda h: block.self_attn(h, context),
    )
    x = formula(x, block.post_attention_layernorm, block.mlp_output_norm, block.mlp)
    np.testing.assert_allclose(after.numpy(), x, rtol=1e-12)


def test_parameters_without_memory_cannot_be_written():
    with nn.init.unallocated():
        layer = nn.Linear(1 << 20, 1 << 20)
    assert layer.num_parameters() == (1 << 40) + (1 << 20)
    assert not layer.weight.data[5, :5].any()
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.data[0, 0] = 1.0
    assert nn.Linear(2, 2).weight.data.any()


@pytest.mark.parametrize("variant", ["plain", "window", "biases", "norms"])
def test_on_a_device_it_is_the_same(variant):
    """Padded, and through a cache, with the device's kernels in the emulator."""
    pytest.importorskip("minitorch._simt", reason="the emulator was not built")
    model = randomised(varied(**VARIANTS[variant]), np.float32)
    batch = [mt.from_numpy(x) for x in (tokens((2, 5)), tokens((2, 5), seed=2), MASK[:2, :5])]
    found = []
    for device in ("cpu", "simt"):
        model.to(device)
        model.zero_grad()
        there = [x.to(device) for x in batch]
        loss = model.loss(*there)
        loss.backward()
        cache = model.new_cache()
        with mt.no_grad():
            steps = [model(there[0][:, part], cache=cache)[0] for part in (slice(4), slice(4, 5))]
        numbers = [loss, *(param.grad for param in model.parameters()), *steps]
        found.append([x.detach().to("cpu").numpy().copy() for x in numbers])
    for here, there in zip(*found, strict=True):
        np.testing.assert_allclose(there, here, rtol=2e-4, atol=2e-5)
