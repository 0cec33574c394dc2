"""A matrix product and the cross-entropy of its result, in chunks of rows, on any device.

A chunk of logits is made, its loss taken, the gradient of the loss written over it, and from that
come the rows' share of the gradients: dx = dlogits weight, dweight += dlogitsᵀ x. Then the next
chunk takes its place in memory. Where the loss is one number all this happens in the forward, and
the backward multiplies by a number; otherwise each logit would be computed twice, a third more
work.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitorch.backend import compute_dtype
from minitorch.kernels.reference import linear_cross_entropy as reference
from minitorch.kernels.reference.linear_cross_entropy import Gradients

Array = Any


@dataclass
class Device:
    """What a head is made of: the kernels of a device, and the size of its chunks.

    takes(x, weight, lower): whether these kernels take such arrays, that are not empty.
    differentiate(grad, logits, target, log_normaliser, dtype, **options): the gradient for logits,
    which it may overwrite, in dtype. empty(like, shape, dtype): a new array.
    """

    takes: Callable[[Array, Array, np.dtype | None], bool]
    matmul: Callable[..., Array]
    cross_entropy: Callable[..., tuple[Array, Array]]
    differentiate: Callable[..., Array]
    cast: Callable[..., Array]
    empty: Callable[..., Array]
    least_rows: int
    chunk_bytes: int


def kernels(device: Device) -> tuple[Callable[..., Any], Callable[..., Gradients]]:
    """`linear_cross_entropy` and its backward there; the reference's where it cannot take them."""

    def forward(
        x: Array,
        weight: Array,
        target: Array,
        bias: Array | None = None,
        *,
        lower: np.dtype | None = None,
        ahead: tuple[bool, bool, bool] = (False, False, False),
        reduction: str = "mean",
        ignore_index: int = -100,
        **options: Any,
    ) -> tuple[Array, Array, Gradients]:
        options["ignore_index"] = ignore_index
        if not _takes(device, x, weight, lower):
            return reference.linear_cross_entropy(
                x, weight, target, bias,
                lower=lower, ahead=ahead, reduction=reduction, **options,
            )  # fmt: skip
        head = Head(device, x, weight, bias, lower, ahead)
        return _forward(head, target, reduction, any(ahead), options)

    def backward(
        grad: Array,
        x: Array,
        weight: Array,
        target: Array,
        bias: Array | None,
        log_normaliser: Array,
        *,
        needs: tuple[bool, bool, bool],
        lower: np.dtype | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        **options: Any,
    ) -> Gradients:
        options["ignore_index"] = ignore_index
        if not _takes(device, x, weight, lower):
            return reference.linear_cross_entropy_backward(
                grad, x, weight, target, bias, log_normaliser,
                lower=lower, needs=needs, reduction=reduction, **options,
            )  # fmt: skip
        head = Head(device, x, weight, bias, lower, needs)
        return _backward(head, grad, target, log_normaliser, reduction, options)

    return forward, backward


def _takes(device: Device, x: Array, weight: Array, lower: np.dtype | None) -> bool:
    return x.size > 0 and weight.size > 0 and device.takes(x, weight, lower)


def _forward(
    head: "Head", target: Array, reduction: str, ahead: bool, options: dict[str, Any]
) -> tuple[Array, Array, Gradients]:
    device, x = head.device, head.x
    count = (target != options["ignore_index"]).sum(keepdims=True).astype(head.wide)
    scale = 1 / np.maximum(count, 1) if reduction == "mean" else np.ones_like(count)
    loss, log_normaliser = (device.empty(x, (len(x),), head.wide) for _ in range(2))
    for rows, logits in head.chunks():
        loss[rows], log_normaliser[rows] = device.cross_entropy(
            logits, target[rows], reduction="none", **options
        )
        if ahead:
            head.differentiate(rows, logits, target, log_normaliser, scale.reshape(()), options)
    if reduction != "none":
        loss = loss.sum(keepdims=True)
        if reduction == "mean":
            with np.errstate(invalid="ignore"):
                loss = loss / count
        loss = loss.reshape(())
    return head.rounded(loss), log_normaliser, head.gradients()


def _backward(
    head: "Head",
    grad: Array,
    target: Array,
    log_normaliser: Array,
    reduction: str,
    options: dict[str, Any],
) -> Gradients:
    scale = grad.astype(head.wide)
    if reduction == "mean":
        count = (target != options["ignore_index"]).sum(keepdims=True).astype(head.wide)
        scale = (scale / np.maximum(count, 1)).reshape(())
    for rows, logits in head.chunks():
        head.differentiate(rows, logits, target, log_normaliser, scale, options)
    return head.gradients()


class Head:
    """The product, chunk by chunk, and the gradients that add up over the chunks."""

    def __init__(
        self,
        device: Device,
        x: Array,
        weight: Array,
        bias: Array | None,
        lower: np.dtype | None,
        needs: tuple[bool, bool, bool],
    ):
        self.device = device
        self.wide = compute_dtype(x.dtype)
        self.dtype, self.bias = x.dtype, bias
        self.x, self.weight = (
            a if lower is None else device.cast(a, dtype=lower) for a in (x, weight)
        )
        self.dx = device.empty(x, x.shape, x.dtype) if needs[0] else None
        self.dweight = device.empty(x, weight.shape, self.wide) if needs[1] else None
        self.dbias = device.empty(x, (1, len(weight)), self.wide) if needs[2] else None

    def chunks(self) -> Iterator[tuple[slice, Array]]:
        """Which rows, and their logits, which the caller may overwrite."""
        count, classes = len(self.x), len(self.weight)
        most = max(
            self.device.least_rows, self.device.chunk_bytes // (classes * self.wide.itemsize)
        )
        step = -(-count // -(-count // most))  # chunks of one size
        memory = self.device.empty(self.x, (min(step, count), classes), self.wide)
        for start in range(0, count, step):
            x = self.x[start : start + step]
            logits = self.device.matmul(x, self.weight.T, out=memory[: len(x)], bias=self.bias)
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
        matmul, later = self.device.matmul, rows.start > 0
        dlogits = self.device.differentiate(
            scale[rows] if scale.ndim else scale,
            logits,
            target[rows],
            log_normaliser[rows],
            self.x.dtype,
            **options,
        )
        if self.dx is not None:
            matmul(dlogits, self.weight, out=self.dx[rows])
        if self.dweight is not None:
            matmul(dlogits.T, self.x[rows], out=self.dweight, accumulate=later)
        if self.dbias is not None:
            ones = self.device.empty(self.x, (1, len(dlogits)), self.wide)
            ones[...] = 1
            if ones.dtype != dlogits.dtype:
                ones = self.device.cast(ones, dtype=dlogits.dtype)
            matmul(ones, dlogits, out=self.dbias, accumulate=later)

    def gradients(self) -> Gradients:
        """For x, weight and bias, in the dtype of x."""
        return (
            self.dx,
            None if self.dweight is None else self.rounded(self.dweight),
            None if self.dbias is None else self.rounded(self.dbias)[0],
        )

    def rounded(self, a: Array) -> Array:
        """In the dtype of x."""
        return a if a.dtype == self.dtype else self.device.cast(a, dtype=self.dtype)
