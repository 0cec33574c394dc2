"""The feed-forward layer of a transformer as one operation, which keeps half as much; and the first
half of a gated one."""

from collections.abc import Callable
from typing import Any

from minitorch import modes
from minitorch.errors import ConfigError, ShapeError
from minitorch.ops.definition import _kernel
from minitorch.ops.elementwise import relu
from minitorch.ops.fused import gelu, linear, silu, swiglu
from minitorch.ops.primitive import fused
from minitorch.ops.promotion import check_one_dtype, dtypes_read
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, "tanh"),
}
"""What may stand between two matrices, by name."""


def _forward(
    x: Any, weight_1: Any, bias_1: Any, weight_2: Any, bias_2: Any, *, activation: str
) -> Any:
    out, pre = _kernel("mlp")(x, weight_1, bias_1, weight_2, bias_2, activation=activation)
    return out, {"pre": pre}


def _reference(
    x: Tensor, weight_1: Tensor, bias_1: Any, weight_2: Tensor, bias_2: Any, *, activation: str
) -> Tensor:
    return _composed(x, weight_1, bias_1, weight_2, bias_2, activation, scaled=False)


def _composed(
    x: Tensor,
    weight_1: Tensor,
    bias_1: Any,
    weight_2: Tensor,
    bias_2: Any,
    activation: str,
    scaled: bool,
) -> Tensor:
    hidden = ACTIVATIONS[activation](linear(x, weight_1, bias_1, scaled=scaled))
    return linear(hidden, weight_2, bias_2, scaled=scaled)


_mlp = fused(
    "mlp",
    _forward,
    kernel="mlp",
    autocast="lower",
    reference=_reference,
    backward=lambda grad, x, weight_1, weight_2, pre, activation, needs, wide: _kernel(
        "mlp_backward"
    )(grad, x, weight_1, weight_2, pre, activation=activation, needs=needs, wide=wide),
    extras=("pre",),
    formula=r"W_2 f(W_1 x + b_1) + b_2",
    jacobian=r"W_2 \operatorname{diag}(f'(W_1 x + b_1)) W_1",
    samples=lambda: [
        sample(
            real(2, 3, 4) / 2, real(5, 4) / 2, real(5), real(3, 5), real(3), activation="gelu_tanh"
        ),
        sample(real(3, 4), real(6, 4), None, real(2, 6), None, activation="gelu"),
        sample(real(4), real(5, 4), real(5), real(3, 5), None, activation="silu"),
        sample(real(2, 4), real(5, 4), None, real(3, 5), real(3), activation="relu"),
    ],
)


def mlp(
    x: Tensor,
    weight_1: Tensor,
    weight_2: Tensor,
    bias_1: Tensor | None = None,
    bias_2: Tensor | None = None,
    activation: str = "gelu",
) -> Tensor:
    """f(x W_1ᵀ + b_1) W_2ᵀ + b_2, the feed-forward layer of a transformer.

    x: (..., in); weight_1: (hidden, in); weight_2: (out, hidden); bias_1: (hidden,); bias_2:
    (out,); all of one dtype. activation: "gelu", "gelu_tanh", "silu" or "relu". Returns (..., out).
    The same as `linear`, activation and `linear`, except that what the activation gives is computed
    again in the backward and not kept: one array of (..., hidden) lives until then instead of two.
    Raises ShapeError where the shapes disagree. In flash-attn: fused_mlp_func, checkpoint_lvl=1.
    """
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"mlp: expected an activation among {', '.join(ACTIVATIONS)}; got {activation!r}"
        )
    hidden, out = weight_1.shape[:1], weight_2.shape[:1]
    if (
        weight_1.ndim != 2
        or weight_2.ndim != 2
        or x.shape[-1:] != weight_1.shape[1:]
        or weight_2.shape[1:] != hidden
        or (bias_1 is not None and bias_1.shape != hidden)
        or (bias_2 is not None and bias_2.shape != out)
    ):
        raise ShapeError(
            "mlp: expected x (..., in), weight_1 (hidden, in), weight_2 (out, hidden), bias_1 "
            f"(hidden,) and bias_2 (out,); got {x.shape}, {weight_1.shape}, {weight_2.shape}, "
            f"{None if bias_1 is None else bias_1.shape} and "
            f"{None if bias_2 is None else bias_2.shape}"
        )
    inputs = [x, weight_1, bias_1, weight_2, bias_2]
    check_one_dtype("mlp", inputs)
    if modes.thread.mode.scaled:
        return _composed(x, weight_1, bias_1, weight_2, bias_2, activation, scaled=True)
    return apply(_mlp, inputs, {"activation": activation})


def _gated_forward(x: Any, gate: Any, up: Any, *, keep: bool) -> Any:
    out, gates, ups = _kernel("linear_swiglu")(x, gate, up, keep=keep)
    return out, {"gates": gates, "ups": ups} if keep else {}


def _gated_backward(
    grad: Any, x: Any, gate: Any, up: Any, gates: Any, ups: Any, needs: Any, wide: Any
) -> tuple[Any, ...]:
    if gates is None:
        gates, ups = (_kernel("linear")(x, weight, None) for weight in (gate, up))
    return _kernel("linear_swiglu_backward")(grad, x, gate, up, gates, ups, needs=needs, wide=wide)


_linear_swiglu = fused(
    "linear_swiglu",
    _gated_forward,
    kernel="linear_swiglu",
    autocast="lower",
    reference=lambda x, gate, up, keep: silu(linear(x, gate)) * linear(x, up),
    backward=_gated_backward,
    inputs=("x", "gate", "up"),
    extras=("gates", "ups"),
    formula=r"\operatorname{silu}(W_g x) \odot W_u x",
    jacobian=r"\operatorname{diag}(W_u x \odot \operatorname{silu}'(W_g x)) W_g + "
    r"\operatorname{diag}(\operatorname{silu}(W_g x)) W_u",
    samples=lambda: [
        sample(real(2, 3, 4), real(5, 4), real(5, 4, seed=1), keep=True),
        sample(real(3, 4), real(6, 4), real(6, 4, seed=1), keep=False),
        sample(real(4), real(2, 4), real(2, 4, seed=1), keep=True),
    ],
)


def linear_swiglu(x: Tensor, gate: Tensor, up: Tensor, recompute: bool = False) -> Tensor:
    """silu(x gateᵀ) * (x upᵀ), what comes before the last matrix of a gated feed-forward layer.

    x: (..., in); gate, up: (hidden, in). Returns (..., hidden). The same as `swiglu` of two
    `linear`. On tensor cores one kernel makes it, which does not write the two products unless a
    gradient is wanted. recompute: not even then; the backward makes them again, two products more
    for two arrays of (..., hidden) less. Raises ShapeError where the shapes disagree.
    Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6.
    """
    if gate.ndim != 2 or up.shape != gate.shape or x.shape[-1:] != gate.shape[1:]:
        raise ShapeError(
            "linear_swiglu: expected x (..., in), gate (hidden, in) and up (hidden, in); got "
            f"{x.shape}, {gate.shape} and {up.shape}"
        )
    mode, inputs = modes.thread.mode, [x, gate, up]
    if mode.scaled or len(dtypes_read(inputs)) > 1:
        return swiglu(*(linear(x, weight, scaled=mode.scaled) for weight in (gate, up)))
    keep = mode.record and not recompute and any(t.requires_grad for t in inputs)
    return apply(_linear_swiglu, inputs, {"keep": keep})
