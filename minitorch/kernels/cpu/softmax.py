"""Softmax (csrc/cpu/kernels/softmax.h)."""

import numpy as np

from minitorch.kernels import reference
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.table import register

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


@register("softmax", "cpu")
def softmax(x: np.ndarray, *, dim: int = -1, scale: float = 1.0) -> np.ndarray:
    """The reference's, in one visit of each row; another dim is moved last and back."""
    if x.dtype not in _DTYPES or x.ndim == 0:
        return reference.softmax(x, dim=dim, scale=scale)
    last = x.ndim - 1
    rows = np.ascontiguousarray(x if dim in (-1, last) else x.swapaxes(dim, last))
    out = np.empty_like(rows)
    extension.softmax(rows, out, scale)
    return out if dim in (-1, last) else out.swapaxes(dim, last)


@register("softmax_backward", "cpu")
def softmax_backward(
    grad: np.ndarray, out: np.ndarray, *, dim: int = -1, scale: float = 1.0
) -> np.ndarray:
    """The reference's, row by row; another dim is moved last and back."""
    if out.dtype not in _DTYPES or out.ndim == 0 or grad.shape != out.shape:
        return reference.softmax_backward(grad, out, dim=dim, scale=scale)
    last = out.ndim - 1
    moved = dim not in (-1, last)
    rows, upstream = (
        np.ascontiguousarray(x.swapaxes(dim, last) if moved else x) for x in (out, grad)
    )
    dx = np.empty_like(rows)
    extension.softmax_backward(upstream.astype(rows.dtype, copy=False), rows, dx, scale)
    return dx.swapaxes(dim, last) if moved else dx
