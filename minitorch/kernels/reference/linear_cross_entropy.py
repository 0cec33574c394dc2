"""The reference of the loss that is fused with the matrix product before it."""

from typing import Any

import numpy as np

from minitorch.kernels.reference.cross_entropy import cross_entropy, cross_entropy_backward
from minitorch.kernels.reference.matmul import linear
from minitorch.kernels.table import register

Array = np.ndarray
Gradients = tuple[Array | None, Array | None, Array | None]


@register("linear_cross_entropy", "numpy")
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
    """cross_entropy(x weightᵀ + bias, target), with the options of cross_entropy.

    x: (rows, features); weight: (classes, features); bias: (classes,); target: (rows,). lower: a
    half precision to which x and weight are rounded for the product; sums, loss and gradients stay
    as wide as x. ahead: for which of x, weight and bias to compute, of a loss that is one number,
    the gradient already, which the backward then only has to scale. Returns the loss,
    logsumexp(logits): (rows,), and the three gradients, None for those that were not asked for.

    Here the logits, (rows, classes), are whole in memory; other implementations see to it that
    they never are. Source: Wijmans et al. 2024, "Cut your losses in large-vocabulary language
    models"; computing the gradient ahead: Hsu et al. 2024, "Liger kernel".
    """
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "reduction": reduction,
    }
    logits = linear(_rounded(x, lower), _rounded(weight, lower), bias)
    loss, log_normaliser = cross_entropy(logits, target, **options)
    gradients: Gradients = (None, None, None)
    if any(ahead):
        gradients = linear_cross_entropy_backward(
            np.ones_like(loss),
            x,
            weight,
            target,
            bias,
            log_normaliser,
            needs=ahead,
            lower=lower,
            **options,
        )
    return loss, log_normaliser, gradients


@register("linear_cross_entropy_backward", "numpy")
def linear_cross_entropy_backward(
    grad: Array,
    x: Array,
    weight: Array,
    target: Array,
    bias: Array | None,
    log_normaliser: Array,
    *,
    needs: tuple[bool, bool, bool],
    lower: np.dtype | None = None,
    **options: Any,
) -> Gradients:
    """The gradients for x, weight and bias that are needed, from the logits computed again.

    grad: of the shape of the loss; log_normaliser: as the forward returned it; options: those of
    the forward.
    """
    x, weight = _rounded(x, lower), _rounded(weight, lower)
    logits = linear(x, weight, bias)
    dlogits = cross_entropy_backward(grad, logits, target, log_normaliser, out=logits, **options)
    return (
        dlogits @ weight if needs[0] else None,
        dlogits.T @ x if needs[1] else None,
        dlogits.sum(0) if needs[2] else None,
    )


def _rounded(x: Array, lower: np.dtype | None) -> Array:
    return x if lower is None else x.astype(lower).astype(x.dtype)
