"""Functions of tensors without parameters of their own, under PyTorch's names.

What is an operation of the engine is only named here; the rest are short compositions.
In PyTorch: torch.nn.functional.
"""

from collections.abc import Callable, Sequence

import numpy as np

from minitorch.errors import ConfigError, ShapeError
from minitorch.ops.attention import (
    attention_qkvpacked,
    scaled_dot_product_attention,
    varlen_attn,
)
from minitorch.ops.convolution import avg_pool2d, conv1d, conv2d, max_pool2d
from minitorch.ops.decoding import DecodedBlock, decode_blocks
from minitorch.ops.elementwise import leaky_relu, logsigmoid, relu, sigmoid, softplus, tanh
from minitorch.ops.experts import grouped_mm, moe_permute, moe_swiglu, moe_unpermute
from minitorch.ops.feed_forward import linear_swiglu, mlp
from minitorch.ops.fused import (
    apply_rotary_emb,
    dropout,
    fused_add_layer_norm,
    fused_add_rms_norm,
    gated_rms_norm,
    gelu,
    layer_norm,
    linear,
    rms_norm,
    silu,
    swiglu,
    swiglu_packed,
)
from minitorch.ops.general import log_softmax, logsumexp, softmax
from minitorch.ops.indexing import embedding, one_hot
from minitorch.ops.joining import pad as pad_with_constant
from minitorch.ops.latent_attention import latent_attention, latent_self_attention
from minitorch.ops.lightning_attention import lightning_attention
from minitorch.ops.losses import cross_entropy, linear_cross_entropy
from minitorch.ops.masking import where
from minitorch.ops.moe_feed_forward import moe_feed_forward
from minitorch.ops.paged_attention import paged_attention
from minitorch.ops.product_keys import product_key_topk, product_scores, product_topk
from minitorch.ops.rotary_attention import rotary_attention, rotary_self_attention
from minitorch.ops.routing import (
    expected_cost,
    expert_balance,
    route,
    routing_weights,
    topk_routing,
)
from minitorch.ops.sampling import categorical
from minitorch.ops.unit_experts import unit_experts
from minitorch.tensor import Tensor

__all__ = [
    "DecodedBlock",
    "apply_rotary_emb",
    "attention_qkvpacked",
    "avg_pool2d",
    "binary_cross_entropy_with_logits",
    "categorical",
    "conv1d",
    "conv2d",
    "cross_entropy",
    "decode_blocks",
    "dropout",
    "embedding",
    "expected_cost",
    "expert_balance",
    "fused_add_layer_norm",
    "fused_add_rms_norm",
    "gated_rms_norm",
    "gelu",
    "grouped_mm",
    "kl_div",
    "latent_attention",
    "latent_self_attention",
    "layer_norm",
    "leaky_relu",
    "lightning_attention",
    "linear",
    "linear_cross_entropy",
    "linear_swiglu",
    "log_softmax",
    "logsigmoid",
    "logsumexp",
    "max_pool2d",
    "mlp",
    "moe_feed_forward",
    "moe_permute",
    "moe_swiglu",
    "moe_unpermute",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "paged_attention",
    "product_key_topk",
    "product_scores",
    "product_topk",
    "relu",
    "rms_norm",
    "rotary_attention",
    "rotary_self_attention",
    "route",
    "routing_weights",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "swiglu",
    "swiglu_packed",
    "tanh",
    "topk_routing",
    "unit_experts",
    "varlen_attn",
]


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x divided by its p-norm along dim, or by eps where the norm is less."""
    return x / x.norm(p, dim, keepdim=True).clamp(min=eps)


_CONTINUED: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "reflect": lambda at, length: length - 1 - np.abs(length - 1 - np.abs(at)),
    "replicate": lambda at, length: np.clip(at, 0, length - 1),
    "circular": lambda at, length: at % length,
}
"""Which element stands at places -before, ..., length + after - 1 of a padded dimension."""


def pad(
    x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """x with margins. pad: (before, after) of the last dimension, then of the one before it, ...

    mode says what is in them: "constant", value, or 0; "reflect", x mirrored at its edge, which is
    not repeated; "replicate", the edge; "circular", x from its other end. Raises ConfigError for
    other modes, ShapeError where a margin is negative (slice instead) or needs more of x than
    there is: more than length - 1 elements to reflect, or than length to go around.
    In PyTorch: torch.nn.functional.pad, which wants a dimension of channels for all but "constant".
    """
    if mode == "constant":
        return pad_with_constant(x, pad, 0.0 if value is None else value)
    if mode not in _CONTINUED:
        modes = ", ".join(map(repr, _CONTINUED))
        raise ConfigError(f"pad: expected mode 'constant', {modes}; got {mode!r}")
    if value is not None:
        raise ConfigError(f"pad: mode {mode!r} takes no value; got {value!r}. Leave it out")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ShapeError(
            f"pad: expected pairs of widths of at most {x.ndim} dimensions; got {tuple(pad)}"
        )
    for i in range(0, len(pad), 2):
        dim = x.ndim - 1 - i // 2
        x = _continue(x, dim, (pad[i], pad[i + 1]), mode)
    return x


def _continue(x: Tensor, dim: int, margin: tuple[int, int], mode: str) -> Tensor:
    length = x.shape[dim]
    most = {"reflect": max(length - 1, 0), "circular": length}.get(mode)
    if min(margin) < 0 or (length == 0 and max(margin) > 0):
        raise ShapeError(
            f"pad: expected widths that are not negative and something to pad with; got {margin} "
            f"for dimension {dim}, of length {length}"
        )
    if most is not None and max(margin) > most:
        raise ShapeError(
            f"pad: mode {mode!r} can add at most {most} elements on each side of dimension {dim}, "
            f"of length {length}; got {margin}. Pad twice, or by mode 'replicate'"
        )
    if margin == (0, 0):
        return x
    places = np.arange(-margin[0], length + margin[1])
    return x.index_select(dim, Tensor(_CONTINUED[mode](places, length)))


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
