"""Arrays as the compiled kernels read them: of one dtype that they know, contiguous."""

import numpy as np

from minitorch.backend import bfloat16, float32, float64

FLOATS = frozenset({float32, float64, bfloat16})

Array = np.ndarray


def fit(x: Array, *others: Array | None) -> bool:
    """Whether all that are given have the dtype of x, one of FLOATS, and elements."""
    return (
        x.dtype in FLOATS
        and x.size > 0
        and all(other is None or (other.dtype == x.dtype and other.size > 0) for other in others)
    )


def contiguous(*arrays: Array | None) -> list[Array | None]:
    """The arrays, those copied that are views with gaps; None stays None."""
    return [None if array is None else np.ascontiguousarray(array) for array in arrays]


def integers(x: Array) -> Array:
    """x as contiguous int64."""
    return np.ascontiguousarray(x, np.int64)
