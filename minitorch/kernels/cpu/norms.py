"""Layer norm and RMS norm (csrc/cpu/kernels/norms.h)."""

from math import prod
from typing import Any

import numpy as np

from minitorch.backend import float32, float64
from minitorch.kernels import reference
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.table import register

_DTYPES = frozenset({float32, float64})

Array = np.ndarray


@register("layer_norm", "cpu")
def layer_norm(
    x: Array, weight: Array | None, bias: Array | None, *, eps: float = 1e-5, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """The reference's."""
    if not _takes(x):
        return reference.layer_norm(x, weight, bias, eps=eps, ndim=ndim)
    rows, leading = _rows(x, ndim), x.shape[: x.ndim - ndim]
    out, mean, rstd = np.empty_like(rows), *np.empty((2, len(rows)), x.dtype)
    extension.layer_norm(rows, _flat(weight, x), _flat(bias, x), out, mean, rstd, eps)
    return out.reshape(x.shape), mean.reshape(leading), rstd.reshape(leading)


@register("layer_norm_backward", "cpu")
def layer_norm_backward(
    grad: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """The reference's."""
    if not _takes(x):
        return reference.layer_norm_backward(grad, x, weight, mean, rstd, ndim=ndim)
    rows, features = _rows(x, ndim), x.shape[x.ndim - ndim :]
    dx, dweight, dbias = np.empty_like(rows), *np.empty((2, rows.shape[1]), x.dtype)
    extension.layer_norm_backward(
        _rows(grad, ndim),
        rows,
        _flat(weight, x),
        np.ascontiguousarray(mean),
        np.ascontiguousarray(rstd),
        dx,
        dweight,
        dbias,
    )
    return dx.reshape(x.shape), dweight.reshape(features), dbias.reshape(features)


@register("rms_norm", "cpu")
def rms_norm(
    x: Array, weight: Array | None, *, eps: float = 1e-6, ndim: int = 1
) -> tuple[Array, Array]:
    """The reference's."""
    if not _takes(x):
        return reference.rms_norm(x, weight, eps=eps, ndim=ndim)
    rows = _rows(x, ndim)
    out, rstd = np.empty_like(rows), np.empty(len(rows), x.dtype)
    extension.rms_norm(rows, _flat(weight, x), None, out, None, rstd, eps)
    return out.reshape(x.shape), rstd.reshape(x.shape[: x.ndim - ndim])


@register("rms_norm_backward", "cpu")
def rms_norm_backward(
    grad: Array, x: Array, weight: Array | None, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array]:
    """The reference's."""
    if not _takes(x):
        return reference.rms_norm_backward(grad, x, weight, rstd, ndim=ndim)
    rows = _rows(x, ndim)
    dx, dweight = np.empty_like(rows), np.empty(rows.shape[1], x.dtype)
    extension.rms_norm_backward(
        _rows(grad, ndim),
        rows,
        _flat(weight, x),
        None,
        np.ascontiguousarray(rstd),
        dx,
        dweight,
        None,
    )
    return dx.reshape(x.shape), dweight.reshape(x.shape[x.ndim - ndim :])


def _takes(x: Array) -> bool:
    return x.dtype in _DTYPES and x.size > 0


def _rows(x: Array, ndim: int) -> Array:
    """x as (slices, features), contiguous."""
    return np.ascontiguousarray(x).reshape(-1, prod(x.shape[x.ndim - ndim :]))


def _flat(weight: Array | None, x: Array) -> Any:
    return None if weight is None else np.ascontiguousarray(weight, x.dtype).reshape(-1)
