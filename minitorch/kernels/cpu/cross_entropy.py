"""Cross-entropy with class indices (csrc/cpu/kernels/cross_entropy.h)."""

from typing import Any

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import cross_entropy as reference
from minitorch.kernels.reference.cross_entropy import kept_classes
from minitorch.kernels.table import register

_DTYPES = frozenset({float32, float64, bfloat16})

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
    if not _takes(logits):
        return reference.cross_entropy(
            logits,
            target,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            reduction=reduction,
        )
    kept, classes = kept_classes(logits, target, ignore_index)
    loss, log_normaliser = np.empty((2, len(logits)), _wide(logits))
    extension.cross_entropy(
        np.ascontiguousarray(logits),
        _marked(kept, classes),
        loss,
        log_normaliser,
        label_smoothing,
        z_loss,
    )
    if reduction == "none":
        return loss.astype(logits.dtype, copy=False), log_normaliser
    total = loss.sum()
    if reduction == "mean":
        with np.errstate(invalid="ignore"):
            total = total / total.dtype.type(np.count_nonzero(kept))
    return np.asarray(total, logits.dtype), log_normaliser


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
    if not _takes(logits) or (out is not None and not _fits(out, logits)):
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
    kept, classes = kept_classes(logits, target, ignore_index)
    wide = _wide(logits)
    grad = grad.astype(wide, copy=False)
    if reduction == "mean":
        grad = grad / max(np.count_nonzero(kept), 1)
    if out is None:
        out = np.empty(logits.shape, logits.dtype)
    extension.cross_entropy_backward(
        np.where(kept, grad, 0).astype(wide, copy=False),
        np.ascontiguousarray(logits),
        _marked(kept, classes),
        np.ascontiguousarray(log_normaliser, wide),
        out,
        label_smoothing,
        z_loss,
    )
    return out


def _takes(logits: Array) -> bool:
    return logits.dtype in _DTYPES and logits.size > 0


def _wide(logits: Array) -> Any:
    """What the kernel computes in."""
    return float64 if logits.dtype == float64 else float32


def _fits(out: Array, logits: Array) -> bool:
    narrowed = out.dtype == bfloat16 and logits.dtype == float32
    return (
        out.shape == logits.shape
        and (out.dtype == logits.dtype or narrowed)
        and out.strides[1] == out.itemsize
    )


def _marked(kept: Array, classes: Array) -> Array:
    """The class of each row, -1 where it does not count."""
    return np.where(kept, classes, -1).astype(np.int64, copy=False)
