"""Arrays as kernels want them: the dimensions that a kernel works along, last and contiguous."""

from math import prod
from typing import Any

from minitorch.kernels.cuda.extension import contiguous

Array = Any


def slices(x: Array, dim: int | tuple[int, ...]) -> tuple[Array, list[int]]:
    """x as (slices, elements of dim), contiguous; and which dims these are, in order."""
    dims = sorted(i % x.ndim for i in ((dim,) if isinstance(dim, int) else dim))
    others = [i for i in range(x.ndim) if i not in dims]
    moved = contiguous(x.transpose([*others, *dims]))
    return moved.reshape(-1, prod(x.shape[i] for i in dims)), dims


def reduced(x: Array, dims: list[int], keepdim: bool) -> list[int]:
    """The shape of x without dims, or with length 1 there."""
    return [1 if i in dims else n for i, n in enumerate(x.shape) if keepdim or i not in dims]
