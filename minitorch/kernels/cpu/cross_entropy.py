"""Cross-entropy with class indices (csrc/cpu/kernels/cross_entropy.h)."""

import numpy as np

from minitorch.backend import bfloat16, compute_dtype, float32
from minitorch.kernels.cpu.arrays import fit, integers
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import cross_entropy as reference
from minitorch.kernels.reference.cross_entropy import kept_classes
from minitorch.kernels.table import register

Array = np.ndarray


@register("cross_entropy", "cpu", half=(bfloat16,))
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """The reference's, in one reading of each row; logsumexp in float32 for bfloat16 logits."""
    if not fit(logits):
        return reference.cross_entropy(
            logits,
            target,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            reduction=reduction,
        )
    loss, log_normaliser = np.empty((2, len(logits)), compute_dtype(logits.dtype))
    total = None if reduction == "none" else np.empty(1, loss.dtype)
    try:
        extension.cross_entropy(
            np.ascontiguousarray(logits),
            integers(target),
            loss,
            log_normaliser,
            total,
            label_smoothing,
            z_loss,
            ignore_index,
            reduction == "mean",
        )
    except ValueError:
        kept_classes(logits, target, ignore_index)  # says which targets are no classes
        raise
    reduced = loss if total is None else total.reshape(())
    return reduced.astype(logits.dtype, copy=False), log_normaliser


@register("cross_entropy_backward", "cpu", half=(bfloat16,))
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
    """The reference's, in one reading of each row.

    out may be of bfloat16 where the logits are float32, and lie in their memory, each row beginning
    where its logits begin.
    """
    if not fit(logits) or (out is not None and not _fits(out, logits)):
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
    if out is None:
        out = np.empty(logits.shape, logits.dtype)
    extension.cross_entropy_backward(
        np.ascontiguousarray(grad, wide),
        np.ascontiguousarray(logits),
        integers(target),
        np.ascontiguousarray(log_normaliser, wide),
        out,
        label_smoothing,
        z_loss,
        ignore_index,
        reduction == "mean",
    )
    return out


def _fits(out: Array, logits: Array) -> bool:
    narrowed = out.dtype == bfloat16 and logits.dtype == float32
    return (
        out.shape == logits.shape
        and (out.dtype == logits.dtype or narrowed)
        and out.strides[1] == out.itemsize
    )
