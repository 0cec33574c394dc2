"""The CUDA activations in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.backend import to_device
from minitorch.kernels.reference.activations import ELEMENTARY
from minitorch.nn import functional as F

SHAPES = [(3, 5), (1, 1), (2, 3, 40), (1043,), (0, 4), ()]
DTYPES = ["float64", "float32", "bfloat16", "float16"]
GELUS = [("gelu", {"approximate": "none"}), ("gelu", {"approximate": "tanh"}), ("silu", {})]


def numbers(dtype, shape, count=1, scale=2.0):
    rng = np.random.default_rng(0)
    return [
        np.asarray(scale * rng.standard_normal(shape), getattr(mt, dtype)) for _ in range(count)
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(hold, dtype, shape):
    grad, x = numbers(dtype, shape, 2)
    for name, options in GELUS:
        hold(name, x, **options)
        hold(f"{name}_backward", grad, x, **options)


@pytest.mark.parametrize("name", ELEMENTARY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_elementary(hold, dtype, name):
    hold(name, numbers(dtype, (7, 19))[0])


def test_far_out(hold):
    x = np.float32([-np.inf, -1e4, -80, -12, 0, 12, 80, 1e4, np.inf, np.nan])
    grad = np.ones_like(x)
    for name, options in GELUS:
        hold(name, x[1:-2], **options)
        hold(f"{name}_backward", grad[1:-2], x[1:-2], **options)
    for name in ELEMENTARY:
        hold(name, x)


@pytest.mark.parametrize("columns", [1, 5, 24])
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_of_halves(hold, dtype, columns):
    (both,) = numbers(dtype, (2, 3, 2 * columns))
    (grad,) = numbers(dtype, (2, 3, columns))
    gate, up = both[..., :columns], both[..., columns:]
    hold("swiglu", gate, up)
    hold("swiglu_backward", grad, gate, up)


@pytest.mark.parametrize("turned", [False, True])
def test_swiglu_writes_where_it_is_told(hold, turned):
    gate, up, grad = numbers("float32", (4, 3, 8), 3)
    alone = hold("swiglu_backward", grad, gate, up)
    both = np.zeros((2, 16, 3, 4) if turned else (4, 3, 32), np.float32)
    both = to_device(both, "simt")
    into = (both[0].T[..., ::2], both[1].T[..., 8:]) if turned else (both[..., :8], both[..., 9:17])
    mt.kernels.lookup("swiglu_backward", "simt")(
        *(to_device(x, "simt") for x in (grad, gate, up)), out=into
    )
    for found, expected in zip(into, alone, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["gelu", "silu", "swiglu"])
def test_gradcheck(name):
    rng = np.random.default_rng(0)
    leaves = [
        mt.Tensor(to_device(rng.standard_normal((3, 4)), "simt"), requires_grad=True)
        for _ in range(2 if name == "swiglu" else 1)
    ]
    assert mt.gradcheck(getattr(F, name), leaves)
