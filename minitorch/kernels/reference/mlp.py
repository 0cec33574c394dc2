"""The reference of the feed-forward layer of a transformer as one operation."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minitorch.kernels.reference.activations import gelu, gelu_backward, silu, silu_backward
from minitorch.kernels.reference.matmul import linear, linear_backward
from minitorch.kernels.table import register

Array = np.ndarray
Gradient = Callable[[Array, Array], Array]
Activation = tuple[Callable[[Array], Array], Callable[[Array, Array], tuple[Array, Array]]]


def activations_of(
    gelu: Any, gelu_backward: Any, silu: Any, silu_backward: Any
) -> dict[str, Activation]:
    """By name, of these kernels: f(x); and of grad and x, grad f'(x) and f(x)."""
    each = {
        "relu": (lambda x: np.maximum(x, 0), lambda grad, x: grad * (~(x <= 0)).astype(grad.dtype)),
        "silu": (silu, silu_backward),
        "gelu": (gelu, gelu_backward),
        "gelu_tanh": (
            lambda x: gelu(x, approximate="tanh"),
            lambda grad, x: gelu_backward(grad, x, approximate="tanh"),
        ),
    }
    return {name: (f, _together(f, backward)) for name, (f, backward) in each.items()}


def _together(f: Callable[[Array], Array], backward: Gradient) -> Any:
    return lambda grad, x: (backward(grad, x), f(x))


ACTIVATIONS = activations_of(gelu, gelu_backward, silu, silu_backward)


@register("mlp", "numpy")
def mlp(
    x: Array,
    weight_1: Array,
    bias_1: Array | None,
    weight_2: Array,
    bias_2: Array | None,
    *,
    activation: str,
) -> tuple[Array, Array]:
    """f(x weight_1ᵀ + bias_1) weight_2ᵀ + bias_2, f being one of ACTIVATIONS.

    x: (..., in); weight_1: (hidden, in); weight_2: (out, hidden). Returns (..., out), and what f
    was applied to, (..., hidden), which the backward needs.
    """
    pre = linear(x, weight_1, bias_1)
    return linear(ACTIVATIONS[activation][0](pre), weight_2, bias_2), pre


@register("mlp_backward", "numpy")
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
    """Gradients for x, weight_1, bias_1, weight_2 and bias_2, None for those not needed.

    f(pre) is computed again: to keep it would double what the layer keeps. wide: which of the five
    may be float32 where the arrays are half precision.
    """
    return backward_with(
        linear_backward, ACTIVATIONS[activation], grad, x, weight_1, weight_2, pre, needs, wide
    )


def backward_with(
    linear_backward: Any,
    activation: Activation,
    grad: Array,
    x: Array,
    weight_1: Array,
    weight_2: Array,
    pre: Array,
    needs: tuple[bool, ...],
    wide: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """mlp_backward with these kernels."""
    f, gradient_and_value = activation
    dpre = dweight_2 = dbias_2 = None
    if any(needs[:3]):
        dhidden, _, _ = linear_backward(grad, pre, weight_2, needs=(True, False, False))
        dpre, hidden = gradient_and_value(dhidden, pre)
    else:
        hidden = f(pre)
    if any(needs[3:]):
        _, dweight_2, dbias_2 = linear_backward(
            grad, hidden, weight_2, needs=(False, *needs[3:]), wide=(False, *wide[3:])
        )
    if dpre is None:
        return None, None, None, dweight_2, dbias_2
    first = linear_backward(dpre, x, weight_1, needs=needs[:3], wide=wide[:3])
    return (*first, dweight_2, dbias_2)
