"""Arrays as the compiled kernels read them: of one dtype that they know, contiguous."""

import numpy as np

from minitorch.backend import bfloat16, float32, float64

FLOATS = frozenset({float32, float64, bfloat16})

Array = np.ndarray


def fit(x: Array, *others: Array | None) -> bool:
    """Whether all that are given have the dtype of x, one of FLOATS, and elements."""
    dtype = x.dtype
    if dtype not in FLOATS or not x.size:
        return False
    for other in others:
        if other is not None and (other.dtype != dtype or not other.size):
            return False
    return True


def contiguous(*arrays: Array | None) -> list[Array | None]:
    """The arrays, those copied that are views with gaps; None stays None."""
    return [None if array is None else np.ascontiguousarray(array) for array in arrays]


def integers(x: Array) -> Array:
    """x as contiguous int64."""
    return np.ascontiguousarray(x, np.int64)
