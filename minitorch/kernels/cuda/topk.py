"""The largest and the smallest, and their places, on the device (csrc/cuda/topk.cu)."""

from typing import Any

import numpy as np

from minitorch.backend import float64
from minitorch.kernels.cuda.extension import FLOATS, call, device_kernel, empty
from minitorch.kernels.cuda.layout import reduced, slices
from minitorch.kernels.reference import topk as reference

Array = Any

_LARGEST, _SMALLEST, _SMALLEST_OR_NAN = range(3)  # enum Order
_MOST_ROUNDS = 8
_LEAST_LENGTH = 256
_SHARED_BYTES = 32 << 10


@device_kernel("topk")
def topk(x: Array, *, k: int, dim: int = -1, largest: bool = True) -> tuple[Array, Array]:
    """The reference's; a dim other than the last is moved there by a copy."""
    if not _takes(x) or not k:
        return reference.topk(x, k=k, dim=dim, largest=largest)
    values, indices = _first(x.swapaxes(dim, -1), -1, k, _LARGEST if largest else _SMALLEST)
    shape = (*x.swapaxes(dim, -1).shape[:-1], k)
    return values.reshape(shape).swapaxes(dim, -1), indices.reshape(shape).swapaxes(dim, -1)


@device_kernel("argmax")
def argmax(x: Array, *, dim: int) -> Array:
    """The reference's."""
    return _place(x, dim, _LARGEST) if _takes(x) else reference.argmax(x, dim=dim)


@device_kernel("argmin")
def argmin(x: Array, *, dim: int) -> Array:
    """The reference's."""
    return _place(x, dim, _SMALLEST_OR_NAN) if _takes(x) else reference.argmin(x, dim=dim)


@device_kernel("amax")
def amax(x: Array, *, dim: tuple[int, ...], keepdim: bool = False) -> Array:
    """The reference's."""
    if not _takes(x) or not dim:
        return reference.amax(x, dim=dim, keepdim=keepdim)
    return _extreme(x, dim, keepdim, _LARGEST)


@device_kernel("amin")
def amin(x: Array, *, dim: tuple[int, ...], keepdim: bool = False) -> Array:
    """The reference's."""
    if not _takes(x) or not dim:
        return reference.amin(x, dim=dim, keepdim=keepdim)
    return _extreme(x, dim, keepdim, _SMALLEST_OR_NAN)


def _takes(x: Array) -> bool:
    return x.dtype in FLOATS and x.ndim > 0 and x.size > 0


def _place(x: Array, dim: int, order: int) -> Array:
    return _first(x, dim, 1, order)[1].reshape(reduced(x, [dim % x.ndim], False))


def _extreme(x: Array, dim: tuple[int, ...], keepdim: bool, order: int) -> Array:
    shape = reduced(x, [i % x.ndim for i in dim], keepdim)
    return _first(x, dim, 1, order)[0].reshape(shape)


def _first(x: Array, dim: int | tuple[int, ...], k: int, order: int) -> tuple[Array, Array]:
    """Values and places of the first k along dim: (slices, k)."""
    rows, _ = slices(x, dim)
    count, columns = rows.shape
    values, indices = empty(rows, (count, k)), empty(rows, (count, k), np.dtype(np.int64))
    length, space = 0, None
    if k > _MOST_ROUNDS:
        length = min(_power_of_two(columns), max(_power_of_two(k), _LEAST_LENGTH))
        room = 2 * length * (16 if x.dtype == float64 else 8)
        if room > _SHARED_BYTES:
            space = empty(rows, (count, room), np.dtype(np.uint8))
    call("topk", rows, values, indices, space, order, length)
    return values, indices


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
