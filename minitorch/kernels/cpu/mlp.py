"""The feed-forward layer: two products, and the activation in a pass of its own between them.

As an epilogue of the first product, which then writes what the activation is applied to as well,
the forward was up to a tenth slower.
"""

from functools import partial

import numpy as np

from minitorch.backend import bfloat16
from minitorch.kernels.cpu.activations import (
    gelu,
    gelu_backward,
    gradient_and_value,
    silu,
    silu_backward,
)
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.matmul import linear, linear_backward
from minitorch.kernels.reference import mlp as reference
from minitorch.kernels.reference.mlp import activations_of, backward_with
from minitorch.kernels.table import register

_ACTIVATIONS = activations_of(gelu, gelu_backward, silu, silu_backward)
_ACTIVATIONS |= {
    name: (_ACTIVATIONS[name][0], partial(gradient_and_value, name))
    for name in ("silu", "gelu", "gelu_tanh")
}

Array = np.ndarray


@register("mlp", "cpu", half=(bfloat16,))
def mlp(
    x: Array,
    weight_1: Array,
    bias_1: Array | None,
    weight_2: Array,
    bias_2: Array | None,
    *,
    activation: str,
) -> tuple[Array, Array]:
    """The reference's."""
    if x.dtype not in FLOATS or not x.size:
        return reference.mlp(x, weight_1, bias_1, weight_2, bias_2, activation=activation)
    pre = linear(x, weight_1, bias_1)
    return linear(_ACTIVATIONS[activation][0](pre), weight_2, bias_2), pre


@register("mlp_backward", "cpu", half=(bfloat16,))
def mlp_backward(
    grad: Array,
    x: Array,
    weight_1: Array,
    weight_2: Array,
    pre: Array,
    *,
    activation: str,
    needs: tuple[bool, ...],
    wide: tuple[bool, ...] = (False,) * 5,
) -> tuple[Array | None, ...]:
    """The reference's."""
    if x.dtype not in FLOATS or not x.size:
        return reference.mlp_backward(
            grad, x, weight_1, weight_2, pre, activation=activation, needs=needs
        )
    return backward_with(
        linear_backward, _ACTIVATIONS[activation], grad, x, weight_1, weight_2, pre, needs, wide
    )
