"""Optimizers over all parameters at once (csrc/cpu/kernels/optimizers.h)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels import reference
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.table import register

Array = np.ndarray


@register("adamw_steps", "cpu")
def adamw_steps(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    numbers: Sequence[dict[str, Any]],
    *,
    grad_scale: float = 1.0,
) -> None:
    """The reference's: one loop for the arrays of each dtype that are contiguous."""
    compiled: dict[np.dtype, list[int]] = {float32: [], float64: []}
    for i, arrays in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        dtype = arrays[0].dtype
        if dtype in compiled and all(a.flags.c_contiguous and a.dtype == dtype for a in arrays):
            compiled[dtype].append(i)
        else:
            one = slice(i, i + 1)
            reference.adamw_steps(
                params[one],
                grads[one],
                exp_avgs[one],
                exp_avg_sqs[one],
                numbers[one],
                grad_scale=grad_scale,
            )
    for indices in compiled.values():
        lists = [[arrays[i] for i in indices] for arrays in (params, grads, exp_avgs, exp_avg_sqs)]
        extension.adamw(*lists, [v for i in indices for v in _scalars(grad_scale, **numbers[i])])


def _scalars(
    grad_scale: float,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[float, ...]:
    """What the kernel wants for one parameter; see its head."""
    beta1, beta2 = betas
    rate, unbias = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
    return grad_scale, beta1, beta2, 1 - lr * weight_decay, rate, unbias, eps


@register("l2_norm", "cpu")
def l2_norm(arrays: Sequence[Array]) -> float:
    """The reference's, partial sums in float64."""
    if any(a.dtype not in (float32, float64, bfloat16) for a in arrays):
        return reference.l2_norm(arrays)
    out = np.empty(1)
    extension.l2_norm([np.ascontiguousarray(a) for a in arrays], out)
    return float(out[0])
