"""Optimizers over all parameters in one launch (csrc/cuda/optimizers.cu)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from minitorch.backend import float64
from minitorch.kernels import sweep
from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty
from minitorch.kernels.reference import optimizers as reference

Array = Any

_PIECE = 4096
"""Elements of an array whose squares one block adds up, as in the kernel."""


for _name in ("adamw_steps", "sgd_steps", "lion_steps", "follow"):
    device_kernel(_name)(partial(getattr(sweep, _name), call))


@device_kernel("l2_norm")
def l2_norm(arrays: Sequence[Array]) -> float:
    """The reference's, squares and sums in float64; waits for the device, to return a number."""
    if not arrays or any(a.dtype not in FLOATS for a in arrays):
        return reference.l2_norm(arrays)
    pieces = sum(-(-a.size // _PIECE) for a in arrays)
    sums, norm = (empty(arrays[0], (count,), float64) for count in (max(pieces, 1), 1))
    call("l2_norm", [contiguous(a) for a in arrays], sums, norm)
    return float(norm[0])
