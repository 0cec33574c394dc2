"""The CUDA norms in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.backend import to_device
from minitorch.nn import functional as F

SHAPES = [((3, 5), 1), ((1, 1), 1), ((2, 3, 40), 1), ((5, 2, 36), 2), ((2, 1048), 1)]
DTYPES = ["float64", "float32", "bfloat16", "float16"]


def arrays(dtype, shape, ndim):
    rng = np.random.default_rng(0)
    features = shape[len(shape) - ndim :]
    dtype = getattr(mt, dtype)
    rows = [rng.standard_normal(shape).astype(dtype) for _ in range(4)]
    return [*rows, *(rng.standard_normal(features).astype(dtype) for _ in range(2))]


@pytest.mark.parametrize(("shape", "ndim"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(hold, dtype, shape, ndim):
    x, residual, grad, dsum, weight, bias = arrays(dtype, shape, ndim)
    _, mean, rstd = hold("layer_norm", x, weight, bias, ndim=ndim)
    hold("layer_norm_backward", grad, x, weight, mean, rstd, ndim=ndim)
    _, sum, mean, rstd = hold("add_layer_norm", x, residual, None, None, ndim=ndim, eps=1e-3)
    hold("add_layer_norm_backward", grad, dsum, sum, None, mean, rstd, ndim=ndim)


@pytest.mark.parametrize(("shape", "ndim"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(hold, dtype, shape, ndim):
    x, residual, grad, dsum, weight, _ = arrays(dtype, shape, ndim)
    _, rstd = hold("rms_norm", x, None, ndim=ndim)
    hold("rms_norm_backward", grad, x, None, rstd, ndim=ndim)
    _, sum, rstd = hold("add_rms_norm", x, residual, weight, ndim=ndim, eps=1e-3)
    hold("add_rms_norm_backward", grad, dsum, sum, weight, rstd, ndim=ndim)


def test_a_row_longer_than_shared_memory(hold):
    x, residual, grad, dsum, weight, bias = arrays("float32", (2, 10304), 1)
    _, sum, mean, rstd = hold("add_layer_norm", x, residual, weight, bias)
    hold("add_layer_norm_backward", grad, dsum, sum, weight, mean, rstd)


def test_no_rows_and_no_columns(hold):
    for shape in ((0, 4), (2, 0)):
        x, _, grad, _, weight, bias = arrays("float32", shape, 1)
        _, mean, rstd = hold("layer_norm", x, weight, bias)
        hold("layer_norm_backward", grad, x, weight, mean, rstd)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_gradcheck(name):
    rng = np.random.default_rng(0)
    x, weight = (to_device(rng.standard_normal(shape), "simt") for shape in ((3, 6), (6,)))

    def run(x, weight):
        return getattr(F, name)(x, (6,), weight)

    leaves = [mt.Tensor(array, requires_grad=True) for array in (x, weight)]
    assert mt.gradcheck(run, leaves)
