"""The CUDA top-k and what is a case of it, in the emulator's check build, against NumPy."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.kernels.cuda import topk as wrapper

DTYPES = ["float64", "float32", "bfloat16", "float16"]
SHAPES = [((1, 1), 1), ((3, 5), 5), ((2, 40), 3), ((2, 40), 9), ((2, 300), 300), ((2, 1043), 20)]


def many_equal(shape, dtype):
    return np.random.default_rng(0).integers(-20, 20, shape).astype(getattr(mt, dtype))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("shape", "k"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_topk(hold, dtype, shape, k, largest):
    hold("topk", many_equal(shape, dtype), k=k, largest=largest)


def test_along_other_dimensions(hold):
    hold("topk", many_equal((4, 12, 3), "float32"), k=2, dim=1)
    hold("topk", many_equal((4, 12, 3), "float32"), k=10, dim=-2, largest=False)


def test_more_than_shared_memory_holds(hold, monkeypatch):
    monkeypatch.setattr(wrapper, "_SHARED_BYTES", 1000)
    for dtype in ("float64", "bfloat16"):
        hold("topk", many_equal((2, 200), dtype), k=130)


@pytest.mark.parametrize("k", [3, 7, 200])
def test_nan_and_infinities(hold, k):
    x = np.zeros((4, 200), np.float32)
    x[0, 77:79], x[1], x[2, 150] = np.nan, -np.inf, np.inf
    x[3, [20, 190]] = np.inf, np.nan
    for largest in (True, False):
        hold("topk", x, k=k, largest=largest)
    if k == 3:
        hold("argmax", x, dim=1)
        hold("argmin", x, dim=1)
        hold("amax", x, dim=(1,))
        hold("amin", x, dim=(1,))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 40), (2, 4096)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes(hold, dtype, shape):
    x = many_equal(shape, dtype)
    for name in ("amax", "amin"):
        hold(name, x, dim=(-1,), keepdim=True)
        hold(name, x, dim=tuple(range(len(shape))))
        hold(name, x, dim=(0,))
    for name in ("argmax", "argmin"):
        hold(name, x, dim=-1)
        hold(name, x, dim=0)


def test_what_numpy_does():
    for name in ("argmax", "argmin"):
        run = kernels.lookup(name, "simt")
        assert run(to_device(np.array([2, 3, 1]), "simt"), dim=0) in (1, 2)
    values, indices = kernels.lookup("topk", "simt")(to_device(np.zeros((3, 2)), "simt"), k=0)
    assert values.shape == indices.shape == (3, 0)


def test_operations_stay_on_the_device():
    x = mt.Tensor(to_device(np.random.default_rng(0).standard_normal((4, 30)), "simt"))
    values, indices = x.topk(12, 1)
    assert (values.device, indices.device, x.argmax(1).device) == ("simt",) * 3
    np.testing.assert_array_equal(values.numpy(), -np.sort(-x.numpy(), 1)[:, :12])
    assert mt.gradcheck(lambda x: x.topk(12, 1).values, x.requires_grad_())
