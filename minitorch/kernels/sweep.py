"""Steps of optimizers on compiled kernels, of the CPU and of the GPU alike.

Each function has the reference's signature after `run`, which is

    run(kernel, lists of arrays, grad_scale, compute, rows)

where compute() gives the rule's numbers, those of one parameter after the other. The parameters
whose arrays are contiguous and of one dtype, float32 or float64, go to the kernel together; the
reference updates the others. rows: as the reference's, of these parameters.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitorch import capture
from minitorch.backend import bfloat16, float32, float64
from minitorch.errors import GraphError
from minitorch.kernels.reference import optimizers as reference

Array = Any
Scale = float | Array
Rows = Sequence[Array | None] | None
Run = Callable[[str, list[list[Any]], Scale, Callable[[], list[float]], Rows], None]
Numbers = Sequence[dict[str, Any]]
Copies = Sequence[Array | None] | None


def adamw_steps(
    run: Run,
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
    """The reference's."""
    lists = params, grads, exp_avgs, exp_avg_sqs
    _sweep(run, "adamw", lists, copies, rows, numbers, grad_scale, _adamw, reference.adamw_steps)


def sgd_steps(
    run: Run,
    params: Sequence[Array],
    grads: Sequence[Array],
    buffers: Sequence[Array | None],
    numbers: Numbers,
    *,
    grad_scale: Scale = 1.0,
    copies: Copies = None,
    rows: Rows = None,
) -> None:
    """The reference's."""
    plain = [i for i, buffer in enumerate(buffers) if buffer is None]
    heavy = [i for i, buffer in enumerate(buffers) if buffer is not None]

    def without_buffers(params, grads, numbers, **options):
        reference.sgd_steps(params, grads, [None] * len(params), numbers, **options)

    for name, among, lists, scalars, otherwise in (
        ("sgd", plain, (params, grads), _descent, without_buffers),
        ("sgd_momentum", heavy, (params, grads, buffers), _momentum, reference.sgd_steps),
    ):
        _sweep(run, name, lists, copies, rows, numbers, grad_scale, scalars, otherwise, among)


def lion_steps(
    run: Run,
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    numbers: Numbers,
    *,
    grad_scale: Scale = 1.0,
    copies: Copies = None,
    rows: Rows = None,
) -> None:
    """The reference's."""
    lists = params, grads, exp_avgs
    _sweep(run, "lion", lists, copies, rows, numbers, grad_scale, _lion, reference.lion_steps)


def direction_steps(
    run: Run,
    directions: Sequence[Array],
    grads: Sequence[Array],
    buffers: Sequence[Array],
    numbers: Numbers,
    *,
    grad_scale: Scale = 1.0,
    copies: Copies = None,
    rows: Rows = None,
) -> None:
    """The reference's."""
    lists, otherwise = (directions, grads, buffers), reference.direction_steps
    _sweep(run, "direction", lists, copies, rows, numbers, grad_scale, _direction, otherwise)


def follow(run: Run, means: Sequence[Array], values: Sequence[Array], *, rate: float) -> None:
    """The reference's."""

    def one_by_one(means, values, numbers, **_):
        reference.follow(means, values, rate=rate)

    numbers = [{"rate": rate}] * len(means)
    _sweep(
        *(run, "follow", (means, values), None, None, numbers, 1.0),
        lambda rate: (rate,),
        one_by_one,
    )


def _sweep(
    run: Run,
    name: str,
    lists: Sequence[Sequence[Any]],
    copies: Copies,
    rows: Rows,
    numbers: Numbers,
    grad_scale: Scale,
    scalars: Callable[..., tuple[float, ...]],
    otherwise: Callable[..., None],
    among: Sequence[int] | None = None,
) -> None:
    """The kernel `name` on lists of arrays; `scalars` makes its numbers from the reference's.

    among: the positions in the lists that count; all unless given.
    """
    if copies is None:
        copies = [None] * len(lists[0])
    compiled: dict[np.dtype, list[int]] = {float32: [], float64: []}
    rest = []
    for i in range(len(lists[0])) if among is None else among:
        dtype = lists[0][i].dtype
        for values in lists:
            array = values[i]
            if array.dtype != dtype or not array.flags.c_contiguous:
                rest.append(i)
                break
        else:
            compiled.get(dtype, rest).append(i)
    for indices in compiled.values():
        if indices:
            params, grads, *states = [_pick(arrays, indices) for arrays in lists]
            own = _pick(copies, indices)
            fit = [c if _copy_fits(c, p) else None for c, p in zip(own, params, strict=True)]

            def compute(indices: list[int] = indices) -> list[float]:
                return _in_turn(scalars, list(numbers), indices)

            at = None if rows is None else _pick(rows, indices)
            run(name, [params, grads, fit, *states], grad_scale, compute, at)
            for param, copy, written in zip(params, own, fit, strict=True):
                if copy is not written:
                    copy[...] = param.astype(copy.dtype)
    if rest:
        if capture.thread.current is not None:
            raise GraphError(
                f"{name}: expected contiguous parameters and gradients in a captured step; got "
                "some that are not. Make them contiguous()"
            )
        picked = [_pick(arrays, rest) for arrays in (*lists, numbers)]
        at = None if rows is None else _pick(rows, rest)
        otherwise(*picked, grad_scale=grad_scale, copies=_pick(copies, rest), rows=at)


def _in_turn(
    scalars: Callable[..., tuple[float, ...]], numbers: Numbers, indices: list[int]
) -> list[float]:
    """The rule's numbers of each parameter; those that share a dict share what is made of it."""
    found: dict[int, tuple[float, ...]] = {}
    out: list[float] = []
    for i in indices:
        given = numbers[i]
        made = found.get(id(given))
        if made is None:
            made = found[id(given)] = scalars(**given)
        out += made
    return out


def _copy_fits(copy: Array | None, param: Array) -> bool:
    """Whether the kernel can write the copy."""
    return copy is None or (
        copy.dtype == bfloat16 and copy.flags.c_contiguous and param.dtype == float32
    )


def _pick(values: Sequence[Any], indices: list[int]) -> list[Any]:
    return [values[i] for i in indices]


def _adamw(
    *, step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> tuple[float, ...]:
    beta1, beta2 = betas
    rate, unbias = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
    return beta1, beta2, 1 - lr * weight_decay, rate, unbias, eps


def _descent(*, lr: float, weight_decay: float = 0.0, **_: Any) -> tuple[float, ...]:
    return lr, weight_decay


def _momentum(
    *,
    step: int,
    lr: float,
    momentum: float,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> tuple[float, ...]:
    fresh = 1.0 if step == 1 else 1 - dampening
    return lr, weight_decay, momentum, fresh, nesterov


def _direction(*, momentum: float, nesterov: bool) -> tuple[float, ...]:
    return momentum, nesterov


def _lion(*, lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> tuple[float, ...]:
    return *betas, 1 - lr * weight_decay, lr
