"""Optimizers over all parameters in one launch (csrc/cuda/optimizers.cu)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from minitorch.backend import float64, numbers_on
from minitorch.kernels import sweep
from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty
from minitorch.kernels.cuda.matmul import matmul
from minitorch.kernels.reference import optimizers as reference

Array = Any

_PIECE = 4096
"""Elements of an array whose squares one block adds up, as in the kernel."""


def _run(
    kernel: str,
    lists: list[list[Any]],
    grad_scale: Any,
    compute: Callable[[], list[float]],
    rows: sweep.Rows,
) -> None:
    like = lists[0][0]
    if not hasattr(grad_scale, "dtype"):
        scale = numbers_on(lambda: [grad_scale], like)
    else:
        scale = grad_scale.astype(float64, copy=False).reshape(1)
    chosen = reference.taken(lists, rows)
    call(kernel, *chosen, scale, numbers_on(compute, like))
    reference.put_back(lists, chosen, rows)


for _name in ("adamw_steps", "sgd_steps", "lion_steps", "direction_steps", "follow"):
    device_kernel(_name)(partial(getattr(sweep, _name), _run))


@device_kernel("l2_norm")
def l2_norm(arrays: Sequence[Array]) -> Array:
    """The reference's, squares and sums in float64."""
    if not arrays or any(a.dtype not in FLOATS for a in arrays):
        return reference.l2_norm(arrays)
    pieces = sum(-(-a.size // _PIECE) for a in arrays)
    sums, norm = (empty(arrays[0], shape, float64) for shape in ((max(pieces, 1),), ()))
    call("l2_norm", [contiguous(a) for a in arrays], sums, norm)
    return norm


device_kernel("newton_schulz")(partial(reference.newton_schulz, matmul=matmul, l2_norm=l2_norm))
