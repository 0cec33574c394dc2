"""Softmax and its relatives, compiled, along any dimension, against their references in float64."""

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
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([64, 65, 130]))
SHAPES = st.one_of(
    st.tuples(SIZES),
    st.tuples(SIZES, SIZES),
    st.tuples(st.integers(1, 5), SIZES, st.integers(1, 9)),
)


def draw(shape, dtype, *, scale=3.0, seed=0, strided=False):
    """Normal numbers; strided: a view that has gaps and runs backwards."""
    rng = np.random.default_rng([seed, *shape])
    if strided:
        return (scale * rng.standard_normal([2 * n for n in shape])).astype(dtype)[
            tuple(slice(None, None, -2) for _ in shape)
        ]
    return (scale * rng.standard_normal(shape)).astype(dtype)


@st.composite
def cases(data):
    shape = data(SHAPES)
    dim = data(st.integers(-len(shape), len(shape) - 1))
    dtype, strided = data(st.sampled_from(DTYPES)), data(st.booleans())
    return draw(shape, dtype, strided=strided), draw(shape, dtype, seed=1, strided=strided), dim


@FIXTURES
@given(cases(), st.sampled_from([1.0, 0.3, -2.0, 0.0]))
def test_softmax(hold, case, scale):
    x, grad, dim = case
    out = hold("softmax", x, dim=dim, scale=scale)
    assert out.dtype == x.dtype
    assert hold("softmax_backward", grad, out, dim=dim, scale=scale).dtype == x.dtype


@FIXTURES
@given(cases())
def test_log_softmax(hold, case):
    x, grad, dim = case
    out = hold("log_softmax", x, dim=dim)
    assert out.dtype == x.dtype
    assert hold("log_softmax_backward", grad, out, dim=dim).dtype == x.dtype


@FIXTURES
@given(cases(), st.booleans(), st.booleans())
def test_logsumexp(hold, case, everything, keepdim):
    x, grad, dim = case
    dims = tuple(range(x.ndim)) if everything else (dim,)
    out = hold("logsumexp", x, dim=dims, keepdim=keepdim)
    assert out.dtype == x.dtype
    hold("logsumexp", x, dim=dim, keepdim=keepdim)
    grad = np.resize(grad, out.shape)
    assert hold("logsumexp_backward", grad, x, out, dim=dims, keepdim=keepdim).shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("width", [1, 3, 20, 3000])
def test_what_is_not_finite(instruction_set, dtype, dim, width):
    """Rows of -inf alone, with one +inf, with a NaN; and -inf beside a finite number."""
    x = draw((5, width), dtype)
    x[0], x[1, width // 2], x[2, -1], x[3, :-1] = -np.inf, np.inf, np.nan, -np.inf

    def run(name):
        found = kernels.implementations(name)["cpu"](x if dim == 1 else x.T.copy(), dim=dim)
        return np.asarray(found if dim == 1 else found.T, np.float64)

    bound = {4: 1e-5, 8: 1e-13, 2: 2e-2}[dtype.itemsize]
    softmax, log_softmax, sums = run("softmax"), run("log_softmax"), run("logsumexp")
    assert np.isnan(softmax[:3]).all()
    assert np.isnan(log_softmax[:3]).all()
    assert np.isneginf(log_softmax[3, :-1]).all()
    exact = x[3:].astype(np.float64)
    np.testing.assert_allclose(softmax[3:], special.softmax(exact, 1), atol=bound)
    np.testing.assert_allclose(np.exp(log_softmax[3:]), special.softmax(exact, 1), atol=bound)
    expected = [-np.inf, np.inf, np.nan, *special.logsumexp(exact, 1)]
    np.testing.assert_allclose(sums, expected, rtol=bound)
    kernel = kernels.implementations("logsumexp_backward")["cpu"]
    slopes = kernel(np.ones(5, dtype), x, sums.astype(dtype)).astype(np.float64)
    assert not slopes[0].any()
    assert np.isnan(slopes[1, width // 2])
    assert np.isnan(slopes[2]).all()
    np.testing.assert_allclose(slopes[3:], special.softmax(exact, 1), atol=bound)


@pytest.mark.parametrize("dim", [0, 1])
def test_what_is_large(instruction_set, dim):
    x = np.array([[1e4, -1e4, 0], [-3e38, 3e38, -np.inf]], np.float32)
    run = {name: kernels.implementations(name)["cpu"] for name in ("softmax", "logsumexp")}
    x, back = (x, np.array) if dim == 1 else (x.T.copy(), np.transpose)
    np.testing.assert_array_equal(back(run["softmax"](x, dim=dim)), [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(run["logsumexp"](x, dim=dim), np.float32([1e4, 3e38]))


def test_exp_is_within_two_units_in_the_last_place(instruction_set):
    """Through softmax of (x, 0): its ratio of probabilities is exp(x)."""
    x = -np.linspace(0, 80, 200_001, dtype=np.float32)
    pairs = np.stack([x, np.zeros_like(x)], axis=1)
    probabilities = kernels.implementations("softmax")["cpu"](pairs).astype(np.float64)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(probabilities[:, 0] / probabilities[:, 1] / exact - 1)
    assert error.max() < 4 * 2.0**-24 + 2 * 2.0**-24  # exp, then two rounded divisions


@pytest.mark.parametrize("width", [1, 3, 16, 17, 64, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_probabilities_are_accurate_to_some_units_in_the_last_place(instruction_set, width, dtype):
    x = draw((7, width), dtype, scale=5.0)
    exact = special.softmax(x.astype(np.longdouble), 1)
    found = kernels.implementations("softmax")["cpu"](x)
    np.testing.assert_allclose(found, exact, rtol=32 * np.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
@np.errstate(divide="ignore")
def test_nothing(instruction_set, shape):
    for dtype in DTYPES:
        x = np.zeros(shape, dtype)
        for name in ("softmax", "log_softmax"):
            assert kernels.implementations(name)["cpu"](x).shape == shape
            back = kernels.implementations(f"{name}_backward")["cpu"](x, x)
            assert (back.shape, back.dtype) == (shape, dtype)
        if shape[-1]:
            found = kernels.implementations("logsumexp")["cpu"](x, dim=-1)
            assert (found.shape, found.dtype) == (shape[:-1], dtype)
