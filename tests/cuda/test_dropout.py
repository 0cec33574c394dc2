"""The CUDA dropout in the emulator's check build: NumPy's own stream, bit for bit."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.kernels.cuda.extension import checked

SEEDS = [(0, 0), (12345, 7), (2**127 + 3**70, 2**64 + 5)]


@pytest.mark.parametrize(("seed", "offset"), SEEDS)
@pytest.mark.parametrize("shape", [(3, 5), (), (1,), (2, 4, 8), (0, 3), (2063,)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_dropout(hold, dtype, shape, seed, offset):
    x = np.asarray(np.random.default_rng(0).standard_normal(shape) + 9, getattr(mt, dtype))
    options = {"p": 0.3, "seed": seed, "offset": offset}
    out = hold("dropout", x, **options)
    expected = kernels.implementations("dropout")["numpy"](np.ones(shape, np.float32), **options)
    np.testing.assert_array_equal(np.asarray(out) != 0, expected != 0)


@pytest.mark.parametrize("p", [0.0, 0.5, 0.1, 2.0**-24, 1.0])
def test_probabilities(hold, p):
    hold("dropout", np.ones(1000, np.float32), p=p, seed=1, offset=2)


def test_an_address_that_is_no_multiple_of_16():
    whole = to_device(np.ones(101, np.float32), "simt")
    options = {"p": 0.4, "seed": 1, "offset": 2}
    run = kernels.lookup("dropout", "simt")
    with checked():
        np.testing.assert_array_equal(run(whole[1:], **options), run(whole[:100], **options))
