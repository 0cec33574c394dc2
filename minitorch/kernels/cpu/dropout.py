"""Dropout with a mask that is computed, not stored (csrc/cpu/kernels/dropout.h)."""

import numpy as np

from minitorch.backend import bfloat16
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.philox import words
from minitorch.kernels.reference import dropout as reference
from minitorch.kernels.table import register

Array = np.ndarray


@register("dropout", "cpu", half=(bfloat16,))
def dropout(x: Array, *, p: float, seed: int, offset: int) -> Array:
    """The reference's, to the bit in which elements it keeps."""
    if x.dtype not in FLOATS:
        return reference.dropout(x, p=p, seed=seed, offset=offset)
    x = np.asarray(x, order="C")
    out = np.empty(x.shape, x.dtype)
    key, counter = words(seed, offset)
    extension.dropout(x, out, np.array([*key, *counter], np.uint64).view(np.int64), p)
    return out
