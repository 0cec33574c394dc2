"""Elementary functions, activations and dropout, compiled: errors in units in the last place."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import special

import minitorch as mt
from minitorch import kernels

DTYPES = [np.dtype(np.float32), np.dtype(np.float64), mt.bfloat16]
FIXTURES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ELEMENTARY = {
    "exp": (np.exp, 1.2),
    "log": (np.log, 1.0),
    "tanh": (np.tanh, 2.8),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 2.5),
    "erf": (special.erf, 3.1),
}
"""The function, and how many units in the last place the kernel may be off in float32, float64."""


def points(dtype):
    """Every exponent, NaN and infinity among them, and many numbers where the functions bend."""
    rng = np.random.default_rng(0)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    limit = np.iinfo(unsigned).max
    bits = rng.integers(0, limit, 20_003, unsigned, endpoint=True).view(dtype)
    ranges = [rng.uniform(-width, width, 5000) for width in (1, 8, 90, 720)]
    return np.concatenate([bits, *[x.astype(dtype) for x in ranges]])


def widest(x):
    """As float64, or what is wider than that."""
    return x.astype(np.longdouble if x.dtype == np.float64 else np.float64)


def units(exact, dtype):
    """The unit in the last place of each, in numbers of dtype."""
    narrow = np.abs(exact).astype(np.float64 if dtype == np.float64 else np.float32)
    spacing = np.spacing(np.maximum(narrow, np.finfo(narrow.dtype).tiny))
    return spacing * 2.0**16 if dtype == mt.bfloat16 else spacing


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ELEMENTARY)
@np.errstate(all="ignore")
def test_elementary_functions(instruction_set, name, dtype):
    function, bound = ELEMENTARY[name]
    x = points(dtype)
    found = kernels.implementations(name)["cpu"](x)
    assert found.dtype == dtype
    if name == "erf":  # SciPy's has no wider type
        exact = function(x.astype(np.float64)).astype(widest(x).dtype)
    else:
        exact = function(widest(x))
    rounded = exact.astype(dtype).astype(widest(x).dtype)
    finite = np.isfinite(rounded)
    found = found.astype(widest(x).dtype)
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    error = np.abs(found - exact)[finite] / units(exact, dtype)[finite]
    if name == "sigmoid":  # 0 below the smallest normal number: one unit, as counted here
        tiny = exact[finite] < 2 * np.finfo(np.float32 if dtype != np.float64 else dtype).tiny
        assert (found[finite][tiny] <= 2 * exact[finite][tiny]).all()
        error = error[~tiny]
    assert error.max() <= (0.51 if dtype == mt.bfloat16 else bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(instruction_set, dtype):
    x = np.array([-np.inf, -0.0, 0.0, np.inf, np.nan], dtype)
    for name, expected in {
        "exp": [0, 1, 1, np.inf, np.nan],
        "log": [np.nan, -np.inf, -np.inf, np.inf, np.nan],
        "tanh": [-1, -0.0, 0.0, 1, np.nan],
        "sigmoid": [0, 0.5, 0.5, 1, np.nan],
        "erf": [-1, -0.0, 0.0, 1, np.nan],
    }.items():
        found = kernels.implementations(name)["cpu"](x).astype(np.float64)
        np.testing.assert_array_equal(found, expected, err_msg=name)
        if name in ("tanh", "erf"):
            np.testing.assert_array_equal(np.signbit(found), np.signbit(x))


@pytest.mark.parametrize("places", [np.s_[:], np.s_[::2], np.s_[5:5], np.s_[:1]])
@np.errstate(invalid="ignore")
def test_casts_to_bfloat16_round_to_the_nearest(instruction_set, threads, places):
    """Every exponent, halfway cases both ways, what overflows; and every bfloat16 back again."""
    cast = kernels.implementations("cast")["cpu"]
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32, endpoint=False)
    halfway = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000
    x = np.concatenate([bits, halfway, halfway - 1, halfway + 1]).view(np.float32)[places]
    for count in (1, 2):
        threads(count)
        found, expected = cast(x, dtype=mt.bfloat16), x.astype(mt.bfloat16)
        assert (np.isnan(found) == np.isnan(x)).all()
        numbers = ~np.isnan(x)
        assert found[numbers].tobytes() == expected[numbers].tobytes()
    every = np.arange(2**16, dtype=np.uint16).view(mt.bfloat16)[places]
    np.testing.assert_array_equal(cast(every, dtype=np.dtype(np.float32)), every.astype(np.float32))


SHAPES = st.sampled_from([(), (1,), (0,), (3, 0, 2), (17,), (5, 33), (2, 3, 130), (70000,)])
LAYOUTS = st.sampled_from(["plain", "transposed", "strided"])


def draw(shape, dtype, layout="plain", seed=0):
    rng = np.random.default_rng([seed, *shape])
    if layout == "transposed":
        return (3 * rng.standard_normal(shape[::-1])).astype(dtype).T
    if layout == "strided" and shape:
        wide = 3 * rng.standard_normal((*shape[:-1], 2 * shape[-1]))
        return wide.astype(dtype)[..., ::-2]
    return np.asarray(3 * rng.standard_normal(shape)).astype(dtype)


@FIXTURES
@given(SHAPES, st.sampled_from(DTYPES), LAYOUTS)
def test_every_shape_and_layout(hold, shape, dtype, layout):
    x, grad = draw(shape, dtype, layout), draw(shape, dtype, seed=1)
    for name in ("tanh", "erf", "sigmoid", "silu"):
        assert hold(name, x).dtype == dtype
    hold("silu_backward", grad, x)
    for approximate in ("none", "tanh"):
        assert hold("gelu", x, approximate=approximate).dtype == dtype
        hold("gelu_backward", grad, x, approximate=approximate)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [("silu", {}), ("gelu", {"approximate": "tanh"}), ("gelu", {"approximate": "none"})],
)
def test_activations_far_out(instruction_set, name, options, dtype):
    """Where they are 0 or x, and their slopes 0 or 1; NaN stays NaN."""
    far = np.array([1e30, -1e30, 60, -60, np.nan], dtype)
    found = kernels.implementations(name)["cpu"](far, **options).astype(np.float64)
    np.testing.assert_allclose(found, [float(far[0]), 0, 60, 0, np.nan], atol=1e-20)
    slopes = kernels.implementations(f"{name}_backward")["cpu"](
        np.ones(3, dtype), far[2:], **options
    )
    np.testing.assert_allclose(slopes.astype(np.float64), [1, 0, np.nan], atol=1e-20)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_exact_gelu_has_small_relative_errors_in_its_tail(instruction_set, dtype):
    x = np.linspace(-5, 5, 20_001, dtype=dtype)
    wide = x.astype(np.float64)
    found = kernels.implementations("gelu")["cpu"](x)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found, wide * special.ndtr(wide), rtol=8 * eps)
    slope = kernels.implementations("gelu_backward")["cpu"](np.ones_like(x), x)
    density = np.exp(-wide * wide / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(slope, special.ndtr(wide) + wide * density, atol=4 * eps)


@FIXTURES
@given(
    st.sampled_from([(1, 1), (3, 1), (2, 0), (4, 17), (3, 5, 64), (900, 40)]),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_swiglu(hold, shape, dtype, packed):
    """Also of the halves of one array, and its gradients written side by side."""
    if packed:
        gate, up = np.split(draw((*shape[:-1], 2 * shape[-1]), dtype), 2, axis=-1)
    else:
        gate, up = draw(shape, dtype), draw(shape, dtype, seed=1)
    grad = draw(shape, dtype, seed=2)
    assert hold("swiglu", gate, up).dtype == dtype
    expected = hold("swiglu_backward", grad, gate, up)
    both = np.full((*shape[:-1], 2 * shape[-1]), 7, dtype)
    halves = tuple(np.split(both, 2, axis=-1))
    kernels.implementations("swiglu_backward")["cpu"](grad, gate, up, out=halves)
    np.testing.assert_array_equal(both, np.concatenate(expected, axis=-1))


@FIXTURES
@given(SHAPES, st.sampled_from(DTYPES), LAYOUTS, st.sampled_from([0.0, 0.1, 0.5, 1 - 2**-25, 1.0]))
def test_dropout(hold, shape, dtype, layout, p):
    """The reference's mask to the bit, of seeds and offsets of any size."""
    x = np.where(draw(shape, dtype, layout) == 0, dtype.type(1), draw(shape, dtype, layout))
    for seed, offset in ((0, 0), (2**70 + 5, 2**65 + 3)):
        out = hold("dropout", x, p=p, seed=seed, offset=offset)
        mask = kernels.implementations("dropout")["numpy"](
            np.ones(shape), p=p, seed=seed, offset=offset
        )
        np.testing.assert_array_equal(out != 0, mask != 0)


def test_dropout_does_not_hide_nan(instruction_set):
    """What is dropped is 0 times itself, as in PyTorch."""
    for dtype in DTYPES:
        x = np.full(40, np.nan, dtype)
        assert np.isnan(kernels.implementations("dropout")["cpu"](x, p=0.5, seed=0, offset=0)).all()
