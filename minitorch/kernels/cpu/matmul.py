"""Matrix products (csrc/cpu/kernels/matmul.h): any strides, batches, bias and residual fused.

bfloat16 is read and written as it is; products are added up in float32.
"""

from typing import Any

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels import reference
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.table import register

_DTYPES = frozenset({float32, float64, bfloat16})
_MOST_DIMS = 8

Array = np.ndarray


@register("matmul", "cpu", half=(bfloat16,))
def matmul(
    a: Array,
    b: Array,
    *,
    out: Array | None = None,
    alpha: float = 1.0,
    accumulate: bool = False,
    bias: Array | None = None,
    residual: Array | None = None,
) -> Array:
    """The reference's. out, if given, is written where it is; its last dimension has stride 1."""
    if a.dtype not in _DTYPES or a.dtype != b.dtype or max(a.ndim, b.ndim) > _MOST_DIMS:
        return reference.matmul(
            a, b, out=out, alpha=alpha, accumulate=accumulate, bias=bias, residual=residual
        )
    if a.ndim > 2 or b.ndim > 2:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a = np.broadcast_to(a, batch + a.shape[-2:])
        b = np.broadcast_to(b, batch + b.shape[-2:])
    shape = (*a.shape[:-1], b.shape[-1])
    if a.shape[-1] != b.shape[-2] or (out is not None and out.shape != shape):
        raise ValueError(f"matmul: {a.shape} and {b.shape} do not make {shape}")
    if out is None:
        out = np.empty(shape, a.dtype)
    if residual is not None:
        residual = np.ascontiguousarray(np.broadcast_to(residual, shape), out.dtype)
    if bias is not None:
        bias = np.ascontiguousarray(np.broadcast_to(bias, shape[-1:]), out.dtype)
    extension.matmul(a, b, out, bias, residual, None, alpha, accumulate)
    return out


@register("linear", "cpu", half=(bfloat16,))
def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """The reference's, the bias added as the product is written."""
    if x.dtype not in _DTYPES:
        return reference.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1]) if x.size else x.reshape(x.size, x.shape[-1])
    out = np.empty((rows.shape[0], weight.shape[0]), x.dtype)
    extension.matmul(rows, weight.T, out, _contiguous(bias), None, None, 1.0, 0.0)
    return out.reshape(*x.shape[:-1], weight.shape[0])


@register("linear_backward", "cpu", half=(bfloat16,))
def linear_backward(
    grad: Array, x: Array, weight: Array, *, needs: tuple[bool, ...]
) -> tuple[Array | None, Array | None, Array | None]:
    """The reference's: two products; the sums of grad's columns come with the second."""
    if x.dtype not in _DTYPES:
        return reference.linear_backward(grad, x, weight, needs=needs)
    features, inner = weight.shape
    grad_rows, x_rows = grad.reshape(-1, features), x.reshape(-1, inner)
    dx = dweight = dbias = None
    if needs[0]:
        dx = np.empty(x_rows.shape, x.dtype)
        extension.matmul(grad_rows, weight, dx, None, None, None, 1.0, 0.0)
        dx = dx.reshape(x.shape)
    if needs[1] or needs[2]:
        sums = np.zeros(features, float64 if x.dtype == float64 else float32)
        dweight = np.empty(weight.shape, x.dtype)
        extension.matmul(
            grad_rows.T, x_rows, dweight, None, None, sums if needs[2] else None, 1.0, 0.0
        )
        dbias = sums.astype(x.dtype, copy=False)
    return dx, dweight if needs[1] else None, dbias if needs[2] else None


def _contiguous(x: Any) -> Any:
    return None if x is None else np.ascontiguousarray(x)
