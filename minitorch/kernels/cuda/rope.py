"""Rotary position embedding on the device (csrc/cuda/rope.cu)."""

from math import prod
from typing import Any

from minitorch.backend import compute_dtype
from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty
from minitorch.kernels.reference import rope as reference

Array = Any


@device_kernel("rope")
def rope(
    x: Array,
    cos: Array,
    sin: Array,
    *,
    interleaved: bool = False,
    inverse: bool = False,
    out: Array | None = None,
) -> Array:
    """The reference's; x and out of up to four dimensions may have any strides but for features."""
    if x.dtype not in FLOATS or x.ndim < 2 or not x.size:
        return reference.rope(x, cos, sin, interleaved=interleaved, inverse=inverse, out=out)
    shape = (x.shape[-2], x.shape[-1] // 2)
    if x.shape[-1] % 2 or cos.shape != shape or sin.shape != shape:
        raise ValueError(
            f"rope: expected x (..., time, features) and cos, sin (time, features / 2); "
            f"got {x.shape}, {cos.shape} and {sin.shape}"
        )
    table = compute_dtype(x.dtype)
    fits = out is not None and _in_rows(out) and out.shape == x.shape and out.dtype == x.dtype
    into = out if fits else empty(x)
    call(
        "rope",
        _four(x if _in_rows(x) else contiguous(x)),
        _four(into),
        contiguous(cos.astype(table, copy=False)),
        contiguous(sin.astype(table, copy=False)),
        interleaved,
        inverse,
    )
    if out is None or fits:
        return into
    out[...] = into
    return out


def _in_rows(x: Array) -> bool:
    """Whether the kernel can walk x as it is."""
    return x.strides[-1] == x.itemsize and (x.ndim <= 4 or x.flags.c_contiguous)


def _four(x: Array) -> Array:
    """x as (outer, inner, time, features), a view."""
    if x.ndim > 4:
        return x.reshape(prod(x.shape[:-3]), *x.shape[-3:])
    return x[(None,) * (4 - x.ndim)]
