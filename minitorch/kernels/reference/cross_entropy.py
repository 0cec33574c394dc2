"""The loss of a classification."""

import numpy as np

from minitorch.errors import ShapeError
from minitorch.kernels.reference.softmax import logsumexp
from minitorch.kernels.table import register

Array = np.ndarray


@register("cross_entropy", "numpy")
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """Minus the log-probability that softmax(logits) gives to the smoothed target.

    logits: (rows, classes); target: (rows,), integers below classes, or ignore_index. For row r,
    with ε = label_smoothing:

        loss_r = lse_r - (1 - ε) logits_r[target_r] - ε mean(logits_r) + z_loss lse_r²

    with lse_r = logsumexp(logits_r), and 0 where the target is ignore_index. reduction: "none"
    (rows,), "sum", or "mean" over the rows that are not ignored (NaN if all are). z_loss: Chowdhery
    et al. 2022, "PaLM", section 5. Returns the loss and logsumexp(logits): (rows,), from which the
    backward recomputes the probabilities, rather than keep (rows, classes) of them.
    """
    kept, classes = kept_classes(logits, target, ignore_index)
    log_normaliser = logsumexp(logits)
    picked = np.take_along_axis(logits, classes[:, None], 1)[:, 0]
    loss = log_normaliser - (1 - label_smoothing) * picked
    if label_smoothing:
        loss -= label_smoothing * logits.mean(axis=1)
    if z_loss:
        loss += z_loss * np.square(log_normaliser)
    loss[~kept] = 0
    if reduction == "none":
        return loss, log_normaliser
    total = loss.sum(keepdims=True)
    if reduction == "mean":
        with np.errstate(invalid="ignore"):
            total = total / int(np.count_nonzero(kept))
    return total.reshape(()), log_normaliser


@register("cross_entropy_backward", "numpy")
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
    """grad ((1 + 2 z lse) softmax(logits) - smoothed target), and 0 in the rows that are ignored.

    grad: the shape of the loss; log_normaliser: (rows,), as the forward returned it. out: where to
    write, the logits themselves perhaps. Returns (rows, classes).
    """
    kept, classes = kept_classes(logits, target, ignore_index)
    out = np.subtract(logits, log_normaliser[:, None], out=out)
    np.exp(out, out=out)
    if z_loss:
        out *= 1 + 2 * z_loss * log_normaliser[:, None]
    picked = np.take_along_axis(out, classes[:, None], 1)
    np.put_along_axis(out, classes[:, None], picked - (1 - label_smoothing), 1)
    if label_smoothing:
        out -= label_smoothing / out.shape[1]
    if reduction == "mean":
        grad = grad / max(np.count_nonzero(kept), 1)
    scale = np.where(kept, grad, 0).astype(out.dtype, copy=False)
    out *= scale[:, None]
    return out


def kept_classes(logits: Array, target: Array, ignore_index: int) -> tuple[Array, Array]:
    """Which rows count, and each row's class, 0 where it does not count."""
    kept = target != ignore_index
    classes = np.where(kept, target, 0)
    if classes.size and not 0 <= classes.min() <= classes.max() < logits.shape[1]:
        raise ShapeError(
            f"cross_entropy: expected targets in [0, {logits.shape[1]}) or "
            f"ignore_index={ignore_index}; got values from {classes.min()} to {classes.max()}; "
            f"are the logits (rows, classes), and does the vocabulary hold every token?"
        )
    return kept, classes
