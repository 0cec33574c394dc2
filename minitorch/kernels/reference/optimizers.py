"""The references of the optimizers' kernels: one step of a rule for every parameter, in place.

All take lists, one array for each parameter: the parameters, their gradients, and what the rule
keeps for each (of the parameter's shape and dtype, float32 or float64). Then

    numbers     for each parameter the keyword arguments of its rule
    grad_scale  a factor of all gradients, which are not changed: clipping by norm asks for one;
                a number, or an array of no dimensions, which need not be waited for
    copies      arrays in half precision, or None, into which the new parameters are also written,
                rounded
    rows        for each parameter which of its rows the gradient is of, int64, ascending, each
                once; the others, and what is kept for them, stay as they are. None: all
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitorch.backend import device_of, to_device
from minitorch.kernels.reference.elementwise import blocks
from minitorch.kernels.reference.matmul import matmul
from minitorch.kernels.table import register

Array = np.ndarray
Numbers = Sequence[dict[str, Any]]
Copies = Sequence[Array | None] | None
Rows = Sequence[Array | None] | None
Scale = float | Array


@register("adamw_steps", "numpy")
def adamw_steps(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    numbers: Numbers,
    *,
    grad_scale: Scale = 1.0,
    copies: Copies = None,
    rows: Rows = None,
) -> None:
    """AdamW. numbers: step (from 1), lr, betas, eps, weight_decay."""
    _each(_adamw, (params, grads, exp_avgs, exp_avg_sqs), numbers, grad_scale, copies, rows)


def _adamw(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Source: Loshchilov and Hutter 2019, algorithm 2, in PyTorch's form.

    The decay is lr * weight_decay * param, and eps is added after the bias correction.
    """
    beta1, beta2 = betas
    param *= 1 - lr * weight_decay
    exp_avg *= beta1
    exp_avg += (1 - beta1) * grad
    exp_avg_sq *= beta2
    exp_avg_sq += (1 - beta2) * np.square(grad)
    update = np.sqrt(exp_avg_sq)
    update *= (1 - beta2**step) ** -0.5
    update += eps
    np.divide(exp_avg, update, out=update)
    update *= lr / (1 - beta1**step)
    param -= update


@register("sgd_steps", "numpy")
def sgd_steps(
    params: Sequence[Array],
    grads: Sequence[Array],
    buffers: Sequence[Array | None],
    numbers: Numbers,
    *,
    grad_scale: Scale = 1.0,
    copies: Copies = None,
    rows: Rows = None,
) -> None:
    """Gradient descent; with momentum where a buffer is not None.

    numbers: step (from 1), lr, momentum, dampening, weight_decay, nesterov.
    """
    _each(_sgd, (params, grads, buffers), numbers, grad_scale, copies, rows)


def _sgd(
    param: Array,
    grad: Array,
    buffer: Array | None = None,
    *,
    step: int,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """b = momentum b + (1 - dampening) g, where g counts whole in the first step."""
    direction = grad + weight_decay * param
    if buffer is not None:
        buffer *= momentum
        buffer += direction if step == 1 else (1 - dampening) * direction
        direction = direction + momentum * buffer if nesterov else buffer
    param -= lr * direction


@register("lion_steps", "numpy")
def lion_steps(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    numbers: Numbers,
    *,
    grad_scale: Scale = 1.0,
    copies: Copies = None,
    rows: Rows = None,
) -> None:
    """Lion. numbers: lr, betas, weight_decay."""
    _each(_lion, (params, grads, exp_avgs), numbers, grad_scale, copies, rows)


def _lion(
    param: Array,
    grad: Array,
    exp_avg: Array,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float = 0.0,
) -> None:
    """Source: Chen et al. 2023 (arXiv 2302.06675), program 1."""
    beta1, beta2 = betas
    direction = beta1 * exp_avg + (1 - beta1) * grad
    param *= 1 - lr * weight_decay
    param -= lr * np.sign(direction)
    exp_avg *= beta2
    exp_avg += (1 - beta2) * grad


@register("direction_steps", "numpy")
def direction_steps(
    directions: Sequence[Array],
    grads: Sequence[Array],
    buffers: Sequence[Array],
    numbers: Numbers,
    *,
    grad_scale: Scale = 1.0,
    copies: Copies = None,
    rows: Rows = None,
) -> None:
    """Where steps of Muon go, over whatever is in `directions`. numbers: momentum, nesterov."""
    _each(_direction, (directions, grads, buffers), numbers, grad_scale, copies, rows)


def _direction(
    direction: Array, grad: Array, buffer: Array, *, momentum: float, nesterov: bool
) -> None:
    """The mean of the gradients, or its look-ahead. Source: Jordan et al. 2024."""
    new = (1 - momentum) * grad
    buffer *= momentum
    buffer += new
    direction[...] = new + momentum * buffer if nesterov else buffer


def _each(
    rule: Callable[..., None],
    lists: Sequence[Sequence[Array | None]],
    numbers: Numbers,
    grad_scale: Scale,
    copies: Copies,
    rows: Rows,
) -> None:
    chosen = taken(lists, rows)
    for i, arrays in enumerate(zip(*chosen, strict=True)):
        param, *rest = (array for array in arrays if array is not None)
        for p, grad, *states in blocks(param, *rest):
            rule(p, scaled(grad, grad_scale), *states, **numbers[i])
    put_back(lists, chosen, rows)
    for param, copy in zip(lists[0], copies or ()):
        if param is not None and copy is not None:
            copy[...] = param.astype(copy.dtype)


Lists = Sequence[Sequence[Array | None]]


def taken(lists: Lists, rows: Rows) -> Lists:
    """The lists, where rows are chosen copies of these; the second, the gradients, is of them."""
    if rows is None:
        return lists
    params, grads, *others = lists

    def of_rows(arrays: Sequence[Array | None]) -> list[Array | None]:
        pairs = zip(arrays, rows, strict=True)
        return [x if x is None or at is None else x[at] for x, at in pairs]

    return [of_rows(params), grads, *map(of_rows, others)]


def put_back(lists: Lists, chosen: Lists, rows: Rows) -> None:
    """Write what `taken` gave, and was changed since, where it came from."""
    for i, at in enumerate(rows or ()):
        for arrays, parts in zip(lists, chosen, strict=True):
            whole = arrays[i]
            if at is not None and whole is not None and parts[i] is not whole:
                whole[at] = parts[i]


def scaled(grad: Array, scale: Scale) -> Array:
    """The gradient times a factor, in its own dtype."""
    if isinstance(scale, int | float):
        return grad * grad.dtype.type(scale)
    return grad * scale.astype(grad.dtype)


@register("follow", "numpy")
def follow(means: Sequence[Array], values: Sequence[Array], *, rate: float) -> None:
    """mean += rate (value - mean) for each pair, in place; rate = 1 - decay of a moving average."""
    for mean, value in zip(means, values, strict=True):
        for m, x in blocks(mean, value):
            m += rate * (x.astype(m.dtype, copy=False) - m)


@register("l2_norm", "numpy")
def l2_norm(arrays: Sequence[Array]) -> Array:
    """The root of the sum of the squares of all elements of all arrays, added up in float64.

    An array of no dimensions, float64, where the others are.
    """
    total = 0.0
    for array in arrays:
        for (block,) in blocks(array):
            wide = block.astype(np.float64, copy=False).ravel()
            total += float(np.dot(wide, wide))
    return to_device(np.array(math.sqrt(total)), device_of(arrays[0]) if arrays else "cpu")


@register("newton_schulz", "numpy")
def newton_schulz(
    matrices: Sequence[Array],
    *,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    matmul: Callable[..., Array] = matmul,
    l2_norm: Callable[[Sequence[Array]], Array] = l2_norm,
) -> None:
    """Write U p(S / |S|) Vᵀ over each matrix U S Vᵀ; p: the polynomial, so many times.

    The products are done on the shorter side. Source: Jordan et al. 2024.
    """
    a, b, c = coefficients
    for matrix in matrices:
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix / np.maximum(l2_norm([matrix]), eps).astype(matrix.dtype)
        for _ in range(steps):
            gram = matmul(x.T, x) if tall else matmul(x, x.T)
            rest = b * gram
            rest.reshape(-1)[:: len(gram) + 1] += a  # the diagonal
            polynomial = matmul(gram, gram, alpha=c, residual=rest)  # a I + b A + c A²
            x = matmul(x, polynomial) if tall else matmul(polynomial, x)
        matrix[...] = x
