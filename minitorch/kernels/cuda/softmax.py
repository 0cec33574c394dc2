"""Softmax, log-softmax and logsumexp on the device (csrc/cuda/softmax.cu, logsumexp.cu)."""

from typing import Any

from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty
from minitorch.kernels.cuda.layout import reduced, slices
from minitorch.kernels.reference import softmax as reference

Array = Any


@device_kernel("softmax")
def softmax(x: Array, *, dim: int = -1, scale: float = 1.0) -> Array:
    """The reference's; dims other than the last are moved there by a copy."""
    if not _takes(x):
        return reference.softmax(x, dim=dim, scale=scale)
    return _forward("softmax", x, dim, scale)


@device_kernel("softmax_backward")
def softmax_backward(grad: Array, out: Array, *, dim: int = -1, scale: float = 1.0) -> Array:
    """The reference's."""
    if not _takes(out) or grad.dtype != out.dtype:
        return reference.softmax_backward(grad, out, dim=dim, scale=scale)
    return _backward("softmax_backward", grad, out, dim, scale)


@device_kernel("log_softmax")
def log_softmax(x: Array, *, dim: int = -1) -> Array:
    """The reference's; dims other than the last are moved there by a copy."""
    return _forward("log_softmax", x, dim) if _takes(x) else reference.log_softmax(x, dim=dim)


@device_kernel("log_softmax_backward")
def log_softmax_backward(grad: Array, out: Array, *, dim: int = -1) -> Array:
    """The reference's."""
    if not _takes(out) or grad.dtype != out.dtype:
        return reference.log_softmax_backward(grad, out, dim=dim)
    return _backward("log_softmax_backward", grad, out, dim)


@device_kernel("logsumexp")
def logsumexp(x: Array, *, dim: int | tuple[int, ...] = -1, keepdim: bool = False) -> Array:
    """The reference's; dims that are not the last ones are moved there by a copy."""
    if not _takes(x):
        return reference.logsumexp(x, dim=dim, keepdim=keepdim)
    rows, dims = slices(x, dim)
    out = empty(x, (len(rows),))
    call("logsumexp", rows, out)
    return out.reshape(reduced(x, dims, keepdim))


@device_kernel("logsumexp_backward")
def logsumexp_backward(
    grad: Array, x: Array, out: Array, *, dim: int | tuple[int, ...] = -1, keepdim: bool = False
) -> Array:
    """The reference's."""
    if not _takes(x) or grad.dtype != x.dtype or out.dtype != x.dtype:
        return reference.logsumexp_backward(grad, x, out, dim=dim, keepdim=keepdim)
    rows, dims = slices(x, dim)
    dx = empty(rows)
    grads, outs = (contiguous(array).reshape(-1) for array in (grad, out))
    call("logsumexp_backward", grads, rows, outs, dx)
    order = [*(i for i in range(x.ndim) if i not in dims), *dims]
    return dx.reshape([x.shape[i] for i in order]).transpose(
        [order.index(i) for i in range(x.ndim)]
    )


def _takes(x: Array) -> bool:
    return x.dtype in FLOATS and x.ndim > 0 and x.size > 0


def _forward(kernel: str, x: Array, dim: int, *numbers: float) -> Array:
    rows = contiguous(x.swapaxes(dim, -1))
    out = empty(rows)
    call(kernel, _matrix(rows), _matrix(out), *numbers)
    return out.swapaxes(dim, -1)


def _backward(kernel: str, grad: Array, out: Array, dim: int, *numbers: float) -> Array:
    grads, outs = contiguous(grad.swapaxes(dim, -1)), contiguous(out.swapaxes(dim, -1))
    dx = empty(outs)
    call(kernel, _matrix(grads), _matrix(outs), _matrix(dx), *numbers)
    return dx.swapaxes(dim, -1)


def _matrix(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
