"""Functions of tensors without parameters of their own, under PyTorch's names.

What is an operation of the engine is only named here; the rest are short compositions.
In PyTorch: torch.nn.functional.
"""

from minitorch.errors import ConfigError, ShapeError
from minitorch.ops.convolution import avg_pool2d, conv1d, conv2d, max_pool2d
from minitorch.ops.elementwise import leaky_relu, logsigmoid, relu, sigmoid, softplus, tanh
from minitorch.ops.fused import (
    attention_qkvpacked,
    cross_entropy,
    dropout,
    gelu,
    layer_norm,
    linear,
    rms_norm,
    scaled_dot_product_attention,
    silu,
)
from minitorch.ops.general import log_softmax, logsumexp, softmax
from minitorch.ops.indexing import embedding, one_hot
from minitorch.ops.layout import pad, where
from minitorch.tensor import Tensor

__all__ = [
    "attention_qkvpacked",
    "avg_pool2d",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "cross_entropy",
    "dropout",
    "embedding",
    "gelu",
    "kl_div",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsigmoid",
    "logsumexp",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "relu",
    "rms_norm",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x divided by its p-norm along dim, or by eps where the norm is less."""
    return x / x.norm(p, dim, keepdim=True).clamp(min=eps)


def mse_loss(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(x - target)². Raises ShapeError for shapes that would be broadcast against each other."""
    _same_shape("mse_loss", x, target)
    return _reduce("mse_loss", (x - target).square(), reduction)


def nll_loss(
    log_probs: Tensor, target: Tensor, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Minus log_probs at the target class, 0 where the target is ignore_index.

    log_probs: (rows, classes), target: (rows,) integers. The mean is over the rows that count.
    """
    if log_probs.ndim != 2 or target.shape != log_probs.shape[:1]:
        raise ShapeError(
            "nll_loss: expected log_probs (rows, classes) and target (rows,); got "
            f"{log_probs.shape} and {target.shape}"
        )
    kept = target != ignore_index
    classes = target.masked_fill(~kept, 0).unsqueeze(1)
    loss = -log_probs.gather(1, classes).squeeze(1).masked_fill(~kept, 0.0)
    if reduction == "mean":
        return loss.sum() / kept.sum()
    return _reduce("nll_loss", loss, reduction)


def binary_cross_entropy_with_logits(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """-(t ln σ(x) + (1 - t) ln σ(-x)), accurate for logits of any size. target: in [0, 1]."""
    _same_shape("binary_cross_entropy_with_logits", x, target)
    loss = -(target * logsigmoid(x) + (1 - target) * logsigmoid(-x))
    return _reduce("binary_cross_entropy_with_logits", loss, reduction)


def kl_div(
    log_q: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """p (ln p - ln q), the terms of the divergence KL(p || q).

    log_q: ln q. target: p, or ln p with log_target; 0 ln 0 is 0. All of this is PyTorch's: that
    the approximation comes first, and that "mean" divides by the number of classes too, which no
    divergence does. For KL(p || q) averaged over the batch take "batchmean".
    """
    _same_shape("kl_div", log_q, target)
    if log_target:
        loss = target.exp() * (target - log_q)
    else:
        log_p = where(target > 0, target, 1.0).log()
        loss = target * (log_p - log_q)
    if reduction == "batchmean":
        return loss.sum() / loss.shape[0]
    return _reduce("kl_div", loss, reduction)


def _same_shape(operation: str, x: Tensor, target: Tensor) -> None:
    if x.shape != target.shape:
        raise ShapeError(
            f"{operation}: expected two tensors of one shape; got {x.shape} and {target.shape}. "
            "Broadcasting here is nearly always a mistake; expand() if it is meant"
        )


def _reduce(operation: str, loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ConfigError(f'{operation}: expected reduction "mean", "sum" or "none"; got {reduction!r}')
