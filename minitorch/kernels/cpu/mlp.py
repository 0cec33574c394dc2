"""The feed-forward layer: two products, and the activation in a pass of its own between them.

As an epilogue of the first product, which then writes what the activation is applied to as well,
the forward was up to a tenth slower.

What is as large as the hidden layer and not kept is made of some tokens at a time.
"""

from functools import partial
from itertools import pairwise

import numpy as np

from minitorch.backend import bfloat16, compute_dtype
from minitorch.kernels.cpu.activations import (
    gelu,
    gelu_backward,
    gradient_and_value,
    silu,
    silu_backward,
)
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.matmul import linear, weight_gradient, write_product
from minitorch.kernels.reference import mlp as reference
from minitorch.kernels.reference.mlp import activations_of
from minitorch.kernels.table import register

_ACTIVATIONS = activations_of(gelu, gelu_backward, silu, silu_backward)
_ACTIVATIONS |= {
    name: (_ACTIVATIONS[name][0], partial(gradient_and_value, name))
    for name in ("silu", "gelu", "gelu_tanh")
}

_AT_ONCE = 3 << 19
"""Numbers of the hidden layer. Fewer take less memory, and pack the weights more often."""

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
    f, _ = _ACTIVATIONS[activation]
    out = np.empty((*x.shape[:-1], weight_2.shape[0]), x.dtype)
    rows, hidden = _rows(out), _rows(pre)
    bias_2 = None if bias_2 is None else np.ascontiguousarray(bias_2)
    for part in _parts(hidden):
        write_product(f(hidden[part]), weight_2.T, rows[part], bias=bias_2)
    return out, pre


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
    f, gradient_and_value = _ACTIVATIONS[activation]
    grads, xs, pres = _rows(grad), _rows(x), _rows(np.ascontiguousarray(pre))
    accumulator = compute_dtype(x.dtype)
    dx = np.empty(x.shape, accumulator if wide[0] else x.dtype) if needs[0] else None
    first = _WeightGradient(weight_1.shape, accumulator, needs[1:3]) if any(needs[1:3]) else None
    second = _WeightGradient(weight_2.shape, accumulator, needs[3:]) if any(needs[3:]) else None
    for part in _parts(pres):
        if any(needs[:3]):
            dhidden = np.empty_like(pres[part])
            write_product(grads[part], weight_2, dhidden)
            dpre, hidden = gradient_and_value(dhidden, pres[part])
        elif needs[3]:
            hidden = f(pres[part])
        else:
            hidden = None
        if second:
            second.add(grads[part], hidden)
        if first:
            first.add(dpre, xs[part])
        if dx is not None:
            write_product(dpre, weight_1, _rows(dx)[part])
    nothing = (None, None)
    return (
        dx,
        *(first.rounded(x.dtype, wide[1:3]) if first else nothing),
        *(second.rounded(x.dtype, wide[3:]) if second else nothing),
    )


class _WeightGradient:
    """The gradients of a linear layer's weight and bias, as they are added up, part by part."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, needs: tuple[bool, ...]):
        self.weight = np.empty(shape, dtype) if needs[0] else None
        self.bias = np.zeros(shape[0], dtype) if needs[1] else None
        self.begun = False

    def add(self, grad: Array, x: Array | None) -> None:
        """Of some rows. x: None where the weight's is not needed."""
        sums = None if self.bias is None else np.empty_like(self.bias)
        weight_gradient(grad, x, self.weight, sums, accumulate=self.begun)
        if sums is not None:
            self.bias += sums
        self.begun = True

    def rounded(self, dtype: np.dtype, wide: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """Both in this dtype, but where they may be wide; None where not needed."""
        return tuple(
            total if total is None or may_be else total.astype(dtype, copy=False)
            for total, may_be in zip((self.weight, self.bias), wide, strict=True)
        )


def _rows(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def _parts(hidden: Array) -> list[slice]:
    """Slices of the rows, of about _AT_ONCE numbers each, or more."""
    count = max(1, hidden.size // _AT_ONCE)
    ends = [len(hidden) * i // count for i in range(count + 1)]
    return [slice(*both) for both in pairwise(ends)]
