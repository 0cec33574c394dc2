"""CUDA sums in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.kernels.cuda import reductions

SHAPES = [(1, 1), (3, 5), (2, 3, 40), (2, 1043), (3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_sums(hold, dtype, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(getattr(mt, dtype))
    hold("sum", x, dim=(-1,), keepdim=True)
    hold("sum", x, dim=(0,))
    hold("sum", x, dim=tuple(range(len(shape))))
    hold("sum", x.T, dim=(len(shape) - 1,))
    if len(shape) == 3:
        hold("sum", x, dim=(1,), keepdim=True)
        hold("sum", x, dim=(0, 1))


def test_a_row_of_several_blocks(hold, monkeypatch):
    monkeypatch.setattr(reductions, "_PIECE", 100)
    for columns in (1000, 1001, 401):
        x = np.random.default_rng(0).standard_normal((2, columns)).astype(np.float32)
        hold("sum", x, dim=(1,))


def test_what_numpy_sums():
    run = kernels.lookup("sum", "simt")
    assert run(to_device(np.arange(6), "simt"), dim=(0,)) == 15
    assert run(to_device(np.zeros((3, 0), np.float32), "simt"), dim=(1,)).shape == (3,)


def test_gradcheck():
    x = mt.Tensor(to_device(np.random.default_rng(0).standard_normal((3, 4)), "simt"))
    assert mt.gradcheck(lambda x: x.sum(0) * x.amax(0) - x.amin(0), x.requires_grad_())
