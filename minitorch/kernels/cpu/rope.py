"""Rotary position embedding (csrc/cpu/kernels/rope.h)."""

import numpy as np

from minitorch.backend import bfloat16, compute_dtype
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import rope as reference
from minitorch.kernels.table import register

Array = np.ndarray


@register("rope", "cpu", half=(bfloat16,))
def rope(
    x: Array,
    cos: Array,
    sin: Array,
    *,
    interleaved: bool = False,
    inverse: bool = False,
    out: Array | None = None,
) -> Array:
    """The reference's; x and out may have any strides but for the features."""
    if x.dtype not in FLOATS or x.ndim < 2 or not x.size or not _writable_in_rows(out, x):
        return reference.rope(x, cos, sin, interleaved=interleaved, inverse=inverse, out=out)
    table = compute_dtype(x.dtype)
    shape = (x.shape[-2], x.shape[-1] // 2)
    if x.shape[-1] % 2 or cos.shape != shape or sin.shape != shape:
        raise ValueError(
            f"rope: expected x (..., time, features) and cos, sin (time, features / 2); "
            f"got {x.shape}, {cos.shape} and {sin.shape}"
        )
    if out is None:
        out = np.empty(x.shape, x.dtype)
    extension.rope(
        x if x.strides[-1] == x.itemsize else np.ascontiguousarray(x),
        out,
        np.ascontiguousarray(cos, table),
        np.ascontiguousarray(sin, table),
        interleaved,
        inverse,
    )
    return out


def _writable_in_rows(out: Array | None, x: Array) -> bool:
    return out is None or (
        out.strides[-1] == x.itemsize and out.shape == x.shape and out.dtype == x.dtype
    )
