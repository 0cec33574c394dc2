"""The CUDA reductions in the emulator's check build, against NumPy."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.backend import to_device
from minitorch.errors import ShapeError
from minitorch.kernels.cuda.extension import checked
from minitorch.kernels.cuda.reductions import row_max, row_sum

TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}


@pytest.mark.parametrize("order", [("forward", 0), ("reversed", 0), ("random", 7)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 40), (2, 1043), (2, 4096)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows(dtype, shape, order):
    x = np.random.default_rng(0).integers(-50, 50, shape).astype(getattr(mt, dtype))
    with checked(*order):
        total = row_sum(to_device(x, "simt"))
        values, indices = row_max(to_device(x, "simt"))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(np.float64(total), wide.sum(-1), rtol=TOLERANCE[dtype])
    np.testing.assert_array_equal(np.float64(values), wide.max(-1))
    np.testing.assert_array_equal(indices, wide.argmax(-1))  # many are equal: the first counts


def test_nan_and_infinities():
    x = np.zeros((4, 200), np.float32)
    x[0, 77:79], x[1], x[2, 150] = np.nan, -np.inf, np.inf
    x[3, [20, 190]] = np.inf, np.nan
    with checked("random", 3):
        values, indices = row_max(to_device(x, "simt"))
    np.testing.assert_array_equal(values, x.max(-1))
    np.testing.assert_array_equal(indices, [77, 0, 150, 190])


def test_what_is_not_taken():
    with pytest.raises(ShapeError, match="row_max: expected floats"):
        row_max(to_device(np.zeros((3, 0), np.float32), "simt"))
