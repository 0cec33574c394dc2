"""An affine map and its gradients, all three products of 8-bit floats (scaled_mm.py).

Sums, results and whatever is between products are in the dtypes of what is given; only operands are
rounded, each time anew for the direction in which they are multiplied. Source: DeepSeek-V3 2024
(arXiv 2412.19437), section 3.3.1; there what the forward pass has rounded is kept for the backward
one and rounded again, which takes half the memory and is less exact.
"""

from typing import Any

from minitorch.kernels.reference.scaled_mm import BLOCK, quantize_blocks, scaled_mm
from minitorch.kernels.table import register

Array = Any


@register("scaled_linear", "numpy")
def scaled_linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """`linear` of operands in 8 bits. x: (..., in); weight: (out, in); bias: (out,) or None."""
    return forward_with(quantize_blocks, scaled_mm, x, weight, bias)


@register("scaled_linear_backward", "numpy")
def scaled_linear_backward(
    grad: Array, x: Array, weight: Array, *, needs: tuple[bool, ...]
) -> tuple[Array | None, Array | None, Array | None]:
    """`linear_backward` of operands in 8 bits: dx = grad weight, dweight = gradᵀ x, dbias = Σ grad.

    Each product has blocks along its own k: of grad along what comes out for dx, and of both along
    the tokens for dweight, where there are no weights and all blocks are 1 x 128.
    """
    return backward_with(quantize_blocks, scaled_mm, _column_sums, grad, x, weight, needs)


def forward_with(
    quantize: Any, multiply: Any, x: Array, weight: Array, bias: Array | None
) -> Array:
    """By these kernels."""
    out = _product(quantize, multiply, rows_of(x), weight, BLOCK, x.dtype)
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], len(weight))


def backward_with(
    quantize: Any,
    multiply: Any,
    column_sums: Any,
    grad: Array,
    x: Array,
    weight: Array,
    needs: tuple[bool, ...],
) -> tuple[Array | None, Array | None, Array | None]:
    """By these kernels."""
    g, rows = rows_of(grad), rows_of(x)
    dx = dweight = None
    if needs[0]:
        dx = _product(quantize, multiply, g, weight.T, BLOCK, x.dtype).reshape(x.shape)
    if needs[1]:
        dweight = _product(quantize, multiply, g.T, rows.T, 1, weight.dtype)
    return dx, dweight, column_sums(g) if needs[2] else None


def rows_of(x: Array) -> Array:
    """(..., n) as (rows, n)."""
    return x.reshape(x.size // x.shape[-1] if x.shape[-1] else 0, x.shape[-1])


def _product(
    quantize: Any, multiply: Any, a: Array, b: Array, right_rows: int, dtype: Any
) -> Array:
    """a bᵀ, both along k; blocks of b have so many rows."""
    left, left_scales = quantize(a)
    right, right_scales = quantize(b, rows=right_rows)
    return multiply(left, right, left_scales, right_scales, dtype=dtype)


def _column_sums(x: Array) -> Array:
    return x.sum(0)
