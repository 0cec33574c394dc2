"""Cross-entropy with class indices on the device (csrc/cuda/cross_entropy.cu)."""

from typing import Any

import numpy as np

from minitorch.backend import compute_dtype
from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty
from minitorch.kernels.reference import cross_entropy as reference

Array = Any


@device_kernel("cross_entropy")
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """The reference's, in one reading of each row; logsumexp in float32 for half precision.

    On a GPU a target that is no class gives NaN: raising an error would wait for the device.
    """
    if not _takes(logits):
        return reference.cross_entropy(
            logits,
            target,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            reduction=reduction,
        )
    wide = compute_dtype(logits.dtype)
    losses, log_normaliser = (empty(logits, (len(logits),), wide) for _ in range(2))
    total = None if reduction == "none" else empty(logits, ())
    call(
        "cross_entropy",
        contiguous(logits),
        _classes(logits, target, ignore_index),
        losses,
        log_normaliser,
        total,
        ignore_index,
        label_smoothing,
        z_loss,
        reduction == "mean",
    )
    return losses.astype(logits.dtype, copy=False) if total is None else total, log_normaliser


@device_kernel("cross_entropy_backward")
def cross_entropy_backward(
    grad: Array,
    logits: Array,
    target: Array,
    log_normaliser: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    out: Array | None = None,
) -> Array:
    """The reference's, in one reading of each row."""
    if not _takes(logits):
        return reference.cross_entropy_backward(
            grad,
            logits,
            target,
            log_normaliser,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            reduction=reduction,
            out=out,
        )
    wide = compute_dtype(logits.dtype)
    fits = out is not None and out.dtype == logits.dtype and out.flags.c_contiguous
    into = out if fits else empty(logits)
    call(
        "cross_entropy_backward",
        contiguous(grad.astype(wide, copy=False)).reshape(-1),
        contiguous(logits),
        _classes(logits, target, ignore_index),
        contiguous(log_normaliser.astype(wide, copy=False)),
        into,
        empty(logits, (1,), wide) if reduction == "mean" else None,
        ignore_index,
        label_smoothing,
        z_loss,
    )
    if out is None or fits:
        return into
    out[...] = into
    return out


def _takes(logits: Array) -> bool:
    return logits.dtype in FLOATS and logits.size > 0


def _classes(logits: Array, target: Array, ignore_index: int) -> Array:
    """The targets as the kernel reads them, checked where that costs no waiting."""
    if isinstance(target, np.ndarray):
        reference.kept_classes(logits, target, ignore_index)
    return contiguous(target.astype(np.int64, copy=False))
