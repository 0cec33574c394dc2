"""The gated product: two products, and a pass between them and the next one."""

import numpy as np

from minitorch.backend import bfloat16
from minitorch.kernels.cpu.activations import swiglu, swiglu_backward
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.matmul import linear, linear_backward
from minitorch.kernels.reference import linear_swiglu as reference
from minitorch.kernels.reference.linear_swiglu import backward_with
from minitorch.kernels.table import register

Array = np.ndarray


@register("linear_swiglu", "cpu", half=(bfloat16,))
def linear_swiglu(
    x: Array, gate: Array, up: Array, *, keep: bool = True
) -> tuple[Array, Array | None, Array | None]:
    """The reference's."""
    halves = linear(x, gate, None), linear(x, up, None)
    return swiglu(*halves), *(halves if keep else (None, None))


@register("linear_swiglu_backward", "cpu", half=(bfloat16,))
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
    """The reference's."""
    if x.dtype not in FLOATS or not x.size:
        return reference.linear_swiglu_backward(grad, x, gate, up, gates, ups, needs=needs)
    return backward_with(
        linear_backward, swiglu_backward, grad, x, gate, up, gates, ups, needs, wide
    )
