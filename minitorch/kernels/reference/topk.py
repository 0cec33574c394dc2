"""The first elements of an order: the largest or the smallest, and where they are.

In every order a NaN is the largest of all, and equal elements follow each other as they stand.
"""

from typing import Any

import numpy as np

from minitorch.kernels.table import register

Array = Any


@register("topk", "numpy")
def topk(x: Array, *, k: int, dim: int = -1, largest: bool = True) -> tuple[Array, Array]:
    """The k largest (or smallest) along dim in order, and their indices: the lowest of a tie."""
    indices = order(x, dim, descending=largest).take(range(k), dim)
    return np.take_along_axis(x, indices, dim), indices


def order(x: Array, dim: int, descending: bool) -> Array:
    """The indices that sort x along dim."""
    if not descending:
        return np.argsort(x, dim, kind="stable")
    # Stable, with NaN first, as PyTorch has it: reverse, sort, reverse.
    reverse = np.flip(np.argsort(np.flip(x, dim), dim, kind="stable"), dim)
    return x.shape[dim] - 1 - reverse


@register("argmax", "numpy")
def argmax(x: Array, *, dim: int) -> Array:
    """The index of the first largest along dim, or of the first NaN."""
    return np.argmax(x, dim)


@register("argmin", "numpy")
def argmin(x: Array, *, dim: int) -> Array:
    """The index of the first smallest along dim, or of the first NaN."""
    return np.argmin(x, dim)


@register("amax", "numpy")
def amax(x: Array, *, dim: tuple[int, ...], keepdim: bool = False) -> Array:
    """The largest over the dimensions of dim, NaN where there is one."""
    return x.max(dim, keepdims=keepdim)


@register("amin", "numpy")
def amin(x: Array, *, dim: tuple[int, ...], keepdim: bool = False) -> Array:
    """The smallest over the dimensions of dim, NaN where there is one."""
    return x.min(dim, keepdims=keepdim)
