"""Functions of tensors without parameters of their own, under PyTorch's names.

What is an operation of the engine is only named here; the rest are short compositions.
In PyTorch: torch.nn.functional.
"""

import math
from collections.abc import Sequence

from minitorch.errors import ConfigError, ShapeError
from minitorch.ops.elementwise import leaky_relu, logsigmoid, relu, sigmoid, softplus, tanh
from minitorch.ops.fused import (
    cross_entropy,
    dropout,
    gelu,
    layer_norm,
    rms_norm,
    scaled_dot_product_attention,
    silu,
)
from minitorch.ops.general import log_softmax, logsumexp, softmax
from minitorch.ops.indexing import embedding, one_hot
from minitorch.ops.layout import pad, where
from minitorch.tensor import Tensor

__all__ = [
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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. x: (..., in), weight: (out, in), bias: (out,). Returns (..., out)."""
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ShapeError(
            "linear: expected x of shape (..., in) and weight of shape (out, in); got "
            f"{x.shape} and {weight.shape}"
        )
    out = x @ weight.mT
    return out if bias is None else out + bias


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


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
) -> Tensor:
    """Correlation along the last dimension.

    x: (batch, in, time), weight: (out, in / groups, kernel), bias: (out,). Returns (batch, out,
    (time + 2 padding - kernel) // stride + 1).
    """
    return _convolution("conv1d", x, weight, bias, 1, stride, padding, groups)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
) -> Tensor:
    """Correlation over the last two dimensions.

    x: (batch, in, height, width), weight: (out, in / groups, kernel_h, kernel_w), bias: (out,).
    Returns (batch, out, out_h, out_w), each length as in conv1d.
    """
    return _convolution("conv2d", x, weight, bias, 2, stride, padding, groups)


def _convolution(
    operation: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spatial: int,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    groups: int,
) -> Tensor:
    """Every window as a row, times the weights: a matrix product for each group.

    The windows are a view of x until the product copies them, kernel times the memory of x.
    """
    strides = (stride,) * spatial if isinstance(stride, int) else tuple(stride)
    paddings = (padding,) * spatial if isinstance(padding, int) else tuple(padding)
    kernel = weight.shape[2:]
    if (
        not x.ndim == weight.ndim == spatial + 2
        or not len(strides) == len(paddings) == spatial
        or x.shape[1] != weight.shape[1] * groups
        or weight.shape[0] % groups
        or any(k > n + 2 * p for k, n, p in zip(kernel, x.shape[2:], paddings))
    ):
        raise ShapeError(
            f"{operation}: expected x (batch, in, ...) and weight (out, in / groups, ...) with "
            f"{spatial} further dimensions, no longer in weight than in x padded, and out a "
            f"multiple of groups; got {x.shape}, {weight.shape}, stride={stride}, "
            f"padding={padding} and groups={groups}"
        )
    if any(paddings):
        x = pad(x, [p for width in reversed(paddings) for p in (width, width)])
    for dim, (size, step) in enumerate(zip(kernel, strides), start=2):
        x = x.unfold(dim, size, step)
    batch, out_shape = x.shape[0], x.shape[2 : 2 + spatial]
    rows, width = math.prod(out_shape), weight.shape[1] * math.prod(kernel)

    x = x.reshape(batch, groups, weight.shape[1], *x.shape[2:])
    windows = x.permute(0, 1, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial))
    filters = weight.reshape(groups, weight.shape[0] // groups, width)
    out = windows.reshape(batch, groups, rows, width) @ filters.mT
    out = out.mT.reshape(batch, weight.shape[0], *out_shape)
    return out if bias is None else out + bias.reshape(-1, *[1] * spatial)
