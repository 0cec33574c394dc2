"""The reference of the gated product: the first half of a gated feed-forward layer."""

from typing import Any

import numpy as np

from minitorch.kernels.reference.activations import swiglu, swiglu_backward
from minitorch.kernels.reference.matmul import linear, linear_backward
from minitorch.kernels.table import register

Array = np.ndarray


@register("linear_swiglu", "numpy")
def linear_swiglu(
    x: Array, gate: Array, up: Array, *, keep: bool = True
) -> tuple[Array, Array | None, Array | None]:
    """silu(x gateᵀ) (x upᵀ). x: (..., in); gate, up: (hidden, in).

    Returns (..., hidden), and both products, which the backward needs, or None unless `keep`.
    """
    halves = linear(x, gate, None), linear(x, up, None)
    return swiglu(*halves), *(halves if keep else (None, None))


@register("linear_swiglu_backward", "numpy")
def linear_swiglu_backward(
    grad: Array,
    x: Array,
    gate: Array,
    up: Array,
    gates: Array,
    ups: Array,
    *,
    needs: tuple[bool, ...],
    wide: tuple[bool, ...] = (False, False, False),
) -> tuple[Array | None, ...]:
    """Gradients for x, gate and up, None for those not needed; gates, ups: the products.

    wide: which of the three may be float32 where the arrays are half precision.
    """
    return backward_with(
        linear_backward, swiglu_backward, grad, x, gate, up, gates, ups, needs, wide
    )


def backward_with(
    linear_backward: Any,
    swiglu_backward: Any,
    grad: Array,
    x: Array,
    gate: Array,
    up: Array,
    gates: Array,
    ups: Array,
    needs: tuple[bool, ...],
    wide: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """linear_swiglu_backward with these kernels; the second half of dx is added to the first."""
    dgates, dups = swiglu_backward(grad, gates, ups)
    dx, dgate, _ = linear_backward(
        dgates, x, gate, needs=(needs[0], needs[1], False), wide=(False, wide[1], False)
    )
    dx, dup, _ = linear_backward(
        dups, x, up, needs=(needs[0], needs[2], False), wide=(False, wide[2], False), residual=dx
    )
    return dx, dgate, dup
