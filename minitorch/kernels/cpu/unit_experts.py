"""Experts of one hidden unit on the CPU (csrc/cpu/kernels/unit_experts.cpp)."""

import numpy as np

from minitorch.backend import bfloat16
from minitorch.kernels.cpu.arrays import contiguous, fit, integers
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import unit_experts as reference
from minitorch.kernels.reference.embedding import check_rows
from minitorch.kernels.table import register

Array = np.ndarray


@register("unit_experts", "cpu", half=(bfloat16,))
def unit_experts(
    x: Array, weights: Array, down: Array, up: Array, index: Array
) -> tuple[Array, Array]:
    """The reference's; rows are read where they lie."""
    if not fit(x, weights, down, up) or not index.size:
        return reference.unit_experts(x, weights, down, up, index)
    check_rows(index, len(down))
    pre, out = np.empty(index.shape, x.dtype), np.empty(x.shape, x.dtype)
    extension.unit_experts(*contiguous(x, weights, down, up), integers(index), pre, out)
    return out, pre


@register("unit_experts_backward", "cpu", half=(bfloat16,))
def unit_experts_backward(
    grad: Array,
    x: Array,
    weights: Array,
    down: Array,
    up: Array,
    index: Array,
    pre: Array,
    *,
    needs: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """The reference's, the rows of a table added up in the order of their tokens."""
    if not fit(grad, x, weights, down, up) or not index.size:
        return reference.unit_experts_backward(grad, x, weights, down, up, index, pre, needs=needs)
    slopes, units, dweights = (np.empty(index.shape, x.dtype) for _ in range(3))
    dx, ddown, dup = (
        np.empty(array.shape, x.dtype) if need else None
        for array, need in ((x, needs[0]), (down, needs[2]), (up, needs[3]))
    )
    arrays = *contiguous(x, weights, down, up), integers(index), *contiguous(grad, pre)
    extension.unit_experts_backward(*arrays, slopes, units, dx, dweights, ddown, dup)
    return dx, dweights, ddown, dup
