"""A block of a GPT that takes in one new token of each sequence (csrc/cpu/kernels/decoding.cpp)."""

import numpy as np

from minitorch.kernels.cpu.arrays import FLOATS, contiguous
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.cpu.matmul import ACTIVATIONS
from minitorch.kernels.reference import decoding as reference
from minitorch.kernels.table import register

Array = np.ndarray


@register("decode_block", "cpu", half=reference.HALF)
def decode_block(x: Array, *others: Array, eps: float, activation: str) -> Array:
    """The reference's, in one call; "gelu" is left to it."""
    *parameters, keys, values = others
    dtype = x.dtype
    if (
        dtype not in FLOATS
        or activation not in ACTIVATIONS
        or any(array is not None and array.dtype != dtype for array in others)
        or not (x.size and _rows_lie(keys) and _rows_lie(values))
    ):
        return reference.decode_block(x, *others, eps=eps, activation=activation)
    rows, out = np.ascontiguousarray(x).reshape(-1, x.shape[2]), np.empty(x.shape, dtype)
    extension.decode_block(
        rows, contiguous(*parameters), keys, values, out, eps, ACTIVATIONS[activation]
    )
    return out


def _rows_lie(x: Array) -> bool:
    return x.shape[3] == 1 or x.strides[3] == x.itemsize
