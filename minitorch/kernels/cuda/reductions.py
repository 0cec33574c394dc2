"""Reductions over the last dimension on the device (csrc/cuda/reductions.cu)."""

from typing import Any

import numpy as np

from minitorch.errors import ShapeError
from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, empty

Array = Any


def row_sum(x: Array) -> Array:
    """The sum over the last dimension, in float32 for halves. x: (..., columns), floats."""
    rows, leading = _rows(x, "row_sum"), x.shape[:-1]
    out = empty(x, leading)
    call("row_sum", rows, out)
    return out


def row_max(x: Array) -> tuple[Array, Array]:
    """The first largest number of the last dimension, or the first NaN, and its index, int64.

    x: (..., columns), floats; both results: (...).
    """
    rows, leading = _rows(x, "row_max"), x.shape[:-1]
    values, indices = empty(x, leading), empty(x, leading, np.dtype(np.int64))
    call("row_max", rows, values, indices)
    return values, indices


def _rows(x: Array, name: str) -> Array:
    if x.dtype not in FLOATS or not x.ndim or not x.size:
        raise ShapeError(f"{name}: expected floats (..., columns), some; got {x.shape} {x.dtype}")
    return contiguous(x).reshape(-1, x.shape[-1])
