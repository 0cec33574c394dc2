"""The first elements of an order on the CPU (csrc/cpu/kernels/topk.h)."""

import numpy as np

from minitorch.backend import bfloat16
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import topk as reference
from minitorch.kernels.table import register

_MOST = 256
"""Beyond so many a sort is faster."""

Array = np.ndarray


@register("topk", "cpu", half=(bfloat16,))
def topk(x: Array, *, k: int, dim: int = -1, largest: bool = True) -> tuple[Array, Array]:
    """The reference's, in one pass over each slice."""
    if x.dtype not in FLOATS or not x.size or not 0 < k <= _MOST:
        return reference.topk(x, k=k, dim=dim, largest=largest)
    rows = np.ascontiguousarray(np.moveaxis(x, dim, -1))
    indices = np.empty((*rows.shape[:-1], k), np.int64)
    extension.topk(rows.reshape(-1, rows.shape[-1]), indices.reshape(-1, k), largest)
    indices = np.moveaxis(indices, -1, dim)
    return np.take_along_axis(x, indices, dim), indices
