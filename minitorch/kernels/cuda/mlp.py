"""The feed-forward layer on the device: the activation is the end of the first product."""

from typing import Any

from minitorch.kernels.cuda.activations import gelu, gelu_backward, silu, silu_backward
from minitorch.kernels.cuda.extension import FLOATS, device_kernel, empty
from minitorch.kernels.cuda.matmul import linear, linear_backward, matmul
from minitorch.kernels.reference import mlp as reference
from minitorch.kernels.reference.mlp import activations_of, backward_with

_ACTIVATIONS = activations_of(gelu, gelu_backward, silu, silu_backward)

Array = Any


@device_kernel("mlp")
def mlp(
    x: Array,
    weight_1: Array,
    bias_1: Array | None,
    weight_2: Array,
    bias_2: Array | None,
    *,
    activation: str,
) -> tuple[Array, Array]:
    """The reference's. The first product writes both what f is applied to and its result."""
    if x.dtype not in FLOATS or not x.size:
        return reference.mlp(x, weight_1, bias_1, weight_2, bias_2, activation=activation)
    rows = x.reshape(-1, x.shape[-1])
    pre = empty(x, (rows.shape[0], weight_1.shape[0]))
    hidden = matmul(rows, weight_1.T, bias=bias_1, activation=activation, pre=pre)
    leading = x.shape[:-1]
    out = linear(hidden, weight_2, bias_2)
    return out.reshape(*leading, -1), pre.reshape(*leading, -1)


@device_kernel("mlp_backward")
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
