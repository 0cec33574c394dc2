"""Cross-entropy with class indices (csrc/cpu/kernels/cross_entropy.h)."""

import numpy as np

from minitorch.backend import float32, float64
from minitorch.kernels import reference
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import kept_classes
from minitorch.kernels.table import register

_DTYPES = frozenset({float32, float64})

Array = np.ndarray


@register("cross_entropy", "cpu")
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """The reference's, in two readings of each row."""
    if logits.dtype not in _DTYPES or not logits.size:
        return reference.cross_entropy(
            logits,
            target,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
    kept, classes = kept_classes(logits, target, ignore_index)
    loss, log_normaliser = np.empty((2, len(logits)), logits.dtype)
    extension.cross_entropy(
        np.ascontiguousarray(logits), _marked(kept, classes), loss, log_normaliser, label_smoothing
    )
    if reduction == "none":
        return loss, log_normaliser
    total = loss.sum()
    if reduction == "mean":
        with np.errstate(invalid="ignore"):
            total = total / logits.dtype.type(np.count_nonzero(kept))
    return np.asarray(total), log_normaliser


@register("cross_entropy_backward", "cpu")
def cross_entropy_backward(
    grad: Array,
    logits: Array,
    target: Array,
    log_normaliser: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Array:
    """The reference's, in one reading of each row."""
    if logits.dtype not in _DTYPES or not logits.size:
        return reference.cross_entropy_backward(
            grad,
            logits,
            target,
            log_normaliser,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
    kept, classes = kept_classes(logits, target, ignore_index)
    if reduction == "mean":
        grad = grad / max(np.count_nonzero(kept), 1)
    scale = np.where(kept, grad, 0).astype(logits.dtype, copy=False)
    out = np.empty(logits.shape, logits.dtype)
    extension.cross_entropy_backward(
        scale,
        np.ascontiguousarray(logits),
        _marked(kept, classes),
        np.ascontiguousarray(log_normaliser),
        out,
        label_smoothing,
    )
    return out


def _marked(kept: Array, classes: Array) -> Array:
    """The class of each row, -1 where it does not count."""
    return np.where(kept, classes, -1).astype(np.int64, copy=False)
