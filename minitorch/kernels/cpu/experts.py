"""Products of groups of rows on the CPU: the matrix product, group by group."""

import numpy as np

from minitorch.backend import bfloat16
from minitorch.kernels.cpu.matmul import matmul
from minitorch.kernels.reference.experts import groups_of
from minitorch.kernels.table import register

Array = np.ndarray


@register("grouped_mm", "cpu", half=(bfloat16,))
def grouped_mm(x: Array, weight: Array, offs: Array) -> Array:
    """The reference's."""
    out = np.empty((len(x), weight.shape[2]), x.dtype)
    for e, group in enumerate(groups_of(offs)):
        if group.stop > group.start:
            matmul(x[group], weight[e], out=out[group])
    return out


@register("grouped_outer", "cpu", half=(bfloat16,))
def grouped_outer(x: Array, grad: Array, offs: Array) -> Array:
    """The reference's."""
    out = np.zeros((len(offs), x.shape[1], grad.shape[1]), x.dtype)
    for e, group in enumerate(groups_of(offs)):
        if group.stop > group.start:
            matmul(x[group].T, grad[group], out=out[e])
    return out
