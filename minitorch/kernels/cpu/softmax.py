"""Softmax, log-softmax and logsumexp (csrc/cpu/kernels/softmax.h)."""

from math import prod

import numpy as np

from minitorch.backend import bfloat16
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import softmax as reference
from minitorch.kernels.table import register

Array = np.ndarray


@register("softmax", "cpu", half=(bfloat16,))
def softmax(x: Array, *, dim: int = -1, scale: float = 1.0) -> Array:
    """The reference's; along any dim, without a copy."""
    if not _takes(x):
        return reference.softmax(x, dim=dim, scale=scale)
    out = np.empty(x.shape, x.dtype)
    extension.softmax(_blocks(x, dim), _blocks(out, dim), scale)
    return out


@register("softmax_backward", "cpu", half=(bfloat16,))
def softmax_backward(grad: Array, out: Array, *, dim: int = -1, scale: float = 1.0) -> Array:
    """The reference's."""
    if not _takes(out) or grad.shape != out.shape or grad.dtype != out.dtype:
        return reference.softmax_backward(grad, out, dim=dim, scale=scale)
    dx = np.empty(out.shape, out.dtype)
    extension.softmax_backward(_blocks(grad, dim), _blocks(out, dim), _blocks(dx, dim), scale)
    return dx


@register("log_softmax", "cpu", half=(bfloat16,))
def log_softmax(x: Array, *, dim: int = -1) -> Array:
    """The reference's; along any dim, without a copy."""
    if not _takes(x):
        return reference.log_softmax(x, dim=dim)
    out = np.empty(x.shape, x.dtype)
    extension.log_softmax(_blocks(x, dim), _blocks(out, dim))
    return out


@register("log_softmax_backward", "cpu", half=(bfloat16,))
def log_softmax_backward(grad: Array, out: Array, *, dim: int = -1) -> Array:
    """The reference's."""
    if not _takes(out) or grad.shape != out.shape or grad.dtype != out.dtype:
        return reference.log_softmax_backward(grad, out, dim=dim)
    dx = np.empty(out.shape, out.dtype)
    extension.log_softmax_backward(_blocks(grad, dim), _blocks(out, dim), _blocks(dx, dim))
    return dx


@register("logsumexp", "cpu", half=(bfloat16,))
def logsumexp(x: Array, *, dim: int | tuple[int, ...] = -1, keepdim: bool = False) -> Array:
    """The reference's; dims that are not the last ones are moved there by a copy."""
    if not _takes(x):
        return reference.logsumexp(x, dim=dim, keepdim=keepdim)
    rows, dims = _rows(x, dim)
    out = np.empty(len(rows), x.dtype)
    extension.logsumexp(rows, out)
    kept = [1 if i in dims else n for i, n in enumerate(x.shape) if keepdim or i not in dims]
    return out.reshape(kept)


@register("logsumexp_backward", "cpu", half=(bfloat16,))
def logsumexp_backward(
    grad: Array, x: Array, out: Array, *, dim: int | tuple[int, ...] = -1, keepdim: bool = False
) -> Array:
    """The reference's."""
    if not _takes(x) or grad.dtype != x.dtype:
        return reference.logsumexp_backward(grad, x, out, dim=dim, keepdim=keepdim)
    rows, dims = _rows(x, dim)
    dx = np.empty_like(rows)
    extension.logsumexp_backward(
        np.ascontiguousarray(grad).reshape(-1), rows, np.ascontiguousarray(out).reshape(-1), dx
    )
    others = [i for i in range(x.ndim) if i not in dims]
    order = [*others, *dims]
    return dx.reshape([x.shape[i] for i in order]).transpose(np.argsort(order))


def _takes(x: Array) -> bool:
    return x.dtype in FLOATS and x.ndim > 0 and x.size > 0


def _blocks(x: Array, dim: int) -> Array:
    """x, made contiguous, as (outer, the dimension dim, inner)."""
    dim %= x.ndim
    shape = x.shape
    return np.ascontiguousarray(x).reshape(prod(shape[:dim]), shape[dim], prod(shape[dim + 1 :]))


def _rows(x: Array, dim: int | tuple[int, ...]) -> tuple[Array, list[int]]:
    """x as (slices, elements of dim, 1), contiguous; and which dims these are, in order."""
    dims = sorted(i % x.ndim for i in ((dim,) if isinstance(dim, int) else dim))
    others = [i for i in range(x.ndim) if i not in dims]
    moved = np.ascontiguousarray(x.transpose([*others, *dims]))
    return moved.reshape(-1, prod(x.shape[i] for i in dims), 1), dims
