"""The reference of the gated product: the first half of a gated feed-forward layer."""

from typing import Any

import numpy as np

from minitorch.kernels.reference.activations import swiglu, swiglu_backward
from minitorch.kernels.reference.matmul import linear, matmul
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
) -> tuple[Array | None, ...]:
    """Gradients for x, gate and up, None for those not needed; gates, ups: the products."""
    return backward_with(matmul, swiglu_backward, grad, x, gate, up, gates, ups, needs)


def backward_with(
    matmul: Any,
    swiglu_backward: Any,
    grad: Array,
    x: Array,
    gate: Array,
    up: Array,
    gates: Array,
    ups: Array,
    needs: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """linear_swiglu_backward with these kernels; the second half of dx is added to the first."""
    rows = x.reshape(-1, gate.shape[1])
    dgates, dups = (d.reshape(-1, len(gate)) for d in swiglu_backward(grad, gates, ups))
    dx = None
    if needs[0]:
        dx = matmul(dgates, gate)
        dx = matmul(dups, up, out=dx, accumulate=True).reshape(x.shape)
    return (
        dx,
        matmul(dgates.T, rows) if needs[1] else None,
        matmul(dups.T, rows) if needs[2] else None,
    )
