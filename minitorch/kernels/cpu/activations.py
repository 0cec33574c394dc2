"""Activations (csrc/cpu/kernels/activations.h), forward and backward in one pass each."""

from typing import Any

import numpy as np

from minitorch.backend import bfloat16
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import activations as reference
from minitorch.kernels.table import register

Array = np.ndarray


@register("silu", "cpu", half=(bfloat16,))
def silu(x: Array) -> Array:
    """The reference's."""
    return _forward(extension.silu, x) if x.dtype in FLOATS else reference.silu(x)


@register("silu_backward", "cpu", half=(bfloat16,))
def silu_backward(grad: Array, x: Array) -> Array:
    """The reference's."""
    if x.dtype not in FLOATS:
        return reference.silu_backward(grad, x)
    return _backward(extension.silu, grad, x)


@register("gelu", "cpu", half=(bfloat16,))
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """The reference's."""
    if x.dtype not in FLOATS:
        return reference.gelu(x, approximate=approximate)
    return _forward(extension.gelu_tanh if approximate == "tanh" else extension.gelu, x)


@register("gelu_backward", "cpu", half=(bfloat16,))
def gelu_backward(grad: Array, x: Array, *, approximate: str = "none") -> Array:
    """The reference's."""
    if x.dtype not in FLOATS:
        return reference.gelu_backward(grad, x, approximate=approximate)
    return _backward(extension.gelu_tanh if approximate == "tanh" else extension.gelu, grad, x)


def gradient_and_value(name: str, grad: Array, x: Array) -> tuple[Array, Array]:
    """grad f'(x), in the place of grad, and f(x), in one pass.

    f is "silu", "gelu" or "gelu_tanh"; both arrays are contiguous.
    """
    value = np.empty_like(x)
    getattr(extension, name)(grad, x, grad, value)
    return grad, value


@register("swiglu", "cpu", half=(bfloat16,))
def swiglu(gate: Array, up: Array) -> Array:
    """The reference's; of the halves of one array without a copy."""
    if not _fit(gate, up):
        return reference.swiglu(gate, up)
    out = np.empty(gate.shape, gate.dtype)
    extension.swiglu(_rows(gate), _rows(up), _rows(out))
    return out


@register("swiglu_backward", "cpu", half=(bfloat16,))
def swiglu_backward(
    grad: Array, gate: Array, up: Array, *, out: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """The reference's."""
    if not _fit(grad, gate, up, *(out or ())):
        return reference.swiglu_backward(grad, gate, up, out=out)
    dgate, dup = out or (np.empty(gate.shape, gate.dtype), np.empty(gate.shape, gate.dtype))
    into = [_rows(dgate), _rows(dup)]
    if not all(np.shares_memory(rows, whole) for rows, whole in zip(into, (dgate, dup))):
        return reference.swiglu_backward(grad, gate, up, out=out)
    extension.swiglu(_rows(grad), _rows(gate), _rows(up), *into)
    return dgate, dup


def _fit(*arrays: Array) -> bool:
    """Whether these are arrays of one shape and dtype, and one that there is code for."""
    first = arrays[0]
    return (
        first.dtype in FLOATS
        and first.size > 0
        and first.ndim > 0
        and all(x.shape == first.shape and x.dtype == first.dtype for x in arrays)
    )


def _rows(x: Array) -> Array:
    """x as (rows, columns), each row contiguous; a view where strides allow."""
    rows = x.reshape(-1, x.shape[-1])
    fits = rows.shape[1] == 1 or rows.strides[1] == rows.itemsize
    return rows if fits else np.ascontiguousarray(rows)


def _forward(kernel: Any, x: Array) -> Array:
    x = np.asarray(x, order="C")
    out = np.empty_like(x)
    kernel(x, out)
    return out


def _backward(kernel: Any, grad: Array, x: Array) -> Array:
    if grad.shape != x.shape or grad.dtype != x.dtype:
        raise ValueError(f"expected a gradient like x, {x.shape} {x.dtype}; got {grad.shape}")
    grad, x = np.ascontiguousarray(grad), np.asarray(x, order="C")
    out = np.empty_like(x)
    kernel(grad, x, out)
    return out
