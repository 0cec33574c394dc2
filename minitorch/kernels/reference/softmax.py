"""softmax, its logarithm and its normaliser along one dimension."""

import numpy as np

from minitorch.kernels.table import register

Array = np.ndarray


@register("softmax", "numpy")
def softmax(x: Array, *, dim: int = -1, scale: float = 1.0) -> Array:
    """exp(scale x) / sum(exp(scale x)) along dim, with the largest exponent shifted to 0.

    x: any shape; the result has it too. A slice that is -inf throughout gives NaN.
    """
    if scale < 0:
        x, scale = -x, -scale
    largest = x.max(axis=dim, keepdims=True, initial=-np.inf)
    out = np.subtract(x, largest, out=np.empty_like(x))
    if scale != 1:
        out *= scale
    np.exp(out, out=out)
    out /= out.sum(axis=dim, keepdims=True)
    return out


@register("softmax_backward", "numpy")
def softmax_backward(grad: Array, out: Array, *, dim: int = -1, scale: float = 1.0) -> Array:
    """scale (diag(s) - s sᵀ) grad along dim, where s is the output `out`; all of one shape."""
    result = grad * out
    inner = result.sum(axis=dim, keepdims=True)
    np.subtract(grad, inner, out=result)
    result *= out
    if scale != 1:
        result *= scale
    return result


@register("logsumexp", "numpy")
def logsumexp(x: Array, *, dim: int | tuple[int, ...] = -1, keepdim: bool = False) -> Array:
    """log(sum(exp(x))) along dim, without overflow; -inf where all of x is -inf."""
    largest = x.max(axis=dim, keepdims=True, initial=-np.inf)
    largest = np.where(np.isfinite(largest), largest, 0)
    shifted = np.subtract(x, largest, out=np.empty_like(x))
    total = np.exp(shifted, out=shifted).sum(axis=dim, keepdims=True)
    with np.errstate(divide="ignore"):
        out = np.log(total) + largest
    return out if keepdim else out.squeeze(axis=dim)


@register("log_softmax", "numpy")
def log_softmax(x: Array, *, dim: int = -1) -> Array:
    """x - log(sum(exp(x))) along dim. x: any shape; the result has it too."""
    largest = x.max(axis=dim, keepdims=True, initial=-np.inf)
    out = np.subtract(x, largest, out=np.empty_like(x))
    out -= np.log(np.exp(out).sum(axis=dim, keepdims=True))
    return out


@register("log_softmax_backward", "numpy")
def log_softmax_backward(grad: Array, out: Array, *, dim: int = -1) -> Array:
    """grad - exp(out) Σ grad along dim, where `out` is the output; all of one shape."""
    result = np.exp(out)
    result *= grad.sum(axis=dim, keepdims=True)
    return np.subtract(grad, result, out=result)


@register("logsumexp_backward", "numpy")
def logsumexp_backward(
    grad: Array, x: Array, out: Array, *, dim: int | tuple[int, ...] = -1, keepdim: bool = False
) -> Array:
    """grad exp(x - out), where `out` is the output; 0 where that is -inf, as all of x then is.

    grad, out: the shape of the result of logsumexp.
    """
    if not keepdim:
        grad, out = np.expand_dims(grad, dim), np.expand_dims(out, dim)
    result = x - np.where(np.isneginf(out), 0, out)
    np.exp(result, out=result)
    result *= grad
    return result
