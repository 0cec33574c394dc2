"""Products of groups of rows on the CPU (csrc/cpu/kernels/experts.cpp): all groups in one call."""

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import experts as reference
from minitorch.kernels.table import register

_DTYPES = frozenset({float32, float64, bfloat16})

Array = np.ndarray


@register("grouped_mm", "cpu", half=(bfloat16,))
def grouped_mm(x: Array, weight: Array, offs: Array) -> Array:
    """The reference's."""
    if x.dtype not in _DTYPES or weight.dtype != x.dtype:
        return reference.grouped_mm(x, weight, offs)
    out = np.empty((len(x), weight.shape[2]), x.dtype)
    extension.grouped_mm(x, weight, np.ascontiguousarray(offs, np.int64), out)
    return out


@register("grouped_outer", "cpu", half=(bfloat16,))
def grouped_outer(x: Array, grad: Array, offs: Array) -> Array:
    """The reference's."""
    if x.dtype not in _DTYPES or grad.dtype != x.dtype:
        return reference.grouped_outer(x, grad, offs)
    out = np.empty((len(offs), x.shape[1], grad.shape[1]), x.dtype)
    extension.grouped_outer(x, grad, np.ascontiguousarray(offs, np.int64), out)
    return out
