"""The reference implementation of every kernel, in NumPy: float arrays in, float arrays out.

These are the formulas that the compiled kernels are tested against, and what runs where there is no
compiler. They are written to be read, and to make few passes over memory: each allocates its result
and works in it. float32 and float64; the engine converts half precision before it calls. A function
that has a backward returns what that needs after its result, and never the input itself.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from math import prod
from typing import Any

import numpy as np

from minitorch.errors import ShapeError
from minitorch.kernels.erf import erf, normal
from minitorch.kernels.philox import stream
from minitorch.kernels.table import register

Array = np.ndarray

_BLOCK = 1 << 15
"""Elements that an elementwise kernel works on at a time: its temporaries stay in the cache."""


def blocks(*arrays: Array) -> Iterator[list[Array]]:
    """Views of arrays of one shape, a block at a time; whole if any is not contiguous."""
    if not all(array.flags.c_contiguous for array in arrays):
        yield list(arrays)
        return
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _BLOCK):
        yield [array[start : start + _BLOCK] for array in flat]


def _in_blocks(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """Decorator: run an elementwise kernel on arrays of one shape, block by block.

    Overflow and underflow inside are part of the formulas: exp(-x²) is 0 for a large x.
    """

    @wraps(kernel)
    def blocked(*arrays: Array, **metadata: Any) -> Array:
        out = np.empty(arrays[0].shape, arrays[0].dtype)
        with np.errstate(over="ignore", under="ignore"):
            for result, *inputs in blocks(out, *arrays):
                result[...] = kernel(*inputs, **metadata)
        return out

    return blocked


@register("add", "numpy")
def add(a: Any, b: Any, *, out: Array | None = None) -> Any:
    """a + b, broadcast; arrays or Python numbers. out: where to write, a itself perhaps."""
    return np.add(a, b, out=out)


@register("cast", "numpy")
def cast(x: Array, *, dtype: np.dtype) -> Array:
    """x in another dtype, rounded to the nearest, ties to even; always a copy."""
    return x.astype(dtype)


ACTIVATIONS = (None, "relu", "silu", "gelu", "gelu_tanh")
"""What a matrix product may be followed by."""


def _activate(x: Array, activation: str | None) -> Array:
    if activation is None:
        return x
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "silu":
        return silu(x)
    if activation not in ACTIVATIONS:
        raise ValueError(f"matmul: expected one of {ACTIVATIONS}; got {activation!r}")
    return gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


@register("matmul", "numpy")
def matmul(
    a: Array,
    b: Array,
    *,
    out: Array | None = None,
    alpha: float = 1.0,
    accumulate: bool = False,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    pre: Array | None = None,
) -> Array:
    """f(alpha a b + bias) + residual, and + out with accumulate; written into out if it is given.

    a: (..., m, k); b: (..., k, n); out, residual, pre: (..., m, n); bias: (n,). f: one of
    ACTIVATIONS. pre, if given, receives what f is applied to, which its backward needs.
    """
    result = np.matmul(a, b)
    if alpha != 1:
        result *= alpha
    if bias is not None:
        result += bias
    if pre is not None:
        pre[...] = result
    result = _activate(result, activation)
    for term in (residual, out if accumulate else None):
        if term is not None:
            result += term
    if out is None:
        return result
    out[...] = result
    return out


@register("linear", "numpy")
def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """x weightᵀ + bias. x: (..., in); weight: (out, in); bias: (out,) or None.

    Returns (..., out).
    """
    out = x.reshape(-1, x.shape[-1]) @ weight.T if x.size else np.zeros((0, len(weight)), x.dtype)
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], len(weight))


@register("linear_backward", "numpy")
def linear_backward(
    grad: Array, x: Array, weight: Array, *, needs: tuple[bool, ...]
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients for x, weight and bias, None for those that `needs` says are not wanted.

    dx = grad weight,  dweight = gradᵀ x,  dbias = Σ grad. grad: (..., out), the rest as above.
    """
    grad_rows = grad.reshape(-1, len(weight))
    x_rows = x.reshape(-1, weight.shape[1])
    dx, dweight, dbias = needs
    return (
        (grad_rows @ weight).reshape(x.shape) if dx else None,
        grad_rows.T @ x_rows if dweight else None,
        np.ones(len(grad_rows), grad.dtype) @ grad_rows if dbias else None,
    )


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
        out = np.asarray(np.log(total) + largest)
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
    dbias = np.ones(len(grad_rows), grad.dtype) @ grad_rows

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
    return x @ np.ones(x.shape[-1], x.dtype)


def _as_rows(x: Array, ndim: int) -> Array:
    """x as (slices, features), the last ndim dimensions being the features."""
    split = x.ndim - ndim
    return x.reshape(prod(x.shape[:split]), prod(x.shape[split:]))


_SQRT_2_OVER_PI = float(np.sqrt(2 / np.pi))
_CUBIC = 0.044715


@register("erf", "numpy")
@_in_blocks
def error_function(x: Array) -> Array:
    """2/sqrt(pi) ∫₀ˣ exp(-t²) dt, elementwise."""
    return erf(x)


@register("sigmoid", "numpy")
@_in_blocks
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), elementwise."""
    return _sigmoid(x)


ELEMENTARY: dict[str, Callable[[Array], Array]] = {
    "exp": register("exp", "numpy")(np.exp),
    "log": register("log", "numpy")(np.log),
    "tanh": register("tanh", "numpy")(np.tanh),
    "sigmoid": sigmoid,
    "erf": error_function,
}
"""Functions of one array, elementwise, by the name of their kernel."""


@register("gelu", "numpy")
@_in_blocks
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """x Φ(x), with Φ the normal distribution function, or x (1 + tanh(u)) / 2 for "tanh".

    u = sqrt(2/pi) (x + 0.044715 x³). Source: Hendrycks and Gimpel 2016, section 2.
    """
    if approximate == "tanh":
        out = _gelu_tanh(x)
        out += 1
        out *= 0.5
    else:
        _, out = normal(x)
    out *= x
    return out


@register("gelu_backward", "numpy")
@_in_blocks
def gelu_backward(grad: Array, x: Array, *, approximate: str = "none") -> Array:
    """grad (Φ(x) + x φ(x)); for "tanh", with t = tanh(u): grad ((1 + t) + x (1 - t²) u') / 2."""
    if approximate == "tanh":
        tanh = _gelu_tanh(x)
        slope = np.square(x)
        slope *= 3 * _CUBIC * _SQRT_2_OVER_PI
        slope += _SQRT_2_OVER_PI
        slope *= x
        slope *= 1 - np.square(tanh)
        slope += tanh
        slope += 1
        slope *= 0.5
    else:
        slope, distribution = normal(x)
        slope *= x
        slope *= _SQRT_2_OVER_PI / 2
        slope += distribution
    slope *= grad
    return slope


def _gelu_tanh(x: Array) -> Array:
    """tanh(sqrt(2/pi) (x + 0.044715 x³))."""
    out = np.square(x)
    out *= _CUBIC * _SQRT_2_OVER_PI
    out += _SQRT_2_OVER_PI
    out *= x
    return np.tanh(out, out=out)


@register("silu", "numpy")
@_in_blocks
def silu(x: Array) -> Array:
    """x sigmoid(x), elementwise."""
    out = _sigmoid(x)
    out *= x
    return out


@register("silu_backward", "numpy")
@_in_blocks
def silu_backward(grad: Array, x: Array) -> Array:
    """grad s (1 + x (1 - s)), with s = sigmoid(x)."""
    sigmoid = _sigmoid(x)
    out = 1 - sigmoid
    out *= x
    out += 1
    out *= sigmoid
    out *= grad
    return out


@register("swiglu", "numpy")
def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) up, elementwise. Source: Shazeer 2020, "GLU variants improve transformer"."""
    out = silu(np.ascontiguousarray(gate))
    out *= up
    return out


@register("swiglu_backward", "numpy")
def swiglu_backward(
    grad: Array, gate: Array, up: Array, *, out: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Gradients for gate and up: grad up silu'(gate), grad silu(gate); into `out` if given."""
    gradients = silu_backward(grad * up, np.ascontiguousarray(gate)), grad * silu(gate)
    if out is None:
        return gradients
    for result, gradient in zip(out, gradients, strict=True):
        result[...] = gradient
    return out


@register("rope", "numpy")
def rope(
    x: Array,
    cos: Array,
    sin: Array,
    *,
    interleaved: bool = False,
    inverse: bool = False,
    out: Array | None = None,
) -> Array:
    """Pairs of features turned by the angle of their position; by minus that angle for `inverse`.

        (a, b) -> (a cos - b sin, b cos + a sin)

    x: (..., time, features), of which i and i + features/2 are a pair, or, interleaved, 2i and
    2i + 1. cos, sin: (time, features/2). out: where to write, x itself perhaps; else a new array.
    The rotation back is the transpose, so that `inverse` is also the backward.
    Source: Su et al. 2021, equation 34.
    """
    half = x.shape[-1] // 2
    if interleaved:
        first, second = (..., slice(0, None, 2)), (..., slice(1, None, 2))
    else:
        first, second = (..., slice(0, half)), (..., slice(half, None))
    if inverse:
        sin = -sin
    a, b = x[first], x[second]
    turned = a * cos - b * sin, b * cos + a * sin
    if out is None:
        out = np.empty_like(x)
    out[first], out[second] = turned
    return out


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); where exp overflows the quotient is the right limit, 0."""
    out = np.negative(x, out=np.empty_like(x))
    np.exp(out, out=out)
    out += 1
    return np.reciprocal(out, out=out)


@register("cross_entropy", "numpy")
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """Minus the log-probability that softmax(logits) gives to the smoothed target.

    logits: (rows, classes); target: (rows,), integers below classes, or ignore_index. For row r,
    with ε = label_smoothing:

        loss_r = lse_r - (1 - ε) logits_r[target_r] - ε mean(logits_r) + z_loss lse_r²

    with lse_r = logsumexp(logits_r), and 0 where the target is ignore_index. reduction: "none"
    (rows,), "sum", or "mean" over the rows that are not ignored (NaN if all are). z_loss: Chowdhery
    et al. 2022, "PaLM", section 5. Returns the loss and logsumexp(logits): (rows,), from which the
    backward recomputes the probabilities, rather than keep (rows, classes) of them.
    """
    kept, classes = kept_classes(logits, target, ignore_index)
    log_normaliser = logsumexp(logits)
    picked = logits[np.arange(len(logits)), classes]
    loss = log_normaliser - (1 - label_smoothing) * picked
    if label_smoothing:
        loss -= label_smoothing * logits.mean(axis=1)
    if z_loss:
        loss += z_loss * np.square(log_normaliser)
    loss[~kept] = 0
    if reduction == "none":
        return loss, log_normaliser
    total = loss.sum()
    if reduction == "mean":
        with np.errstate(invalid="ignore"):
            total = total / logits.dtype.type(np.count_nonzero(kept))
    return np.asarray(total), log_normaliser


@register("cross_entropy_backward", "numpy")
def cross_entropy_backward(
    grad: Array,
    logits: Array,
    target: Array,
    log_normaliser: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    out: Array | None = None,
) -> Array:
    """grad ((1 + 2 z lse) softmax(logits) - smoothed target), and 0 in the rows that are ignored.

    grad: the shape of the loss; log_normaliser: (rows,), as the forward returned it. out: where to
    write, the logits themselves perhaps. Returns (rows, classes).
    """
    kept, classes = kept_classes(logits, target, ignore_index)
    out = np.subtract(logits, log_normaliser[:, None], out=out)
    np.exp(out, out=out)
    if z_loss:
        out *= 1 + 2 * z_loss * log_normaliser[:, None]
    out[np.arange(len(out)), classes] -= 1 - label_smoothing
    if label_smoothing:
        out -= label_smoothing / out.shape[1]
    if reduction == "mean":
        grad = grad / max(np.count_nonzero(kept), 1)
    scale = np.where(kept, grad, 0).astype(out.dtype, copy=False)
    out *= scale[:, None]
    return out


def kept_classes(logits: Array, target: Array, ignore_index: int) -> tuple[Array, Array]:
    """Which rows count, and each row's class, 0 where it does not count."""
    kept = target != ignore_index
    classes = np.where(kept, target, 0)
    if classes.size and not 0 <= classes.min() <= classes.max() < logits.shape[1]:
        raise ShapeError(
            f"cross_entropy: expected targets in [0, {logits.shape[1]}) or "
            f"ignore_index={ignore_index}; got values from {classes.min()} to {classes.max()}; "
            f"are the logits (rows, classes), and does the vocabulary hold every token?"
        )
    return kept, classes


@register("embedding", "numpy")
def embedding(weight: Array, index: Array) -> Array:
    """Row index[i] of weight for each i. weight: (rows, features); index: any shape, integers.

    Returns (*index.shape, features).
    """
    check_rows(index, weight.shape[0])
    return np.take(weight, index, axis=0)


@register("embedding_backward", "numpy")
def embedding_backward(
    grad: Array, index: Array, *, num_embeddings: int, out: Array | None = None
) -> Array:
    """The transpose of `embedding`: rows of grad added up where they came from.

    grad: (*index.shape, features). out: contiguous, what the rows are added to; zeros unless given.
    Returns (num_embeddings, features).
    """
    check_rows(index, num_embeddings)
    features = grad.shape[-1]
    if out is None:
        out = np.zeros((num_embeddings, features), grad.dtype)
    places = index.reshape(-1, 1).astype(np.int64) * features + np.arange(features)
    np.add.at(out.reshape(-1), places.reshape(-1), grad.reshape(-1))  # 4 times faster than by rows
    return out


def check_rows(index: Array, rows: int) -> None:
    """Raises ShapeError unless all indices are in [0, rows)."""
    if index.size and not 0 <= index.min() <= index.max() < rows:
        raise ShapeError(
            f"embedding: expected indices in [0, {rows}), the rows of the table; "
            f"got values from {index.min()} to {index.max()}"
        )


@register("dropout", "numpy")
def dropout(x: Array, *, p: float, seed: int, offset: int) -> Array:
    """x / (1 - p) where a uniform number is at least p, 0 elsewhere.

    The numbers are a function of (seed, offset), one for each element of x in row-major order: the
    mask need not be kept, and dropout is its own backward, on the gradient.
    """
    keep = stream(seed, offset).random(x.shape, np.float32) >= p
    out = x * keep
    if p < 1:
        out *= 1 / (1 - p)
    return out
