"""The functions between matrix products, each with its backward."""

from collections.abc import Callable

import numpy as np

from minitorch.kernels.erf import erf, normal
from minitorch.kernels.reference.elementwise import in_blocks
from minitorch.kernels.table import register

Array = np.ndarray
_SQRT_2_OVER_PI = float(np.sqrt(2 / np.pi))
_CUBIC = 0.044715


@register("erf", "numpy")
@in_blocks
def error_function(x: Array) -> Array:
    """2/sqrt(pi) ∫₀ˣ exp(-t²) dt, elementwise."""
    return erf(x)


@register("sigmoid", "numpy")
@in_blocks
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
@in_blocks
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
@in_blocks
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
@in_blocks
def silu(x: Array) -> Array:
    """x sigmoid(x), elementwise."""
    out = _sigmoid(x)
    out *= x
    return out


@register("silu_backward", "numpy")
@in_blocks
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


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); where exp overflows the quotient is the right limit, 0."""
    out = np.negative(x, out=np.empty_like(x))
    np.exp(out, out=out)
    out += 1
    return np.reciprocal(out, out=out)
