"""The CUDA rotary embedding in the emulator's check build, against the float64 reference."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.kernels.cuda.extension import checked


def sample(dtype, shape):
    angles = np.random.default_rng(0).standard_normal((shape[-2], shape[-1] // 2))
    dtype = getattr(mt, dtype)
    x = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    wide = np.float64 if dtype == mt.float64 else np.float32
    return x, np.cos(angles).astype(wide), np.sin(angles).astype(wide)


@pytest.mark.parametrize("options", [{}, {"inverse": True}])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "shape", [(3, 6), (1, 2), (2, 3, 4, 16), (2, 5, 32), (1, 2, 2, 3, 10), (0, 2, 4)]
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_rope(hold, dtype, shape, interleaved, options):
    hold("rope", *sample(dtype, shape), interleaved=interleaved, **options)


@pytest.mark.parametrize("interleaved", [False, True])
def test_strides_and_places(interleaved):
    x, cos, sin = (to_device(a, "simt") for a in sample("float32", (2, 3, 4, 8)))
    run = kernels.lookup("rope", "simt")
    turned = x.swapaxes(1, 2).copy().swapaxes(1, 2)
    with checked():
        expected = run(x, cos, sin, interleaved=interleaved)
        np.testing.assert_array_equal(run(turned, cos, sin, interleaved=interleaved), expected)
        backwards = to_device(np.empty((8, 4, 3, 2), np.float32), "simt").T
        assert run(x, cos, sin, interleaved=interleaved, out=backwards) is backwards
        np.testing.assert_array_equal(backwards, expected)
        assert run(turned, cos, sin, interleaved=interleaved, out=turned) is turned
    np.testing.assert_array_equal(turned, expected)


def test_tables_that_do_not_fit():
    x, cos, sin = (to_device(a, "simt") for a in sample("float32", (4, 8)))
    with pytest.raises(ValueError, match="rope: expected x"):
        kernels.lookup("rope", "simt")(x, cos[:3], sin)
