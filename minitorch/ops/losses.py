r"""Cross-entropy, of logits and of the product that makes them.

For logits x and target class t the loss is -ln softmax(x)_t, and its gradient softmax(x) - e_t:
the model's probabilities minus the truth's.
"""

from typing import Any

import numpy as np

from minitorch import backend, modes
from minitorch.errors import ConfigError, DtypeError, ShapeError
from minitorch.ops.definition import _kernel
from minitorch.ops.general import log_softmax, logsumexp
from minitorch.ops.primitive import fused
from minitorch.ops.promotion import promote
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor


def _cross_entropy_forward(
    logits: Any,
    target: Any,
    *,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    z_loss: float = 0.0,
) -> Any:
    loss, log_normaliser = _kernel("cross_entropy")(
        logits,
        target,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        reduction=reduction,
    )
    return loss, {"log_normaliser": log_normaliser}


def _cross_entropy_backward(
    grad: Any,
    logits: Any,
    target: Any,
    log_normaliser: Any,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
) -> Any:
    return [
        _kernel("cross_entropy_backward")(
            grad,
            logits,
            target,
            log_normaliser,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            reduction=reduction,
        )
    ]


def _cross_entropy_reference(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    z_loss: float = 0.0,
) -> Tensor:
    kept = target != ignore_index
    log_probs = log_softmax(logits, 1)
    classes = target.masked_fill(~kept, 0).unsqueeze(1)
    loss = -(1 - label_smoothing) * log_probs.gather(1, classes).squeeze(1)
    if label_smoothing:
        loss = loss - label_smoothing * log_probs.mean(1)
    if z_loss:
        loss = loss + z_loss * logsumexp(logits, 1).square()
    loss = loss.masked_fill(~kept, 0.0)
    if reduction == "none":
        return loss
    return loss.sum() / (kept.sum() if reduction == "mean" else 1)


_cross_entropy = fused(
    "cross_entropy",
    _cross_entropy_forward,
    kernel="cross_entropy",
    reference=_cross_entropy_reference,
    backward=_cross_entropy_backward,
    autocast="raise",
    inputs=("logits", "target"),
    extras=("log_normaliser",),
    formula=r"-\ln \operatorname{softmax}(x)_t",
    jacobian=r"(s - e_t)^\top",
    samples=lambda: [
        sample(
            real(4, 5),
            np.array([0, 3, -100, 4]),
            ignore_index=-100,
            label_smoothing=smoothing,
            z_loss=z_loss,
            reduction=reduction,
        )
        for smoothing, z_loss, reduction in [
            (0.0, 0.0, "mean"),
            (0.1, 0.0, "sum"),
            (0.1, 0.05, "none"),
            (0.1, 0.05, "mean"),
        ]
    ],
)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Minus the log-probability of the target class under softmax(logits).

    logits: (rows, classes), target: (rows,) of class indices, or both with further dimensions
    after the classes as in PyTorch: (batch, classes, ...), (batch, ...). Rows whose target is
    ignore_index count neither in the loss nor in its mean. label_smoothing moves that share of the
    target to the uniform distribution. z_loss: the weight of logsumexp(logits)², which is added
    and keeps the logits near zero (Chowdhery et al. 2022, "PaLM", section 5). reduction: "mean",
    "sum" or "none". In PyTorch: torch.nn.functional.cross_entropy, which has no z_loss.
    """
    _check("cross_entropy", target, reduction, label_smoothing)
    class_dim = 0 if logits.ndim == 1 else 1
    expected = logits.shape[:class_dim] + logits.shape[class_dim + 1 :]
    if logits.ndim == 0 or target.shape != expected:
        raise ShapeError(
            f"cross_entropy: logits of shape {logits.shape} need a target of shape {expected}; got "
            f"{target.shape}"
        )
    rows = logits
    if logits.ndim != 2:
        rows = logits.movedim(class_dim, -1).reshape(-1, logits.shape[class_dim])
    meta = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "reduction": reduction,
    }
    loss = apply(_cross_entropy, [rows, target.reshape(-1)], meta)
    return loss.reshape(target.shape) if reduction == "none" else loss


def _check(operation: str, target: Tensor, reduction: str, label_smoothing: float) -> None:
    if reduction not in ("mean", "sum", "none") or not 0 <= label_smoothing <= 1:
        raise ConfigError(
            f'{operation}: expected reduction "mean", "sum" or "none" and label_smoothing in '
            f"[0, 1]; got {reduction!r} and {label_smoothing}"
        )
    if backend.is_float(target.dtype):
        raise DtypeError(
            f"{operation}: expected integer class indices as the target; got {target.dtype}. "
            "For probabilities use -(target * logits.log_softmax(-1)).sum(-1).mean()"
        )


def _head_forward(
    x: Any,
    weight: Any,
    target: Any,
    bias: Any,
    *,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    z_loss: float = 0.0,
    lower: Any = None,
    ahead: tuple[bool, bool, bool] = (False, False, False),
) -> Any:
    loss, log_normaliser, gradients = _kernel("linear_cross_entropy")(
        x,
        weight,
        target,
        bias,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        reduction=reduction,
        lower=lower,
        ahead=ahead,
    )
    found = dict(zip(_GRADIENTS, gradients, strict=True))
    return loss, {"log_normaliser": log_normaliser} | {
        name: array for name, array in found.items() if array is not None
    }


_GRADIENTS = ("dx", "dweight", "dbias")


def _head_backward(
    grad: Any,
    x: Any,
    weight: Any,
    target: Any,
    bias: Any,
    log_normaliser: Any,
    dx: Any,
    dweight: Any,
    dbias: Any,
    needs: tuple[bool, ...],
    last: bool,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    z_loss: float,
    lower: Any,
) -> Any:
    ahead = (dx, dweight, dbias)
    wanted = (needs[0], needs[1], needs[3])
    if any(need and array is None for need, array in zip(wanted, ahead, strict=True)):
        dx, dweight, dbias = _kernel("linear_cross_entropy_backward")(
            grad,
            x,
            weight,
            target,
            bias,
            log_normaliser,
            needs=wanted,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            reduction=reduction,
            lower=lower,
        )
    else:
        dx, dweight, dbias = (_scaled(array, grad, in_place=last) for array in ahead)
    return dx, dweight, None, dbias


def _scaled(array: Any, factor: Any, in_place: bool) -> Any:
    on_host = isinstance(factor, np.ndarray)  # to look at it on a GPU would be to wait
    if array is None or (in_place and on_host and factor == 1):
        return array
    return np.multiply(array, factor, out=array if in_place else None, dtype=array.dtype)


def _head_reference(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    *,
    lower: Any = None,
    ahead: Any = None,
    **options: Any,
) -> Tensor:
    if lower is not None:
        x, weight = x.to(lower).to(x.dtype), weight.to(lower).to(weight.dtype)
    logits = x @ weight.mT if bias is None else x @ weight.mT + bias
    return _cross_entropy_reference(logits, target, **options)


_linear_cross_entropy = fused(
    "linear_cross_entropy",
    _head_forward,
    kernel="linear_cross_entropy",
    reference=_head_reference,
    backward=_head_backward,
    extras=("log_normaliser", *_GRADIENTS),
    formula=r"-\ln \operatorname{softmax}(W x + b)_t",
    jacobian=r"(s - e_t)^\top \begin{pmatrix} W & I \otimes x^\top & I \end{pmatrix}",
    samples=lambda: [
        sample(
            real(4, 3),
            real(5, 3),
            np.array([0, 3, -100, 4]),
            bias,
            ignore_index=-100,
            label_smoothing=smoothing,
            z_loss=z_loss,
            reduction=reduction,
            ahead=ahead,
        )
        for bias, smoothing, z_loss, reduction, ahead in [
            (real(5), 0.0, 0.0, "mean", (True, True, True)),
            (None, 0.1, 0.01, "sum", (True, True, False)),
            (real(5), 0.1, 0.01, "none", (False, False, False)),
            (real(5), 0.0, 0.0, "mean", (False, True, False)),
        ]
    ],
)


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """cross_entropy(linear(input, weight, bias), target), without ever holding all the logits.

    input: (..., features); weight: (classes, features); bias: (classes,); target: (...) of class
    indices. The logits are made, used and overwritten a few hundred rows at a time; under
    `autocast` their product is lowered, and they, the loss and the gradients are float32. The
    other options are those of cross_entropy. Returns a single number, or (...) with reduction
    "none". Raises ShapeError where the shapes disagree.

    In PyTorch: torch.nn.functional.linear, then cross_entropy, with the classes last. Source:
    Wijmans et al. 2024, "Cut your losses in large-vocabulary language models"; Hsu et al. 2024,
    "Liger kernel".
    """
    _check("linear_cross_entropy", target, reduction, label_smoothing)
    if (
        weight.ndim != 2
        or input.ndim == 0
        or input.shape[-1] != weight.shape[1]
        or target.shape != input.shape[:-1]
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        raise ShapeError(
            "linear_cross_entropy: expected input (..., features), weight (classes, features), "
            "target (...) and bias (classes,); got "
            f"{input.shape}, {weight.shape}, {target.shape} and "
            f"{None if bias is None else bias.shape}"
        )
    mode = modes.thread.mode
    factors = [t for t in (input, weight, bias) if t is not None]
    if mode.lower is not None:
        factors = [t.float() if backend.half_precision(t.dtype) else t for t in factors]
    x, weight, *biases = promote(factors)
    bias = biases[0] if biases else None
    ahead = (False, False, False)
    if mode.record and mode.keep is None and reduction != "none":  # checkpointing would drop them
        ahead = (x.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)
    meta = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "reduction": reduction,
        "lower": mode.lower if x.dtype == backend.float32 else None,
        "ahead": ahead,
    }
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(target.numel(), x.shape[-1])
    loss = apply(_linear_cross_entropy, [rows, weight, target.reshape(-1), bias], meta)
    return loss.reshape(target.shape) if reduction == "none" else loss
