"""Optimizers over all parameters at once (csrc/cpu/kernels/optimizers.h)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minitorch.backend import float32, float64
from minitorch.kernels import sweep
from minitorch.kernels.cpu.arrays import FLOATS, fit, integers
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import optimizers as reference
from minitorch.kernels.table import register

Array = np.ndarray


def _run(
    kernel: str,
    lists: list[list[Any]],
    grad_scale: Any,
    compute: Callable[[], list[float]],
    rows: sweep.Rows,
) -> None:
    params, grads, copies, *states = lists
    at = [None] * len(params) if rows is None else [r if r is None else integers(r) for r in rows]
    getattr(extension, kernel)(params, grads, copies, at, *states, float(grad_scale), compute())


for _name in ("adamw_steps", "sgd_steps", "lion_steps", "direction_steps", "follow"):
    register(_name, "cpu")(partial(getattr(sweep, _name), _run))


@register("newton_schulz", "cpu")
def newton_schulz(
    matrices: Sequence[Array], *, coefficients: tuple[float, float, float], steps: int, eps: float
) -> None:
    """The reference's, in one call; a matrix is computed by one thread where others wait too."""
    first, *others = matrices
    if (
        first.dtype not in (float32, float64)
        or not fit(first, *others)
        or not all(matrix.flags.c_contiguous for matrix in matrices)
    ):
        return reference.newton_schulz(matrices, coefficients=coefficients, steps=steps, eps=eps)
    extension.newton_schulz(list(matrices), *coefficients, steps, eps)


@register("l2_norm", "cpu")
def l2_norm(arrays: Sequence[Array]) -> Array:
    """The reference's, squares and sums in float64."""
    if any(a.dtype not in FLOATS for a in arrays):
        return reference.l2_norm(arrays)
    out = np.empty(1)
    extension.l2_norm([np.ascontiguousarray(a) for a in arrays], out)
    return out.reshape(())
