"""Sums and casts; and blocks, in which all elementwise kernels work."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import numpy as np

from minitorch.kernels.table import register

Array = np.ndarray

_BLOCK = 1 << 15
"""Elements that an elementwise kernel works on at a time: its temporaries stay in the cache."""


def blocks(*arrays: Array) -> Iterator[list[Array]]:
    """Views of arrays of one shape, a block at a time; whole if any is not contiguous."""
    if not all(array.flags.c_contiguous for array in arrays):
        yield list(arrays)
        return
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _BLOCK):
        yield [array[start : start + _BLOCK] for array in flat]


def in_blocks(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """Decorator: run an elementwise kernel on arrays of one shape, block by block.

    Overflow and underflow inside are part of the formulas: exp(-x²) is 0 for a large x.
    """

    @wraps(kernel)
    def blocked(*arrays: Array, **metadata: Any) -> Array:
        out = np.empty_like(arrays[0], order="C")
        with np.errstate(over="ignore", under="ignore"):
            for result, *inputs in blocks(out, *arrays):
                result[...] = kernel(*inputs, **metadata)
        return out

    return blocked


@register("add", "numpy")
def add(a: Any, b: Any, *, out: Array | None = None) -> Any:
    """a + b, broadcast; arrays or Python numbers. out: where to write, a itself perhaps."""
    return np.add(a, b, out=out)


@register("cast", "numpy")
def cast(x: Array, *, dtype: np.dtype) -> Array:
    """x in another dtype, rounded to the nearest, ties to even; always a copy."""
    return x.astype(dtype)
