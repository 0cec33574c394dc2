"""Matrix products, and the linear layer made of one."""

import numpy as np

from minitorch.kernels.reference.activations import gelu, silu
from minitorch.kernels.table import register

Array = np.ndarray

ACTIVATIONS = (None, "relu", "silu", "gelu", "gelu_tanh")
"""What a matrix product may be followed by."""


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


@register("linear", "numpy")
def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """x weightᵀ + bias. x: (..., in); weight: (out, in); bias: (out,) or None.

    Returns (..., out).
    """
    shape = *x.shape[:-1], len(weight)
    out = x.reshape(-1, x.shape[-1]) @ weight.T if x.size else np.zeros(shape, x.dtype)
    if bias is not None:
        out += bias
    return out.reshape(shape)


@register("linear_backward", "numpy")
def linear_backward(
    grad: Array,
    x: Array,
    weight: Array,
    *,
    needs: tuple[bool, ...],
    residual: Array | None = None,
    wide: tuple[bool, ...] = (False, False, False),
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients for x, weight and bias, None for those that `needs` says are not wanted.

    dx = grad weight + residual,  dweight = gradᵀ x,  dbias = Σ grad. grad: (..., out); residual: of
    the shape of x, or None for 0; the rest as above. wide: which of the three may be float32 where
    the arrays are half precision, so that sums that were made in float32 need not be rounded.
    """
    grad_rows = grad.reshape(-1, len(weight))
    x_rows = x.reshape(-1, weight.shape[1])
    dx, dweight, dbias = needs
    to_x = (grad_rows @ weight).reshape(x.shape) if dx else None
    return (
        to_x if to_x is None or residual is None else to_x + residual,
        grad_rows.T @ x_rows if dweight else None,
        np.ones(len(grad_rows), grad.dtype) @ grad_rows if dbias else None,
    )
