"""Positions: what rotations depend on, and every way of stretching them, typed again by hand."""

import math

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.context import place
from models.blocks.positions import (
    SCALINGS,
    Rotary,
    alibi_slopes,
    log_scaling,
    ntk_base,
    sinusoids,
)

TRAINED = "original_max_position_embeddings"
SETTINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "ntk": {"factor": 4.0},
    "dynamic": {"factor": 4.0, TRAINED: 16},
    "qwen_dynamic": {TRAINED: 16},
    "yarn": {"factor": 4.0, TRAINED: 64, "beta_fast": 8.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, TRAINED: 64},
}
kinds = pytest.mark.parametrize("kind", SETTINGS)


def rotary(kind="default", dim=8, base=100.0, **options):
    return Rotary(dim, base, {"rope_type": kind, **SETTINGS[kind]}, **options)


def turned(rope, x, positions):
    """x: (features,) at each of the positions: (positions, features)."""
    rows = np.broadcast_to(x, (1, 1, len(positions), len(x))).copy()
    context = place(len(positions), None, np.empty((1, 0), int), 64, "cpu")
    return rope.at(np.array([positions]), mt.from_numpy(rows), context, "these").numpy()[0, 0]


def vectors(count, dim=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim))


@kinds
@pytest.mark.parametrize("interleaved", [False, True])
def test_products_depend_on_the_difference_of_positions_alone(kind, interleaved):
    query, key = vectors(2)
    rope = rotary(kind, interleaved=interleaved)
    m, n = np.arange(5, 45), np.arange(0, 40)
    products = (turned(rope, query, m) * turned(rope, key, n)).sum(1)
    np.testing.assert_allclose(products, products[0], rtol=1e-11)
    other = (turned(rope, query, m + 1) * turned(rope, key, n)).sum(1)
    assert abs(other[0] - products[0]) > 1e-3


@kinds
def test_halves_are_interleaved_pairs_in_another_order(kind):
    x = vectors(1)[0]
    order = np.arange(8).reshape(4, 2).T.ravel()  # 0 2 4 6 1 3 5 7
    halves = turned(rotary(kind), x[order], np.arange(9))
    pairs = turned(rotary(kind, interleaved=True), x, np.arange(9))
    np.testing.assert_allclose(halves, pairs[:, order], rtol=1e-12, atol=1e-14)


@kinds
def test_rotations_keep_lengths_but_for_yarns_temperature(kind):
    x = vectors(1)[0]
    lengths = np.linalg.norm(turned(rotary(kind), x, np.arange(9)), axis=1)
    factor = 0.1 * math.log(4.0) + 1 if kind == "yarn" else 1.0
    np.testing.assert_allclose(lengths, factor * np.linalg.norm(x), rtol=1e-12)


@pytest.mark.parametrize("time", [1, 2])
def test_every_row_at_positions_of_its_own(time):
    rope, x = rotary(), np.random.default_rng(0).standard_normal((3, 2, time, 8))
    positions = np.array([[4, 5], [0, 1], [7, 3]])[:, :time]
    context = place(time, None, np.empty((1, 0), int), 64, "cpu")
    found = rope.at(positions, mt.from_numpy(x), context, "these").numpy()
    for row, heads in enumerate(x):
        for head, vectors in enumerate(heads):
            alone = [turned(rope, v, [m])[0] for v, m in zip(vectors, positions[row], strict=True)]
            np.testing.assert_array_equal(found[row, head], alone)


def test_part_of_the_features():
    x = vectors(1, 12)[0]
    out = turned(rotary(), x, np.arange(9))
    np.testing.assert_array_equal(out[:, 8:], np.broadcast_to(x[8:], (9, 4)))
    np.testing.assert_allclose(out[:, :8], turned(rotary(), x[:8], np.arange(9)), rtol=1e-14)


def by_hand(kind, i, dim, base, length):
    """The frequency of pair i, one number at a time."""
    plain = base ** (-2 * i / dim)
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / 4
    if kind in ("ntk", "dynamic", "qwen_dynamic"):
        stretch = {
            "ntk": 4.0,
            "dynamic": 4.0 * length / 16 - 3 if length > 16 else 1.0,
            "qwen_dynamic": max(2 ** math.ceil(math.log(length / 16, 2) + 1) - 1, 1),
        }[kind]
        return (base * stretch ** (dim / (dim - 2))) ** (-2 * i / dim)
    turns = 64 * plain / (2 * math.pi)
    if kind == "yarn":

        def pair(times):
            return dim * math.log(64 / (times * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(math.floor(pair(8.0)), 0), min(math.ceil(pair(1.0)), dim - 1)
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        return plain * (1 - ramp) + plain / 4 * ramp
    wavelength = 2 * math.pi / plain
    if wavelength < 64 / 4.0:
        return plain
    if wavelength > 64 / 1.0:
        return plain / 8
    smooth = (turns - 1.0) / (4.0 - 1.0)
    return (1 - smooth) * plain / 8 + smooth * plain


@kinds
@pytest.mark.parametrize("length", [1, 9, 16, 17, 33, 64])
def test_frequencies_are_the_formulas(kind, length):
    dim, base = 16, 200.0
    found, _ = rotary(kind, dim, base).scaled(length)
    expected = [by_hand(kind, i, dim, base, length) for i in range(dim // 2)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_slowest_pair_turns_factor_times_as_slowly_with_the_ntk_base():
    slow = ntk_base(100.0, 4.0, 16) ** (-14 / 16)
    assert slow == pytest.approx(100.0 ** (-14 / 16) / 4)


def test_yarn_keeps_what_is_fast_and_interpolates_what_is_slow():
    plain = 10_000.0 ** (-np.arange(0, 128, 2) / 128)
    settings = {"rope_type": "yarn", "factor": 8.0, TRAINED: 4096}
    found, factor = Rotary(128, 10_000.0, settings).scaled(1)
    turns = 4096 * plain / (2 * math.pi)
    fast, slow = turns > 2 * 32, turns < 0.5
    assert fast.any()
    assert slow.any()
    np.testing.assert_allclose(found[fast], plain[fast])
    np.testing.assert_allclose(found[slow], plain[slow] / 8)
    assert (np.diff(found / plain) <= 1e-12).all()
    assert factor == pytest.approx(1.2079441541679836)  # 0.1 ln 8 + 1


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({}, 1.1386294361119891),
        ({"attention_factor": 0.7}, 0.7),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.707, "mscale_all_dim": 1.0}, 1.0980110113 / 1.1386294361),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_yarns_temperature(settings, factor):
    yarn = {"rope_type": "yarn", **SETTINGS["yarn"], **settings}
    assert Rotary(8, 100.0, yarn).scaled(1)[1] == pytest.approx(factor, rel=1e-9)


def test_dynamic_scaling_does_nothing_up_to_the_trained_length():
    for kind in ("dynamic", "qwen_dynamic"):
        for length in (1, 8, 15, 16):
            np.testing.assert_array_equal(
                rotary(kind).scaled(length)[0], rotary("default").scaled(length)[0]
            )
        assert (rotary(kind).scaled(17)[0][1:] < rotary("default").scaled(17)[0][1:]).all()


def test_a_trained_length_stands_in_for_one_that_is_not_named():
    named = Rotary(8, 100.0, {"rope_type": "dynamic", "factor": 2.0, TRAINED: 16})
    unnamed = Rotary(8, 100.0, {"type": "dynamic", "factor": 2.0}, 16)
    np.testing.assert_array_equal(named.scaled(50)[0], unnamed.scaled(50)[0])


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "longrope"}, "default, linear, ntk"),
        ({"rope_type": "yarn", "factor": 4.0}, TRAINED),
        ({"rope_type": "linear", "factor": 4.0, "speed": 1}, "speed"),
    ],
)
def test_unknown_scalings_are_refused(scaling, message):
    with pytest.raises(ConfigError, match=message):
        Rotary(8, 100.0, scaling)
    assert set(SCALINGS) == set(SETTINGS)


def test_odd_heads_are_refused():
    with pytest.raises(ConfigError, match="even"):
        Rotary(7)


def test_a_step_at_the_same_places_finds_the_tables_of_the_one_before():
    rope, nothing = rotary("dynamic"), np.empty((1, 0), int)

    def tables(length, dtype=np.float32, planned=None, past=nothing):
        at = place(length, None, past, planned, "cpu")
        return [x.numpy() for x in rope.step(np.dtype(dtype), at)]

    first = tables(20)
    assert all(a is b for a, b in zip(first, tables(20), strict=True))
    for cos, sin in (
        tables(19),
        tables(20, np.float64),
        tables(20, planned=40),
        tables(20, past=np.arange(3)[None]),
    ):
        assert cos is not first[0]
        assert not np.array_equal(cos, first[0])
        np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-6)
    np.testing.assert_array_equal(tables(20)[0], first[0])


def test_slopes_of_linear_biases():
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(4), 2.0 ** -np.array([2, 4, 6, 8]))
    of_12 = [*2.0 ** -np.arange(1, 9), *2.0 ** -np.array([0.5, 1.5, 2.5, 3.5])]
    np.testing.assert_allclose(alibi_slopes(12), of_12)  # the published code's


def test_logarithmic_scaling():
    found = log_scaling(np.array([0, 6, 7, 8, 63]), 8)
    np.testing.assert_allclose(found, [1, 1, 1, math.log(9) / math.log(8), 2])


def test_logarithmic_scaling_is_nothing_up_to_the_trained_length():
    """Then attention is one operation; the same tokens, begun a longer text, go by parts."""
    sizes = {"hidden_size": 8, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4}
    rope = Rotary(4, 10_000.0, None, 16)
    made, plain = (
        Attention(
            AttentionConfig(**sizes, rotary=rope, trained_length=trained),
            np.dtype(np.float64),
            mt.Generator(0),
        )
        for trained in (6, None)
    )
    x = mt.Tensor(np.random.default_rng(0).standard_normal((2, 9, 8)))

    def attended(layer, time):
        at = place(time, None, np.empty((1, 0), int), None, "cpu")
        assert (layer._turned_alone(at) is None) == (layer is made and time > 6)
        return layer(x[:, :time], at).detach().numpy()

    short, whole = attended(made, 6), attended(made, 9)
    np.testing.assert_array_equal(short, attended(plain, 6))
    np.testing.assert_allclose(whole[:, :6], short, atol=1e-14)
    assert np.abs(whole - attended(plain, 9))[:, 6:].min() > 1e-9


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_heads_are_one_operation_in_mixed_precision_unless_of_8_bits(dtype):
    config = AttentionConfig(
        hidden_size=8, num_heads=2, num_kv_heads=2, head_dim=4, rotary=Rotary(4, 100.0, None, 16)
    )
    layer = Attention(config, np.dtype(np.float32), mt.Generator(0))
    with mt.autocast(dtype):
        out = layer(mt.randn(2, 3, 8), place(3, None, np.empty((1, 0), int), None, "cpu"))
    heads = out._node.edges[0].name
    assert heads == ("rotary_attention" if dtype == "float8" else "rotary_self_attention")


def test_sinusoids():
    table = sinusoids(5, 6)
    assert table.shape == (5, 6)
    for m in range(5):
        for i in range(3):
            angle = m / 10_000 ** (2 * i / 6)
            assert table[m, 2 * i] == pytest.approx(math.sin(angle))
            assert table[m, 2 * i + 1] == pytest.approx(math.cos(angle))
