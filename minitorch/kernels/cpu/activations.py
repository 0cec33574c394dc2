"""Activations (csrc/cpu/kernels/activations.h), forward and backward in one pass each."""

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels import reference
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.table import register

_DTYPES = frozenset({float32, float64, bfloat16})

Array = np.ndarray


@register("silu", "cpu", half=(bfloat16,))
def silu(x: Array) -> Array:
    """The reference's."""
    return _forward(extension.silu, x) if x.dtype in _DTYPES else reference.silu(x)


@register("silu_backward", "cpu", half=(bfloat16,))
def silu_backward(grad: Array, x: Array) -> Array:
    """The reference's."""
    if x.dtype not in _DTYPES:
        return reference.silu_backward(grad, x)
    return _backward(extension.silu, grad, x)


@register("gelu", "cpu", half=(bfloat16,))
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """The reference's; the exact one, which needs erf, is left to it."""
    if approximate != "tanh" or x.dtype not in _DTYPES:
        return _in_float32(reference.gelu, x, approximate=approximate)
    return _forward(extension.gelu_tanh, x)


@register("gelu_backward", "cpu", half=(bfloat16,))
def gelu_backward(grad: Array, x: Array, *, approximate: str = "none") -> Array:
    """The reference's; the exact one, which needs erf, is left to it."""
    if approximate != "tanh" or x.dtype not in _DTYPES:
        return _in_float32(reference.gelu_backward, grad, x, approximate=approximate)
    return _backward(extension.gelu_tanh, grad, x)


def _forward(kernel, x: Array) -> Array:
    x = np.ascontiguousarray(x)
    out = np.empty_like(x)
    kernel(x, out)
    return out


def _backward(kernel, grad: Array, x: Array) -> Array:
    if grad.shape != x.shape or grad.dtype != x.dtype:
        raise ValueError(f"expected a gradient like x, {x.shape} {x.dtype}; got {grad.shape}")
    grad, x = np.ascontiguousarray(grad), np.ascontiguousarray(x)
    out = np.empty_like(x)
    kernel(grad, x, out)
    return out


def _in_float32(kernel, *arrays: Array, approximate: str) -> Array:
    """The reference, which knows no bfloat16."""
    dtype = arrays[0].dtype
    if dtype != bfloat16:
        return kernel(*arrays, approximate=approximate)
    wide = [array.astype(float32) for array in arrays]
    return kernel(*wide, approximate=approximate).astype(dtype)
