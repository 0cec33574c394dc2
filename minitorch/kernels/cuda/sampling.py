"""Draws from logits on the device (csrc/cuda/sampling.cu)."""

from typing import Any

import numpy as np

from minitorch.kernels.cuda.extension import (
    FLOATS,
    call,
    contiguous,
    device_kernel,
    draw_shift,
    empty,
)
from minitorch.kernels.philox import halves
from minitorch.kernels.reference import sampling as reference

Array = Any


@device_kernel("categorical")
def categorical(
    logits: Array,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    offset: int,
) -> Array:
    """The reference's, without sorting; with the same noise, in float32 for all but float64."""
    cut: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    if logits.dtype not in FLOATS or not logits.size:
        return reference.categorical(logits, seed=seed, offset=offset, **cut)
    out = empty(logits, (len(logits),), np.dtype(np.int64))
    shift, words = draw_shift(seed), halves(seed, offset)
    call("categorical", contiguous(logits), out, shift, *cut.values(), *words)
    return out
