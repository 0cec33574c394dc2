"""Layer norm and RMS norm on the device (csrc/cuda/norms.cu), alone and after an addition."""

from math import prod
from typing import Any

from minitorch.backend import compute_dtype
from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty
from minitorch.kernels.reference import norms as reference

Array = Any

_BLOCKS = 528
"""Of the backward, four to a processor of an H200: how many parts the sums over rows have."""


@device_kernel("layer_norm")
def layer_norm(
    x: Array, weight: Array | None, bias: Array | None, *, eps: float = 1e-5, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """The reference's; the statistics are float32 where x is of half precision."""
    if not _takes(x):
        return reference.layer_norm(x, weight, bias, eps=eps, ndim=ndim)
    out, _, mean, rstd = _forward("layer_norm", x, None, weight, bias, eps, ndim)
    return out, mean, rstd


@device_kernel("layer_norm_backward")
def layer_norm_backward(
    grad: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """The reference's; gradients of weights are of the dtype of the statistics."""
    if not _takes(x):
        return reference.layer_norm_backward(grad, x, weight, mean, rstd, ndim=ndim)
    return _backward("layer_norm_backward", grad, x, weight, mean, rstd, None, ndim)


@device_kernel("rms_norm")
def rms_norm(
    x: Array, weight: Array | None, *, eps: float = 1e-6, ndim: int = 1
) -> tuple[Array, Array]:
    """The reference's; rstd is float32 where x is of half precision."""
    if not _takes(x):
        return reference.rms_norm(x, weight, eps=eps, ndim=ndim)
    out, _, _, rstd = _forward("rms_norm", x, None, weight, None, eps, ndim)
    return out, rstd


@device_kernel("rms_norm_backward")
def rms_norm_backward(
    grad: Array, x: Array, weight: Array | None, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array]:
    """The reference's; the gradient of the weight is of the dtype of rstd."""
    if not _takes(x):
        return reference.rms_norm_backward(grad, x, weight, rstd, ndim=ndim)
    dx, dweight, _ = _backward("rms_norm_backward", grad, x, weight, None, rstd, None, ndim)
    return dx, dweight


@device_kernel("add_layer_norm")
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
    if not _takes(x) or residual.dtype != x.dtype or residual.shape != x.shape:
        return reference.add_layer_norm(x, residual, weight, bias, eps=eps, ndim=ndim)
    return _forward("layer_norm", x, residual, weight, bias, eps, ndim)


@device_kernel("add_layer_norm_backward")
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
    if not _takes(sum):
        return reference.add_layer_norm_backward(grad, dsum, sum, weight, mean, rstd, ndim=ndim)
    return _backward("layer_norm_backward", grad, sum, weight, mean, rstd, dsum, ndim)


@device_kernel("add_rms_norm")
def add_rms_norm(
    x: Array, residual: Array, weight: Array | None, *, eps: float = 1e-6, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """The reference's, in one visit of each row."""
    if not _takes(x) or residual.dtype != x.dtype or residual.shape != x.shape:
        return reference.add_rms_norm(x, residual, weight, eps=eps, ndim=ndim)
    out, sum, _, rstd = _forward("rms_norm", x, residual, weight, None, eps, ndim)
    return out, sum, rstd


@device_kernel("add_rms_norm_backward")
def add_rms_norm_backward(
    grad: Array, dsum: Array, sum: Array, weight: Array | None, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array]:
    """The reference's."""
    if not _takes(sum):
        return reference.add_rms_norm_backward(grad, dsum, sum, weight, rstd, ndim=ndim)
    dx, dweight, _ = _backward("rms_norm_backward", grad, sum, weight, None, rstd, dsum, ndim)
    return dx, dweight


def _forward(
    kernel: str,
    x: Array,
    residual: Array | None,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    ndim: int,
) -> tuple[Array, Any, Any, Array]:
    """out; x + residual, or None; mean, or None for RMS; rstd."""
    wide, rows, leading = compute_dtype(x.dtype), _rows(x, ndim), x.shape[: x.ndim - ndim]
    out, sum = empty(rows), None if residual is None else empty(rows)
    mean = empty(x, leading, wide) if kernel == "layer_norm" else None
    rstd = empty(x, leading, wide)
    other = None if residual is None else _rows(residual, ndim)
    call(kernel, rows, other, _flat(weight, wide), _flat(bias, wide), out, sum, mean, rstd, eps)
    return out.reshape(x.shape), None if sum is None else sum.reshape(x.shape), mean, rstd


def _backward(
    kernel: str,
    grad: Array,
    x: Array,
    weight: Array | None,
    mean: Array | None,
    rstd: Array,
    dsum: Array | None,
    ndim: int,
) -> tuple[Array, Array, Any]:
    """Gradients for x, weight and, if there is a mean, bias."""
    wide, rows, features = compute_dtype(x.dtype), _rows(x, ndim), x.shape[x.ndim - ndim :]
    dx, sums = empty(rows), empty(x, (1 if mean is None else 2, *features), wide)
    call(
        kernel,
        _rows(grad.astype(x.dtype, copy=False), ndim),
        rows,
        _flat(weight, wide),
        _flat(mean, wide),
        _flat(rstd, wide),
        None if dsum is None else _rows(dsum.astype(x.dtype, copy=False), ndim),
        dx,
        empty(x, (min(len(rows), _BLOCKS), sums.size), wide),
        sums,
    )
    return dx.reshape(x.shape), sums[0], None if mean is None else sums[1]


def _takes(x: Array) -> bool:
    return x.dtype in FLOATS and x.size > 0


def _rows(x: Array, ndim: int) -> Array:
    """x as (slices, features), contiguous."""
    return contiguous(x).reshape(-1, prod(x.shape[x.ndim - ndim :]))


def _flat(x: Array | None, wide: Any) -> Any:
    return None if x is None else contiguous(x.astype(wide, copy=False)).reshape(-1)
