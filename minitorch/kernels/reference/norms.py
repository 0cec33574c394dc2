"""Layer norm and RMS norm, alone and with the sum before them."""

from math import prod

import numpy as np

from minitorch.kernels.reference.parts import part
from minitorch.kernels.table import register

Array = np.ndarray


@register("layer_norm", "numpy")
def layer_norm(
    x: Array, weight: Array | None, bias: Array | None, *, eps: float = 1e-5, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """(x - mean) rstd weight + bias over the last ndim dimensions; rstd = 1/sqrt(var + eps).

    x: (..., *features) with ndim feature dimensions; weight, bias: features, or None.
    Returns out: the shape of x; mean, rstd: (...), one per normalised slice.
    Source: Ba et al. 2016, equation 3, with the biased variance.
    """
    rows = _as_rows(x, ndim)
    mean = _row_sums(rows) / rows.shape[1]
    out = rows - mean[:, None]
    variance = np.vecdot(out, out) / rows.shape[1]
    rstd = 1 / np.sqrt(variance + eps)
    out *= rstd[:, None]
    if weight is not None:
        out *= weight.reshape(-1)
    if bias is not None:
        out += bias.reshape(-1)
    leading = x.shape[: x.ndim - ndim]
    return out.reshape(x.shape), mean.reshape(leading), rstd.reshape(leading)


@register("layer_norm_backward", "numpy")
def layer_norm_backward(
    grad: Array, x: Array, weight: Array | None, mean: Array, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """Gradients for x, weight and bias.

    With n = (x - mean) rstd and g = grad weight:
        dx = rstd (g - mean(g) - n mean(g n)),  dweight = Σ grad n,  dbias = Σ grad.
    grad, x: (..., *features); mean, rstd: (...). dweight and dbias come even without a weight.
    """
    features = x.shape[x.ndim - ndim :]
    grad_rows = _as_rows(grad, ndim)
    normalised = _as_rows(x, ndim) - mean.reshape(-1, 1)
    normalised *= rstd.reshape(-1, 1)

    dweight = np.einsum("rf,rf->f", grad_rows, normalised)
    dbias = np.ones_like(grad, shape=len(grad_rows)) @ grad_rows

    dx = grad_rows.copy() if weight is None else grad_rows * weight.reshape(-1)
    projection = np.vecdot(dx, normalised) / normalised.shape[1]
    dx -= (_row_sums(dx) / dx.shape[1])[:, None]
    normalised *= projection[:, None]
    dx -= normalised
    dx *= rstd.reshape(-1, 1)
    return dx.reshape(x.shape), dweight.reshape(features), dbias.reshape(features)


@register("rms_norm", "numpy")
def rms_norm(
    x: Array, weight: Array | None, *, eps: float = 1e-6, ndim: int = 1
) -> tuple[Array, Array]:
    """x rstd weight over the last ndim dimensions; rstd = 1/sqrt(mean(x²) + eps).

    x: (..., *features); weight: features, or None. Returns out: the shape of x; rstd: (...).
    Source: Zhang and Sennrich 2019, equation 4.
    """
    rows = _as_rows(x, ndim)
    rstd = 1 / np.sqrt(np.vecdot(rows, rows) / rows.shape[1] + eps)
    out = rows * rstd[:, None]
    if weight is not None:
        out *= weight.reshape(-1)
    return out.reshape(x.shape), rstd.reshape(x.shape[: x.ndim - ndim])


@register("rms_norm_backward", "numpy")
def rms_norm_backward(
    grad: Array, x: Array, weight: Array | None, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array]:
    """Gradients for x and weight.

    With n = x rstd and g = grad weight: dx = rstd (g - n mean(g n)),  dweight = Σ grad n.
    grad, x: (..., *features); rstd: (...). dweight comes even without a weight.
    """
    grad_rows = _as_rows(grad, ndim)
    normalised = _as_rows(x, ndim) * rstd.reshape(-1, 1)
    dweight = np.einsum("rf,rf->f", grad_rows, normalised)

    dx = grad_rows.copy() if weight is None else grad_rows * weight.reshape(-1)
    projection = np.vecdot(dx, normalised) / normalised.shape[1]
    normalised *= projection[:, None]
    dx -= normalised
    dx *= rstd.reshape(-1, 1)
    return dx.reshape(x.shape), dweight.reshape(x.shape[x.ndim - ndim :])


@register("gated_rms_norm", "numpy")
def gated_rms_norm(
    x: Array, gate: Array, weight: Array | None, *, eps: float = 1e-6
) -> tuple[Array, Array]:
    """The logistic function of gate times rms_norm(x), and rstd. gate: the shape of x."""
    out, rstd = part("rms_norm", x)(x, weight, eps=eps, ndim=1)
    return out * part("sigmoid", gate)(gate), rstd


@register("gated_rms_norm_backward", "numpy")
def gated_rms_norm_backward(
    grad: Array, x: Array, gate: Array, weight: Array | None, rstd: Array
) -> tuple[Array, Array, Array]:
    """Gradients for x, gate and weight."""
    s = part("sigmoid", gate)(gate)
    normed = x * rstd[..., None] if weight is None else x * rstd[..., None] * weight
    dx, dweight = part("rms_norm_backward", x)(grad * s, x, weight, rstd, ndim=1)
    return dx, grad * normed * s * (1 - s), dweight


@register("add_layer_norm", "numpy")
def add_layer_norm(
    x: Array,
    residual: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    eps: float = 1e-5,
    ndim: int = 1,
) -> tuple[Array, Array, Array, Array]:
    """layer_norm of x + residual, which comes second: (out, x + residual, mean, rstd)."""
    sum = x + residual
    out, mean, rstd = layer_norm(sum, weight, bias, eps=eps, ndim=ndim)
    return out, sum, mean, rstd


@register("add_layer_norm_backward", "numpy")
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
    """Gradients for the sum (for x and residual alike), weight and bias.

    grad is for the normalised output, dsum what else comes back to the sum.
    """
    dx, dweight, dbias = layer_norm_backward(grad, sum, weight, mean, rstd, ndim=ndim)
    dx += dsum
    return dx, dweight, dbias


@register("add_rms_norm", "numpy")
def add_rms_norm(
    x: Array, residual: Array, weight: Array | None, *, eps: float = 1e-6, ndim: int = 1
) -> tuple[Array, Array, Array]:
    """rms_norm of x + residual, which comes second: (out, x + residual, rstd)."""
    sum = x + residual
    out, rstd = rms_norm(sum, weight, eps=eps, ndim=ndim)
    return out, sum, rstd


@register("add_rms_norm_backward", "numpy")
def add_rms_norm_backward(
    grad: Array, dsum: Array, sum: Array, weight: Array | None, rstd: Array, *, ndim: int = 1
) -> tuple[Array, Array]:
    """Gradients for the sum and the weight; grad and dsum as in add_layer_norm_backward."""
    dx, dweight = rms_norm_backward(grad, sum, weight, rstd, ndim=ndim)
    dx += dsum
    return dx, dweight


def _row_sums(x: Array) -> Array:
    """x.sum(axis=-1), by a product with ones: BLAS is the fastest sum that NumPy has."""
    return x @ np.ones_like(x, shape=x.shape[-1])


def _as_rows(x: Array, ndim: int) -> Array:
    """x as (slices, features), the last ndim dimensions being the features."""
    split = x.ndim - ndim
    return x.reshape(prod(x.shape[:split]), prod(x.shape[split:]))
