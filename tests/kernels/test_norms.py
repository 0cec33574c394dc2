"""The compiled norms, alone and with the addition before them, against their references."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minitorch as mt
from minitorch import kernels
from minitorch.kernels.reference import norms as reference

DTYPES = [np.dtype(np.float32), np.dtype(np.float64), mt.bfloat16]
FIXTURES = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SHAPES = st.one_of(
    st.tuples(st.integers(1, 70), st.integers(1, 130)),
    st.sampled_from([(1, 1), (700, 96), (2, 3, 5), (3, 1, 16, 4)]),
)


def draw(shape, dtype, seed=0, layout="plain"):
    rng = np.random.default_rng([seed, *shape])
    if layout == "transposed":
        return rng.standard_normal(shape[::-1]).astype(dtype).T
    return rng.standard_normal(shape).astype(dtype)


def wide(dtype):
    """The dtype of statistics and of the gradients of weights."""
    return np.float32 if dtype == mt.bfloat16 else dtype


@st.composite
def cases(data):
    """x, another like it, a gradient; weight and bias or None; how many dimensions are features."""
    shape, dtype = data(SHAPES), data(st.sampled_from(DTYPES))
    ndim = data(st.integers(1, len(shape) - 1))
    layout = data(st.sampled_from(["plain", "transposed"]))
    arrays = [draw(shape, dtype, seed, layout) for seed in range(3)]
    features = shape[len(shape) - ndim :]
    parameters = [draw(features, dtype, seed) if data(st.booleans()) else None for seed in (3, 4)]
    return arrays, parameters, ndim


def statistics(x, ndim):
    """The mean and rstd of a forward, as the backward is given them."""
    _, mean, rstd = reference.layer_norm(x.astype(np.float64), None, None, eps=1e-2, ndim=ndim)
    return mean.astype(wide(x.dtype)), rstd.astype(wide(x.dtype))


@FIXTURES
@given(cases())
def test_gated_rms_norm(hold, case):
    """Of the last dimension; bfloat16 goes by way of the reference."""
    (x, gate, grad), (weight, _), _ = case
    x, gate, grad = (array.astype(wide(array.dtype)) for array in (x, gate, grad))
    weight = None if weight is None else weight.astype(x.dtype).reshape(-1)[: x.shape[-1]]
    _, rstd = hold("gated_rms_norm", x, gate, weight, eps=1e-2)
    hold("gated_rms_norm_backward", grad, x, gate, weight, rstd)


@FIXTURES
@given(cases())
def test_layer_norm(hold, case):
    (x, _, grad), (weight, bias), ndim = case
    out, mean, _ = hold("layer_norm", x + x.dtype.type(3), weight, bias, eps=1e-2, ndim=ndim)
    assert out.dtype == x.dtype
    assert mean.dtype == wide(x.dtype)
    mean, rstd = statistics(x, ndim)
    dx, dweight, _ = hold("layer_norm_backward", grad, x, weight, mean, rstd, ndim=ndim)
    assert dx.dtype == x.dtype
    assert dweight.dtype == wide(x.dtype)


@FIXTURES
@given(cases())
def test_rms_norm(hold, case):
    (x, _, grad), (weight, _), ndim = case
    assert hold("rms_norm", x, weight, eps=1e-2, ndim=ndim)[0].dtype == x.dtype
    _, rstd = reference.rms_norm(x.astype(np.float64), None, eps=1e-2, ndim=ndim)
    hold("rms_norm_backward", grad, x, weight, rstd.astype(wide(x.dtype)), ndim=ndim)


@FIXTURES
@given(cases())
def test_norm_of_a_sum(hold, case):
    (x, residual, grad), (weight, bias), ndim = case
    out, total, mean, rstd = hold("add_layer_norm", x, residual, weight, bias, eps=1e-2, ndim=ndim)
    assert (total == (x + residual).astype(x.dtype)).all()
    again, mean_again, rstd_again = kernels.implementations("layer_norm")["cpu"](
        total, weight, bias, eps=1e-2, ndim=ndim
    )
    for one, other in ((out, again), (mean, mean_again), (rstd, rstd_again)):
        assert (one == other).all()
    mean, rstd = statistics(total, ndim)
    arrays = grad, x, total, weight
    hold("add_layer_norm_backward", *arrays, mean, rstd, ndim=ndim)
    hold("add_rms_norm", x, residual, weight, eps=1e-2, ndim=ndim)
    _, rstd = reference.rms_norm(total.astype(np.float64), None, eps=1e-2, ndim=ndim)
    hold("add_rms_norm_backward", *arrays, rstd.astype(wide(x.dtype)), ndim=ndim)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_constant_or_not_finite(instruction_set, dtype):
    x = draw((4, 37), dtype)
    x[0], x[1, 5], x[2, 7] = 2, np.nan, np.inf
    out, _, rstd = kernels.implementations("layer_norm")["cpu"](x, None, None, eps=1e-4)
    assert not out[0].any()
    np.testing.assert_allclose(rstd[0], 100, rtol=1e-5)
    assert np.isnan(out[1:3].astype(np.float64)).all()
    assert np.isfinite(out[3].astype(np.float64)).all()
    normed, _ = kernels.implementations("rms_norm")["cpu"](x, None)
    np.testing.assert_allclose(normed[0].astype(np.float64), 1, rtol=1e-2)
    assert np.isnan(normed[1].astype(np.float64)).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 4)])
def test_nothing(instruction_set, shape):
    for dtype in DTYPES:
        x, features = np.zeros(shape, dtype), shape[-1:]
        with np.errstate(all="ignore"):
            out, mean, rstd = kernels.implementations("layer_norm")["cpu"](x, None, None)
            back = kernels.implementations("layer_norm_backward")["cpu"](x, x, None, mean, rstd)
        assert (out.shape, mean.shape, rstd.shape) == (shape, shape[:-1], shape[:-1])
        assert [gradient.shape for gradient in back] == [shape, features, features]
        assert not back[1].any()
