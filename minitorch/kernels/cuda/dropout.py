"""Dropout on the device, with a mask that is computed, not stored (csrc/cuda/dropout.cu)."""

from typing import Any

from minitorch.kernels.cuda.extension import (
    FLOATS,
    call,
    contiguous,
    device_kernel,
    draw_shift,
    empty,
)
from minitorch.kernels.philox import halves
from minitorch.kernels.reference import dropout as reference

Array = Any


@device_kernel("dropout")
def dropout(x: Array, *, p: float, seed: int, offset: int) -> Array:
    """The reference's, to the bit in which elements it keeps."""
    if x.dtype not in FLOATS or not x.size:
        return reference.dropout(x, p=p, seed=seed, offset=offset)
    x = contiguous(x)
    out = empty(x)
    call("dropout", x, out, draw_shift(seed), p, *halves(seed, offset))
    return out
