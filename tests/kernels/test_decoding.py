"""Blocks of a GPT for one new token, against the operations that it is made of."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minitorch as mt
from minitorch.errors import ConfigError, ShapeError
from minitorch.nn import functional as F

FIXTURES = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), mt.bfloat16]


def arrays(batch, heads, dim, time, hidden, dtype, biased, seed=0):
    """x, the parameters, keys and values, in the order of the kernel's."""
    rng = np.random.default_rng([seed, batch, heads, dim, time, hidden])
    width = heads * dim
    found = [rng.standard_normal((batch, 1, width))]
    weights = (width,), (3 * width, width), (width, width), (width,), (hidden, width)
    for shape in (*weights, (width, hidden)):
        found.append(rng.standard_normal(shape) / np.sqrt(shape[-1] if len(shape) > 1 else 1))
        found.append(rng.standard_normal(shape[0]) if biased else None)
    room = rng.standard_normal((2, batch, heads, time + 2, dim))  # a view, as a cache gives it
    rounded = [x if x is None else x.astype(dtype) for x in found]
    return [*rounded, *(x[:, :, 1 : time + 1] for x in room.astype(dtype))]


def following(norm, head, width, dtype):
    """A norm's weight and bias, and a head's weight, or None for what is not there."""
    rng = np.random.default_rng(width)
    found = rng.standard_normal(width), rng.standard_normal(width), rng.standard_normal((37, width))
    return [x.astype(dtype) if there else None for x, there in zip(found, (norm, norm, head))]


@FIXTURES
@given(
    batch=st.sampled_from([1, 2, 9]),
    heads=st.integers(1, 3),
    dim=st.sampled_from([1, 5, 16, 33]),
    time=st.sampled_from([1, 2, 17, 40]),
    hidden=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    biased=st.booleans(),
    activation=st.sampled_from(["relu", "silu", "gelu", "gelu_tanh"]),
    norm=st.booleans(),
    head=st.booleans(),
)
def test_decode_blocks(
    hold, batch, heads, dim, time, hidden, dtype, biased, activation, norm, head
):
    given = arrays(batch, heads, dim, time, hidden, dtype, biased)
    last = following(norm, head, heads * dim, dtype)
    hold("decode_blocks", *given, *last, eps=1e-3, activation=activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_of_several_widths_inside(hold, dtype):
    """Their feed-forward parts, and heads, need not be alike."""
    first = arrays(2, 3, 4, 6, 20, dtype, True)
    second = arrays(2, 2, 6, 9, 33, dtype, False, seed=1)
    third = arrays(2, 12, 1, 1, 5, dtype, True, seed=2)
    given = [*first, *second[1:], *third[1:], *following(True, True, 12, dtype)]
    hold("decode_blocks", *given, eps=1e-3, activation="gelu_tanh")


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_that_all_threads_share(hold, dtype, batch):
    """Columns enough for several pieces of each product."""
    given = arrays(batch, 4, 32, 50, 300, dtype, True)
    hold("decode_blocks", *given, *following(True, True, 128, dtype), eps=1e-3, activation="silu")


@pytest.mark.parametrize("last", [False, True], ids=["blocks", "with a norm and a head"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_composition_and_fills_the_cache(instruction_set, dtype, last):
    given = arrays(2, 3, 4, 6, 20, dtype, True)
    before = [x.copy() for x in given[-2:]]
    x, *parameters, keys, values = map(mt.tensor, (x.astype(np.float64) for x in given))
    norm_1, shift_1, qkv, qkv_bias, proj, proj_bias, norm_2, shift_2, *layers = parameters
    normed = F.layer_norm(x, (12,), norm_1, shift_1, 1e-5)
    query, key, value = F.linear(normed, qkv, qkv_bias).reshape(2, 3, 3, 1, 4).unbind(1)
    keys, values = (mt.cat([c[:, :, :-1], n], 2) for c, n in ((keys, key), (values, value)))
    mixed = F.scaled_dot_product_attention(query, keys, values)
    y = x + F.linear(mixed.transpose(1, 2).reshape(2, 1, 12), proj, proj_bias)
    normed = F.layer_norm(y, (12,), norm_2, shift_2, 1e-5)
    y = y + F.mlp(normed, layers[0], layers[2], layers[1], layers[3], "gelu_tanh")
    norm, shift, head = following(True, True, 12, dtype)
    wide = [mt.tensor(x.astype(np.float64)) for x in (norm, shift, head)]
    expected = y if not last else F.linear(F.layer_norm(y, (12,), *wide[:2], 1e-5), wide[2])

    norm, shift, head = map(mt.from_numpy, (norm, shift, head))
    out = run(given, norm=(norm, shift), head=head) if last else run(given)
    bound = {4: 1e-5, 8: 1e-12, 2: 5e-2}[dtype.itemsize]
    assert out.dtype == dtype
    np.testing.assert_allclose(out.numpy().astype(np.float64), expected.numpy(), atol=bound)
    for held, old, new in zip(given[-2:], before, (key, value), strict=True):
        np.testing.assert_array_equal(held[:, :, :-1], old[:, :, :-1])
        found = held[:, :, -1:].astype(np.float64)
        np.testing.assert_allclose(found, new.numpy(), atol=bound)


def run(given, **options):
    x, *others, keys, values = (None if a is None else mt.from_numpy(a) for a in given)
    pairs = [tuple(others[i : i + 2]) for i in range(0, 12, 2)]
    return F.decode_blocks(x, [F.DecodedBlock(*pairs, keys, values)], **options)


def test_float16_fills_the_cache():
    given = arrays(1, 2, 3, 4, 5, np.dtype(np.float16), True)
    given[-1][:, :, -1], given[-2][:, :, -1] = np.nan, np.nan
    assert np.isfinite(run(given).numpy()).all()
    assert np.isfinite(given[-1]).all()


def test_what_does_not_fit():
    given = arrays(2, 3, 4, 6, 20, np.dtype(np.float32), True)
    with pytest.raises(ConfigError, match="among relu, silu, gelu, gelu_tanh; got 'tanh'"):
        run(given, activation="tanh")
    for place, changed in [(0, given[0][:, [0, 0]]), (3, given[5]), (14, given[14][:, :2])]:
        with pytest.raises(ShapeError, match=r"decode_blocks: .*expected x \(batch, 1"):
            run([changed if i == place else x for i, x in enumerate(given)])
    with pytest.raises(ShapeError, match=r"decode_blocks: .*14 arrays of each block"):
        F.decode_blocks(mt.ones(1, 1, 4), [])
    for options in ({"norm": (mt.ones(11), None)}, {"head": mt.ones(5, 11)}):
        with pytest.raises(ShapeError, match=r"decode_blocks: .*a norm's weight and bias, \(12,\)"):
            run(given, **options)
