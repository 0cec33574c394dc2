"""Mixture of experts on the CPU (csrc/cpu/kernels/experts.cpp): all experts in one call."""

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


@register("moe_swiglu", "cpu", half=(bfloat16,))
def moe_swiglu(
    x: Array, weights: Array | None, gate_up: Array, down: Array, places: Array, offs: Array
) -> tuple[Array, Array]:
    """The reference's."""
    if not _fit(x, weights, gate_up, down):
        return reference.moe_swiglu(x, weights, gate_up, down, places, offs)
    both = np.empty((places.size, gate_up.shape[1]), x.dtype)
    rows, out = np.empty((places.size, x.shape[1]), x.dtype), np.empty(x.shape, x.dtype)
    inputs = _contiguous(x, weights, gate_up, down, places, offs)
    extension.moe_swiglu(*inputs, both, rows, out)
    return out, both


@register("moe_swiglu_backward", "cpu", half=(bfloat16,))
def moe_swiglu_backward(
    grad: Array,
    x: Array,
    weights: Array | None,
    gate_up: Array,
    down: Array,
    places: Array,
    offs: Array,
    both: Array,
    *,
    needs: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """The reference's."""
    if not _fit(x, weights, gate_up, down) or grad.dtype != x.dtype:
        return reference.moe_swiglu_backward(
            grad, x, weights, gate_up, down, places, offs, both, needs=needs
        )
    grads, inputs, drows = (np.empty((places.size, x.shape[1]), x.dtype) for _ in range(3))
    dboth, units = np.empty_like(both), np.empty((places.size, down.shape[2]), x.dtype)
    results = [
        np.empty(array.shape, array.dtype) if need and array is not None else None
        for array, need in zip((x, weights, gate_up, down), needs, strict=False)
    ]
    kept = _contiguous(grad, x, weights, gate_up, down, places, offs, both)
    extension.moe_swiglu_backward(*kept, grads, inputs, drows, dboth, units, *results)
    return tuple(results)


def _fit(x: Array, *others: Array | None) -> bool:
    return (
        x.dtype in _DTYPES
        and x.size > 0
        and all(other is None or (other.dtype == x.dtype and other.size > 0) for other in others)
    )


def _contiguous(*arrays: Array | None) -> list[Array | None]:
    return [None if array is None else np.ascontiguousarray(array) for array in arrays]
