"""A matrix product and the cross-entropy of its result, in chunks of rows.

A chunk of logits is made, its loss taken, the gradient of the loss written over it, and from that
come the rows' share of the gradients: dx = dlogits weight, dweight += dlogitsᵀ x. Then the next
chunk takes its place in memory. Where the loss is one number all this happens in the forward, and
the backward multiplies by a number; otherwise each logit would be computed twice, a third more
work.

The size of a chunk is a bargain. Each one reads the weight twice, and reads and writes dweight:
four times the weight's bytes through memory, which few rows cannot hide. With 50257 classes and 768
features, on two cores, chunks of 64 rows took nearly half as long again as chunks of 256, chunks of
128 a tenth longer, and 512 rows gained nothing more. So a chunk has 256 rows, or more where 4 MiB
hold more; with 768 features it is a third as large as the weight.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels.cpu.cross_entropy import cross_entropy, cross_entropy_backward
from minitorch.kernels.cpu.elementwise import cast
from minitorch.kernels.cpu.matmul import matmul
from minitorch.kernels.reference import linear_cross_entropy as reference
from minitorch.kernels.reference.cross_entropy import kept_classes
from minitorch.kernels.reference.linear_cross_entropy import Gradients
from minitorch.kernels.table import register

_DTYPES = frozenset({float32, float64, bfloat16})
_LEAST_ROWS = 256
_CHUNK_BYTES = 4 << 20

Array = np.ndarray


@register("linear_cross_entropy", "cpu", half=(bfloat16,))
def linear_cross_entropy(
    x: Array,
    weight: Array,
    target: Array,
    bias: Array | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    lower: np.dtype | None = None,
    ahead: tuple[bool, bool, bool] = (False, False, False),
) -> tuple[Array, Array, Gradients]:
    """The reference's, with at most a chunk of logits in memory; of bfloat16, in float32."""
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
    }
    if not _takes(x, weight, lower):
        return reference.linear_cross_entropy(
            x, weight, target, bias, reduction=reduction, lower=lower, ahead=ahead, **options
        )
    kept, _ = kept_classes(weight.T, target, ignore_index)
    head = _Head(x, weight, bias, lower, ahead)
    share = 1 / max(int(np.count_nonzero(kept)), 1) if reduction == "mean" else 1
    scale = np.asarray(share, head.wide)
    loss, log_normaliser = np.empty((2, len(x)), head.wide)
    for rows, logits in head.chunks():
        loss[rows], log_normaliser[rows] = cross_entropy(
            logits, target[rows], reduction="none", **options
        )
        if any(ahead):
            head.differentiate(rows, logits, target, log_normaliser, scale, options)
    if reduction == "none":
        return loss.astype(x.dtype, copy=False), log_normaliser, head.gradients()
    total = loss.sum()
    if reduction == "mean":
        with np.errstate(invalid="ignore"):
            total = total / total.dtype.type(np.count_nonzero(kept))
    return np.asarray(total, x.dtype), log_normaliser, head.gradients()


@register("linear_cross_entropy_backward", "cpu", half=(bfloat16,))
def linear_cross_entropy_backward(
    grad: Array,
    x: Array,
    weight: Array,
    target: Array,
    bias: Array | None,
    log_normaliser: Array,
    *,
    needs: tuple[bool, bool, bool],
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    lower: np.dtype | None = None,
) -> Gradients:
    """The reference's, with at most a chunk of logits in memory."""
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
    }
    if not _takes(x, weight, lower):
        return reference.linear_cross_entropy_backward(
            grad,
            x,
            weight,
            target,
            bias,
            log_normaliser,
            needs=needs,
            reduction=reduction,
            lower=lower,
            **options,
        )
    head = _Head(x, weight, bias, lower, needs)
    scale: Any = grad.astype(head.wide)
    if reduction == "mean":
        scale = scale / max(int(np.count_nonzero(target != ignore_index)), 1)
    for rows, logits in head.chunks():
        head.differentiate(rows, logits, target, log_normaliser, scale, options)
    return head.gradients()


def _takes(x: Array, weight: Array, lower: np.dtype | None) -> bool:
    return (
        x.dtype in _DTYPES
        and weight.dtype == x.dtype
        and (lower is None or (lower == bfloat16 and x.dtype == float32))
        and x.size > 0
        and weight.size > 0
    )


class _Head:
    """The product, chunk by chunk, and the gradients that add up over the chunks."""

    def __init__(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        lower: np.dtype | None,
        needs: tuple[bool, bool, bool],
    ):
        self.wide = float64 if x.dtype == float64 else float32
        self.dtype, self.bias = x.dtype, bias
        self.x, self.weight = (a if lower is None else cast(a, dtype=lower) for a in (x, weight))
        self.dx = np.empty(x.shape, x.dtype) if needs[0] else None
        self.dweight = np.empty(weight.shape, self.wide) if needs[1] else None
        self.dbias = np.zeros((1, len(weight)), self.wide) if needs[2] else None

    def chunks(self) -> Iterator[tuple[slice, Array]]:
        """Which rows, and their logits, which the caller may overwrite."""
        count, classes = len(self.x), len(self.weight)
        most = max(_LEAST_ROWS, _CHUNK_BYTES // (classes * self.wide.itemsize))
        step = -(-count // -(-count // most))  # chunks of one size
        memory = np.empty((min(step, count), classes), self.wide)
        for start in range(0, count, step):
            x = self.x[start : start + step]
            logits = matmul(x, self.weight.T, out=memory[: len(x)], bias=self.bias)
            yield slice(start, start + len(x)), logits

    def differentiate(
        self,
        rows: slice,
        logits: Array,
        target: Array,
        log_normaliser: Array,
        scale: Array,
        options: dict[str, Any],
    ) -> None:
        """Add the share of these rows to the gradients; their logits are overwritten.

        scale: the gradient of each row's loss, or of all: (rows,) or ().
        """
        dlogits = logits
        if self.x.dtype == bfloat16:  # each row in the first half of its own memory
            dlogits = logits.view(bfloat16)[:, : logits.shape[1]]
        cross_entropy_backward(
            scale[rows] if scale.ndim else scale,
            logits,
            target[rows],
            log_normaliser[rows],
            reduction="sum",
            out=dlogits,
            **options,
        )
        if self.dx is not None:
            matmul(dlogits, self.weight, out=self.dx[rows])
        if self.dweight is not None:
            matmul(dlogits.T, self.x[rows], out=self.dweight, accumulate=rows.start > 0)
        if self.dbias is not None:
            ones = np.ones((1, len(dlogits)), dlogits.dtype)
            matmul(ones, dlogits, out=self.dbias, accumulate=True)

    def gradients(self) -> Gradients:
        """For x, weight and bias, in the dtype of x."""
        dweight = self.dweight
        if dweight is not None and dweight.dtype != self.dtype:
            dweight = cast(dweight, dtype=self.dtype)
        return self.dx, dweight, None if self.dbias is None else self.dbias[0].astype(self.dtype)
