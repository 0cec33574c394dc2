"""CUDA sums and casts in the emulator's check build: NumPy's own, bit for bit."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.kernels.cuda.extension import checked

DTYPES = [mt.float64, mt.float32, mt.bfloat16, mt.float16]
SHAPES = [(3, 5), (), (1,), (2, 4, 8), (0, 3), (2063,)]
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-8, 6e4, 7e4, 1e30, 1 + 2**-8, 1 + 3 * 2**-8]


def on_device(name, *arrays, **options):
    with checked("random", 3), np.errstate(all="ignore"):
        return kernels.lookup(name, "simt")(*[to_device(x, "simt") for x in arrays], **options)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add(dtype, shape):
    a, b = (np.random.default_rng(seed).standard_normal(shape).astype(dtype) for seed in (0, 1))
    expected = np.asarray(a + b, dtype)
    assert np.asarray(on_device("add", a, b)).tobytes() == expected.tobytes()
    into = to_device(a.copy(), "simt")
    assert kernels.lookup("add", "simt")(into, to_device(b, "simt"), out=into) is into
    assert np.asarray(into).tobytes() == expected.tobytes()


def test_what_add_leaves_to_numpy():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(on_device("add", x, x[0]), x + x[0])
    np.testing.assert_array_equal(on_device("add", x, x.T.copy().T), x + x)
    np.testing.assert_array_equal(on_device("add", x.astype(int), x.astype(int)), 2 * x)
    np.testing.assert_array_equal(kernels.lookup("add", "simt")(to_device(x, "simt"), 2.5), x + 2.5)


@pytest.mark.parametrize("to", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, None])
def test_cast(dtype, to, shape):
    x = np.array(SPECIAL) if shape is None else np.random.default_rng(0).standard_normal(shape)
    with np.errstate(all="ignore"):
        x = np.asarray(x, dtype)
        expected = np.asarray(x.astype(np.float32) if to.itemsize == 2 else x).astype(to)
    np.testing.assert_array_equal(np.float64(on_device("cast", x, dtype=to)), np.float64(expected))


def test_addresses_that_are_no_multiple_of_16():
    whole = to_device(np.arange(101, dtype=np.float32), "simt")
    with checked():
        shifted = kernels.lookup("cast", "simt")(whole[1:], dtype=mt.bfloat16)
    np.testing.assert_array_equal(shifted, np.arange(1, 101, dtype=mt.bfloat16))


def test_bfloat16_of_which_the_gradient_is_a_sum():
    values, cotangent = (np.random.default_rng(0).standard_normal(s) for s in ((32, 48), (32, 32)))
    gradients = []
    for device in ("cpu", "simt"):
        x = mt.Tensor(values).to(device, mt.bfloat16).detach().requires_grad_()
        with mt.autocast("bfloat16"):
            y = (x @ x.mT).exp() + x.sum() + x.silu().mean(1)
        y.backward(mt.Tensor(cotangent).to(device, y.dtype))
        assert (x.grad.device, x.grad.dtype) == (device, mt.bfloat16)
        gradients.append(x.grad.float().numpy())
    bound = 2**-7 * np.abs(gradients[0]).max()
    np.testing.assert_allclose(*gradients, rtol=0, atol=bound)
