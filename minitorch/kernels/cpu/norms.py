"""Layer norm and RMS norm (csrc/cpu/kernels/norms.h), alone and with the addition before them."""

from math import prod
from typing import Any

import numpy as np

from minitorch.backend import bfloat16, compute_dtype, float32, float64
from minitorch.kernels.cpu.arrays import fit
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import norms as reference
from minitorch.kernels.table import register

Array = np.ndarray


@register("layer_norm", "cpu", half=(bfloat16,))
def layer_norm(
    x: Array, weight: Array | None, bias: Array | None, *, eps: float = 1e-5, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """The reference's."""
    if ndim == 1 and (done := extension.norm_as_it_is(x, weight, bias, eps, True)):
        return done
    if not fit(x):
        return reference.layer_norm(x, weight, bias, eps=eps, ndim=ndim)
    out, _, mean, rstd = _forward(extension.layer_norm, x, None, weight, bias, eps, ndim, True)
    return out, mean, rstd


@register("layer_norm_backward", "cpu", half=(bfloat16,))
def layer_norm_backward(
    grad: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """The reference's; gradients of weights are of the dtype of the statistics."""
    if not fit(x):
        return reference.layer_norm_backward(grad, x, weight, mean, rstd, ndim=ndim)
    return _backward(extension.layer_norm_backward, grad, x, weight, mean, rstd, None, ndim)


@register("rms_norm", "cpu", half=(bfloat16,))
def rms_norm(
    x: Array, weight: Array | None, *, eps: float = 1e-6, ndim: int = 1
) -> tuple[Array, Array]:
    """The reference's."""
    if ndim == 1 and (done := extension.norm_as_it_is(x, weight, None, eps, False)):
        return done[0], done[2]
    if not fit(x):
        return reference.rms_norm(x, weight, eps=eps, ndim=ndim)
    out, _, _, rstd = _forward(extension.rms_norm, x, None, weight, None, eps, ndim, False)
    return out, rstd


@register("rms_norm_backward", "cpu", half=(bfloat16,))
def rms_norm_backward(
    grad: Array, x: Array, weight: Array | None, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array]:
    """The reference's; the gradient of the weight is of the dtype of rstd."""
    if not fit(x):
        return reference.rms_norm_backward(grad, x, weight, rstd, ndim=ndim)
    dx, dweight, _ = _backward(extension.rms_norm_backward, grad, x, weight, None, rstd, None, ndim)
    return dx, dweight


@register("gated_rms_norm", "cpu")
def gated_rms_norm(
    x: Array, gate: Array, weight: Array | None, *, eps: float = 1e-6
) -> tuple[Array, Array]:
    """The reference's, in one visit of each row."""
    if x.dtype not in (float32, float64) or not fit(x, gate, weight):
        return reference.gated_rms_norm(x, gate, weight, eps=eps)
    out, rstd = np.empty(x.shape, x.dtype), np.empty(x.shape[:-1], x.dtype)
    arrays = _rows(x, 1), _rows(gate, 1), _flat(weight, x.dtype), _rows(out, 1), rstd
    extension.gated_rms_norm(*arrays, eps)
    return out, rstd


@register("gated_rms_norm_backward", "cpu")
def gated_rms_norm_backward(
    grad: Array, x: Array, gate: Array, weight: Array | None, rstd: Array
) -> tuple[Array, Array, Array]:
    """The reference's."""
    if x.dtype not in (float32, float64) or not fit(x, grad, gate, weight):
        return reference.gated_rms_norm_backward(grad, x, gate, weight, rstd)
    dx, dgate, dweight = (np.empty(shape, x.dtype) for shape in (x.shape, x.shape, x.shape[-1:]))
    given = _rows(grad, 1), _rows(x, 1), _rows(gate, 1), _flat(weight, x.dtype)
    results = _rows(dx, 1), _rows(dgate, 1), dweight
    extension.gated_rms_norm_backward(*given, np.ascontiguousarray(rstd), *results)
    return dx, dgate, dweight


@register("add_layer_norm", "cpu", half=(bfloat16,))
def add_layer_norm(
    x: Array,
    residual: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    eps: float = 1e-5,
    ndim: int = 1,
) -> tuple[Array, Array, Array, Array]:
    """The reference's, in one visit of each row."""
    if not fit(x) or residual.dtype != x.dtype or residual.shape != x.shape:
        return reference.add_layer_norm(x, residual, weight, bias, eps=eps, ndim=ndim)
    return _forward(extension.layer_norm, x, residual, weight, bias, eps, ndim, True)


@register("add_layer_norm_backward", "cpu", half=(bfloat16,))
def add_layer_norm_backward(
    grad: Array,
    dsum: Array,
    sum: Array,
    weight: Array | None,
    mean: Array,
    rstd: Array,
    *,
    ndim: int = 1,
) -> tuple[Array, Array, Array]:
    """The reference's."""
    if not fit(sum):
        return reference.add_layer_norm_backward(grad, dsum, sum, weight, mean, rstd, ndim=ndim)
    return _backward(extension.layer_norm_backward, grad, sum, weight, mean, rstd, dsum, ndim)


@register("add_rms_norm", "cpu", half=(bfloat16,))
def add_rms_norm(
    x: Array, residual: Array, weight: Array | None, *, eps: float = 1e-6, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """The reference's, in one visit of each row."""
    if not fit(x) or residual.dtype != x.dtype or residual.shape != x.shape:
        return reference.add_rms_norm(x, residual, weight, eps=eps, ndim=ndim)
    out, sum, _, rstd = _forward(extension.rms_norm, x, residual, weight, None, eps, ndim, False)
    return out, sum, rstd


@register("add_rms_norm_backward", "cpu", half=(bfloat16,))
def add_rms_norm_backward(
    grad: Array, dsum: Array, sum: Array, weight: Array | None, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array]:
    """The reference's."""
    if not fit(sum):
        return reference.add_rms_norm_backward(grad, dsum, sum, weight, rstd, ndim=ndim)
    dx, dweight, _ = _backward(
        extension.rms_norm_backward, grad, sum, weight, None, rstd, dsum, ndim
    )
    return dx, dweight


def _forward(
    kernel: Any,
    x: Array,
    residual: Array | None,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    ndim: int,
    centred: bool,
) -> tuple[Array, Any, Any, Array]:
    """out; x + residual, or None; mean, if centred; rstd."""
    wide = compute_dtype(x.dtype)
    rows, leading = _rows(x, ndim), x.shape[: x.ndim - ndim]
    other = None if residual is None else _rows(residual, ndim)
    out, sum = np.empty_like(rows), None if residual is None else np.empty_like(rows)
    mean, rstd = np.empty(leading, wide) if centred else None, np.empty(leading, wide)
    as_x = all(p is None or p.dtype == x.dtype for p in (weight, bias))
    weight, bias = (_flat(p, x.dtype if as_x else wide) for p in (weight, bias))
    kernel(rows, other, weight, bias, out, sum, mean, rstd, eps)
    return out.reshape(x.shape), None if sum is None else sum.reshape(x.shape), mean, rstd


def _backward(
    kernel: Any,
    grad: Array,
    x: Array,
    weight: Array | None,
    mean: Array | None,
    rstd: Array,
    dsum: Array | None,
    ndim: int,
) -> tuple[Array, Array, Any]:
    """Gradients for x, weight and, if there is a mean, bias."""
    if ndim == 1 and (done := extension.norm_backward_as_it_is(grad, x, weight, mean, rstd, dsum)):
        return done
    wide, rows, features = compute_dtype(x.dtype), _rows(x, ndim), x.shape[x.ndim - ndim :]
    dx, dweight = np.empty(x.shape, x.dtype), np.empty(features, wide)
    dbias = None if mean is None else np.empty(features, wide)
    kernel(
        _rows(grad.astype(x.dtype, copy=False), ndim),
        rows,
        _flat(weight, wide),
        None if mean is None else np.ascontiguousarray(mean, wide),
        np.ascontiguousarray(rstd, wide),
        None if dsum is None else _rows(dsum.astype(x.dtype, copy=False), ndim),
        _rows(dx, ndim),
        dweight,
        dbias,
    )
    return dx, dweight, dbias


def _rows(x: Array, ndim: int) -> Array:
    """x as (slices, features), contiguous."""
    return np.ascontiguousarray(x).reshape(-1, prod(x.shape[x.ndim - ndim :]))


def _flat(weight: Array | None, wide: np.dtype) -> Any:
    return None if weight is None else np.ascontiguousarray(weight, wide).reshape(-1)
