"""The shared decoder beyond what every language model does (test_language_models.py): windows,
positions, where norms stand, counting without memory, devices."""

import dataclasses
import math

import numpy as np
import pytest

import minitorch as mt
from minitorch import nn
from minitorch.errors import ConfigError, ShapeError
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.context import place
from models.blocks.feed_forward import FeedForward
from models.blocks.positions import LearnedPositions, Rotary, SinusoidalPositions, sinusoids
from models.blocks.residual import deepnorm, normalised, post_norm, pre_norm, scaled_post_norm
from models.decoder import Block, Decoder, DecoderConfig
from models.llama import LlamaConfig
from tests.models.small import MASK, SMALL, VARIANTS, Varied, logits_of, randomised, tokens, varied

DYNAMIC = Rotary(4, 100.0, {"rope_type": "dynamic", "factor": 2.0}, 4)


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


def test_bad_sizes_are_refused():
    for field in ("vocab_size", "num_hidden_layers", "intermediate_size"):
        with pytest.raises(ConfigError, match=field):
            dataclasses.replace(SMALL, **{field: 0})
    with pytest.raises(ConfigError, match="divisor of num_attention_heads"):
        dataclasses.replace(SMALL, num_key_value_heads=4)
    with pytest.raises(ConfigError, match="llama-2-7b"):
        LlamaConfig.preset("llama-4")


def test_counting_allocates_nothing():
    assert LlamaConfig.preset("llama-3.1-405b").num_parameters() == 405_853_388_800
    for tied in (False, True):
        config = dataclasses.replace(SMALL, tie_word_embeddings=tied)
        assert Decoder(config).num_parameters() == config.num_parameters()


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


def test_the_weights_of_deepnorm():
    """Wang et al. 2022, table 1, decoders: α = (2 M)^(1/4) and β = (8 M)^(-1/4)."""
    assert deepnorm(8) == pytest.approx((2.0, 8**-0.5))
    for layers in (1, 18, 1000):
        alpha, beta = deepnorm(layers)
        assert (alpha**4, beta**-4) == pytest.approx((2 * layers, 8 * layers))


def test_norms_of_queries_and_keys():
    """Every head by itself, before the rotation; their size then says nothing to the scores."""
    layer = randomised(varied(qk_norm=1e-6)).layers[0].self_attn
    plain = randomised(SMALL).layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(plain, name).weight.data[...] = getattr(layer, name).weight.data
    x = mt.from_numpy(np.random.default_rng(0).standard_normal((2, 5, 12)))
    context = place(5, None, np.empty((1, 0), int), None, "cpu")
    normed, raw = (
        [part.detach().numpy() for part in made.project(x, context)] for made in (layer, plain)
    )
    for found, before, norm in zip(normed, raw, (layer.q_norm, layer.k_norm), strict=False):
        for index in np.ndindex(before.shape[:3]):
            vector = before[index]
            expected = vector / math.sqrt((vector @ vector) / 4 + 1e-6) * norm.weight.data
            np.testing.assert_allclose(found[index], expected, rtol=1e-12)
    np.testing.assert_array_equal(normed[2], raw[2])
    before = layer(x, context).detach().numpy()
    layer.q_proj.weight.data *= 100.0
    np.testing.assert_allclose(layer(x, context).detach().numpy(), before, rtol=1e-4, atol=1e-6)


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
