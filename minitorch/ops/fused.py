r"""Fused operations: one kernel each, and the composition of primitives that it stands for.

The kernel runs; the reference explains it, checks it, takes over where a device lacks the kernel,
and supplies what the kernel has not: forward mode and every derivative beyond the first.
"""

from functools import partial
from math import pi, sqrt
from typing import Any

import numpy as np

from minitorch import backend, kernels, modes, random
from minitorch.errors import ConfigError, ShapeError
from minitorch.ops.arithmetic import add
from minitorch.ops.definition import Primitive, _kernel
from minitorch.ops.primitive import fused, general
from minitorch.ops.primitive import linear as linear_primitive
from minitorch.ops.promotion import promote
from minitorch.ops.samples import positive, real, sample
from minitorch.tape import apply, computed
from minitorch.tensor import Tensor, method


def _gelu_reference(x: Tensor, *, approximate: str) -> Tensor:
    if approximate == "tanh":
        return 0.5 * x * (1 + (sqrt(2 / pi) * (x + 0.044715 * x * x * x)).tanh())
    return 0.5 * x * (1 + (x / sqrt(2)).erf())


_gelu = fused(
    "gelu",
    _kernel("gelu"),
    kernel="gelu",
    reference=_gelu_reference,
    backward=lambda grad, x, approximate: [
        _kernel("gelu_backward")(grad, x, approximate=approximate)
    ],
    inputs=("x",),
    formula=r"x \, \Phi(x)",
    jacobian=r"\operatorname{diag}(\Phi(x) + x \, \varphi(x))",
    samples=lambda: [
        sample(2 * real(3, 4), approximate="none"),
        sample(2 * real(3, 4), approximate="tanh"),
    ],
)


@method
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution function of x; "tanh": GPT-2's approximation.

    Source: Hendrycks and Gimpel 2016, section 2.
    """
    if approximate not in ("none", "tanh"):
        raise ConfigError(f'gelu: expected approximate="none" or "tanh"; got {approximate!r}')
    return _gelu(x, approximate=approximate)


silu = fused(
    "silu",
    _kernel("silu"),
    kernel="silu",
    reference=lambda x: x * x.sigmoid(),
    backward=lambda grad, x: [_kernel("silu_backward")(grad, x)],
    inputs=("x",),
    formula=r"x \, \sigma(x)",
    jacobian=r"\operatorname{diag}(\sigma + x \sigma (1 - \sigma))",
    samples=lambda: [sample(2 * real(3, 4))],
    doc="x * sigmoid(x), also called swish. Source: Elfwing et al. 2017.",
)
method(silu)


_swiglu = fused(
    "swiglu",
    _kernel("swiglu"),
    kernel="swiglu",
    reference=lambda gate, up: silu(gate) * up,
    backward=lambda grad, gate, up: _kernel("swiglu_backward")(grad, gate, up),
    inputs=("gate", "up"),
    formula=r"x \, \sigma(x) \, y",
    jacobian=r"\begin{pmatrix} \operatorname{diag}(y \, (\sigma + x \sigma (1 - \sigma))) & "
    r"\operatorname{diag}(x \sigma) \end{pmatrix}",
    samples=lambda: [
        sample(2 * real(3, 4), real(3, 4, seed=1)),
        sample(2 * real(2, 1, 5), real(2, 1, 5, seed=1)),
    ],
)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, the gated activation of Llama's feed-forward layers, in one pass.

    gate, up: of one shape and dtype, such as the two halves of one projection; nothing is copied.
    Returns that shape. Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6.
    In flash-attn: swiglu; in Liger: liger_swiglu.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ShapeError(
            "swiglu: expected gate and up of one shape and dtype; got "
            f"{gate.shape} {gate.dtype} and {up.shape} {up.dtype}"
        )
    return apply(_swiglu, [gate, up], {})


def _halves(x: Any) -> tuple[Any, Any]:
    """Of the last dimension; views."""
    middle = x.shape[-1] // 2
    return x[..., :middle], x[..., middle:]


def _swiglu_packed_backward(grad: Any, x: Any) -> Any:
    out = np.empty_like(x)
    _kernel("swiglu_backward")(grad, *_halves(x), out=_halves(out))
    return [out]


_swiglu_packed = fused(
    "swiglu_packed",
    lambda x: _kernel("swiglu")(*_halves(x)),
    kernel="swiglu",
    reference=lambda x: silu(_halves(x)[0]) * _halves(x)[1],
    backward=_swiglu_packed_backward,
    inputs=("x",),
    formula=r"x_1 \, \sigma(x_1) \, x_2",
    samples=lambda: [sample(2 * real(3, 8)), sample(2 * real(2, 1, 6))],
)


def swiglu_packed(x: Tensor) -> Tensor:
    """`swiglu` of the halves of the last dimension, gate and up: (..., 2 n) -> (..., n).

    The gradient is one array, where those of two halves would have to be put together.
    """
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ShapeError(f"swiglu_packed: expected an even last dimension; got shape {x.shape}")
    return apply(_swiglu_packed, [x], {})


def _turned(grad: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool) -> Tensor:
    meta = {"interleaved": interleaved, "inverse": not inverse}
    return apply(_rotary, [grad, cos, sin], meta)


def _pairs(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """The first and the second features of all pairs."""
    if interleaved:
        return x[..., ::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _cosine_gradient(grad: Tensor, x: Tensor, interleaved: bool) -> Tensor:
    (da, db), (a, b) = _pairs(grad, interleaved), _pairs(x, interleaved)
    return da * a + db * b


def _sine_gradient(grad: Tensor, x: Tensor, interleaved: bool, inverse: bool) -> Tensor:
    (da, db), (a, b) = _pairs(grad, interleaved), _pairs(x, interleaved)
    return da * b - db * a if inverse else db * a - da * b


_rotary: Primitive = general(
    "apply_rotary_emb",
    lambda x, cos, sin, *, interleaved, inverse: _kernel("rope")(
        x, cos, sin, interleaved=interleaved, inverse=inverse
    ),
    _turned,
    _cosine_gradient,
    _sine_gradient,
    kernel="rope",
    formula=r"(a, b) \mapsto (a \cos t - b \sin t, \; b \cos t + a \sin t)",
    jacobian=r"\begin{pmatrix} \cos t & -\sin t \\ \sin t & \cos t \end{pmatrix}",
    samples=lambda: [
        sample(real(2, 3, 4), real(3, 2), real(3, 2, seed=1), interleaved=True, inverse=False),
        sample(real(3, 6), real(3, 3), real(3, 3, seed=1), interleaved=False, inverse=False),
        sample(real(1, 2, 4), real(2, 2), real(2, 2, seed=1), interleaved=False, inverse=True),
    ],
)


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotary position embedding: pairs of features turned by the angle of their position.

    x: (..., time, features), queries or keys by heads; cos, sin: (time, features / 2), of the
    angles, position * base ** (-2 i / features) for pair i. Features i and i + features / 2
    are a pair, as in GPT-NeoX and in Hugging Face's files; interleaved: 2 i and 2 i + 1, as in the
    paper and in Meta's files of Llama. Returns the shape of x; the gradient is turned back.
    Raises ShapeError where these do not fit. Source: Su et al. 2021, "RoFormer", equation 34.
    In flash-attn: apply_rotary_emb, with time before heads.
    """
    if (
        x.ndim < 2
        or x.shape[-1] % 2
        or cos.shape != (x.shape[-2], x.shape[-1] // 2)
        or sin.shape != cos.shape
    ):
        raise ShapeError(
            "apply_rotary_emb: expected x (..., time, features) and cos, sin (time, features / 2); "
            f"got {x.shape}, {cos.shape} and {sin.shape}"
        )
    return apply(_rotary, [x, cos, sin], {"interleaved": interleaved, "inverse": False})


def _linear_forward(x: Any, weight: Any, bias: Any, *, scaled: bool = False) -> Any:
    return _kernel("scaled_linear" if scaled else "linear")(x, weight, bias)


def _linear_backward(
    grad: Any, x: Any, weight: Any, needs: Any, wide: Any, scaled: bool, arrived: Any
) -> Any:
    if not scaled:
        kernel = _kernel("linear_backward")
        return kernel(grad, x, weight, needs=needs, residual=arrived, wide=wide)
    dx, *others = _kernel("scaled_linear_backward")(grad, x, weight, needs=needs)
    return dx if arrived is None else dx + arrived, *others


def _linear_reference(x: Tensor, weight: Tensor, bias: Any, scaled: bool = False) -> Tensor:
    """The product itself, also of what the kernel rounds to 8 bits."""
    return x @ weight.mT if bias is None else x @ weight.mT + bias


_linear = fused(
    "linear",
    _linear_forward,
    kernel="linear",
    autocast="lower",
    reference=_linear_reference,
    backward=_linear_backward,
    inputs=("x", "weight", "bias"),
    formula=r"x W^\top + b",
    jacobian=r"\begin{pmatrix} W & I \otimes x^\top & I \end{pmatrix}",
    samples=lambda: [
        sample(real(2, 3, 4), real(5, 4), real(5)),
        sample(real(3, 4), real(2, 4), None),
        sample(real(4), real(2, 4), real(2)),
    ],
)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scaled: bool = False
) -> Tensor:
    """x Wᵀ + b. x: (..., in), weight: (out, in), bias: (out,). Returns (..., out).

    scaled: operands of this product and of its gradients' are rounded to 8 bits, with a scale for
    each block, as in `autocast("float8")`.
    """
    if (
        weight.ndim != 2
        or x.shape[-1:] != weight.shape[1:]
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        raise ShapeError(
            "linear: expected x (..., in), weight (out, in) and bias (out,); got "
            f"{x.shape}, {weight.shape} and {None if bias is None else bias.shape}"
        )
    same = x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
    if same or modes.thread.mode.lower is not None:
        return apply(_linear, [x, weight, bias], {"scaled": True} if scaled else {})
    out = x @ weight.mT
    return out if bias is None else out + bias


def _layer_norm_forward(x: Any, weight: Any, bias: Any, *, eps: float, ndim: int) -> Any:
    out, mean, rstd = _kernel("layer_norm")(x, weight, bias, eps=eps, ndim=ndim)
    return out, {"mean": mean, "rstd": rstd}


def _layer_norm_reference(x: Tensor, weight: Any, bias: Any, *, eps: float, ndim: int) -> Tensor:
    dims = tuple(range(-ndim, 0))
    centred = x - x.mean(dims, keepdim=True)
    out = centred * ((centred * centred).mean(dims, keepdim=True) + eps).rsqrt()
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


def _layer_norm_backward(
    grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, ndim: int, arrived: Any
) -> Any:
    if arrived is None:
        return _kernel("layer_norm_backward")(grad, x, weight, mean, rstd, ndim=ndim)
    return _kernel("add_layer_norm_backward")(grad, arrived, x, weight, mean, rstd, ndim=ndim)


_layer_norm = fused(
    "layer_norm",
    _layer_norm_forward,
    kernel="layer_norm",
    reference=_layer_norm_reference,
    backward=_layer_norm_backward,
    extras=("mean", "rstd"),
    formula=r"w \odot (x - \mu) / \sqrt{\sigma^2 + \epsilon} + b",
    jacobian=r"\tfrac{1}{\sigma} \left(I - \tfrac{1}{n} (\mathbf{1} \mathbf{1}^\top + \hat{x} "
    r"\hat{x}^\top)\right)",
    samples=lambda: [
        sample(real(3, 5), positive(5), real(5), eps=1e-5, ndim=1),
        sample(real(2, 3, 4), real(3, 4), None, eps=1e-5, ndim=2),
        sample(real(3, 5), None, None, eps=1e-5, ndim=1),
    ],
)


@method
def layer_norm(
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimensions, var being biased.

    x: (..., *normalized_shape); weight, bias: normalized_shape. Source: Ba et al. 2016.
    """
    ndim = _check_norm("layer_norm", x, normalized_shape, weight, bias)
    return apply(_layer_norm, [x, weight, bias], {"eps": eps, "ndim": ndim})


def _check_norm(operation: str, x: Tensor, normalized_shape: Any, *parameters: Any) -> int:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ShapeError(
            f"{operation}: expected a tensor whose last dimensions are {shape}; got {x.shape}"
        )
    for parameter in parameters:
        if parameter is not None and parameter.shape != shape:
            raise ShapeError(
                f"{operation}: expected a weight or bias of shape {shape}; got {parameter.shape}"
            )
    return len(shape)


def _rms_norm_forward(x: Any, weight: Any, *, eps: float, ndim: int) -> Any:
    out, rstd = _kernel("rms_norm")(x, weight, eps=eps, ndim=ndim)
    return out, {"rstd": rstd}


def _rms_norm_reference(x: Tensor, weight: Any, *, eps: float, ndim: int) -> Tensor:
    out = x * ((x * x).mean(tuple(range(-ndim, 0)), keepdim=True) + eps).rsqrt()
    return out if weight is None else out * weight


def _rms_norm_backward(grad: Any, x: Any, weight: Any, rstd: Any, ndim: int, arrived: Any) -> Any:
    if arrived is None:
        return _kernel("rms_norm_backward")(grad, x, weight, rstd, ndim=ndim)
    return _kernel("add_rms_norm_backward")(grad, arrived, x, weight, rstd, ndim=ndim)


_rms_norm = fused(
    "rms_norm",
    _rms_norm_forward,
    kernel="rms_norm",
    reference=_rms_norm_reference,
    backward=_rms_norm_backward,
    extras=("rstd",),
    formula=r"w \odot x / \sqrt{\tfrac{1}{n} \sum_i x_i^2 + \epsilon}",
    jacobian=r"\tfrac{1}{r} \left(I - \tfrac{1}{n} \hat{x} \hat{x}^\top\right)",
    samples=lambda: [
        sample(real(3, 5), positive(5), eps=1e-6, ndim=1),
        sample(real(3, 5), None, eps=1e-6, ndim=1),
    ],
)
_layer_norm.remakes = _rms_norm.remakes = True


@method
def rms_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimensions.

    eps defaults to the spacing of the dtype at 1, as in PyTorch. Source: Zhang and Sennrich 2019.
    """
    ndim = _check_norm("rms_norm", x, normalized_shape, weight)
    eps = _rms_eps(x) if eps is None else eps
    return apply(_rms_norm, [x, weight], {"eps": eps, "ndim": ndim})


def _gated_forward(x: Any, gate: Any, weight: Any, *, eps: float) -> Any:
    out, rstd = _kernel("gated_rms_norm")(x, gate, weight, eps=eps)
    return out, {"rstd": rstd}


_gated_rms_norm = fused(
    "gated_rms_norm",
    _gated_forward,
    kernel="gated_rms_norm",
    reference=lambda x, gate, weight, eps: (
        gate.sigmoid() * _rms_norm_reference(x, weight, eps=eps, ndim=1)
    ),
    backward=lambda grad, x, gate, weight, rstd: _kernel("gated_rms_norm_backward")(
        grad, x, gate, weight, rstd
    ),
    extras=("rstd",),
    inputs=("x", "gate", "weight"),
    formula=r"\sigma(g) \odot w \odot x / \sqrt{\tfrac{1}{n} \sum_i x_i^2 + \epsilon}",
    samples=lambda: [
        sample(real(3, 5), real(3, 5, seed=1), positive(5), eps=1e-3),
        sample(real(2, 2, 5), real(2, 2, 5, seed=1), None, eps=1e-3),
    ],
)


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """sigmoid(gate) * rms_norm(x, x.shape[-1:], weight, eps), in one visit of each row.

    x, gate: (..., n), of one shape; weight: (n,). What lightning attention makes of its heads.
    """
    _check_norm("gated_rms_norm", x, x.shape[-1:], weight)
    if gate.shape != x.shape:
        raise ShapeError(f"gated_rms_norm: expected a gate of shape {x.shape}; got {gate.shape}")
    x, gate = promote([x, gate])
    meta = {"eps": _rms_eps(x) if eps is None else eps}
    return apply(_gated_rms_norm, [x, gate, weight], meta)


def _rms_eps(x: Tensor) -> float:
    return float(np.finfo(np.float64 if x.dtype == np.float64 else np.float32).eps)


def fused_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """layer_norm(x + residual), and x + residual, the new residual: one kernel visits each row.

    x, residual: (..., *normalized_shape), of one shape. Returns two tensors of that shape. On the
    tape these are the addition and the norm; the norm's backward kernel adds what comes back to
    the sum from elsewhere, too. In flash-attn: layer_norm_fn(..., residual, prenorm=True).
    """
    ndim = _check_norm("fused_add_layer_norm", x, normalized_shape, weight, bias)
    meta = {"eps": eps, "ndim": ndim}
    return _add_and_norm("add_layer_norm", _layer_norm, x, residual, [weight, bias], meta)


def fused_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """rms_norm(x + residual), and x + residual, the new residual: one kernel visits each row.

    The arguments are those of rms_norm, and otherwise as in fused_add_layer_norm. In Liger:
    liger_fused_add_rms_norm; in flash-attn: rms_norm_fn(..., residual, prenorm=True).
    """
    ndim = _check_norm("fused_add_rms_norm", x, normalized_shape, weight)
    meta = {"eps": _rms_eps(x) if eps is None else eps, "ndim": ndim}
    return _add_and_norm("add_rms_norm", _rms_norm, x, residual, [weight], meta)


def _add_and_norm(
    kernel: str,
    norm: Primitive,
    x: Tensor,
    residual: Tensor,
    parameters: list[Any],
    meta: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """The kernel where it can be used; the tape holds what the two operations would have left."""
    if x.shape != residual.shape:
        raise ShapeError(
            f"fused_{kernel}: expected x and residual of one shape; got {x.shape} and "
            f"{residual.shape}"
        )
    arrays = [p if p is None else p.data for p in (x, residual, *parameters)]
    plain = all(array is None or isinstance(array, np.ndarray) for array in arrays)
    one_dtype = x.dtype == residual.dtype and not backend.half_precision(x.dtype)
    if not plain or not one_dtype or modes.thread.mode.observers or modes.thread.mode.anomaly:
        total = x + residual
        return apply(norm, [total, *parameters], meta), total
    run = backend.arithmetic.copy().run
    out, array, *statistics = run(partial(kernels.lookup(kernel), *arrays, **meta))
    total = computed(add, [x, residual], {}, array)
    extras = dict(zip(norm.extras, statistics, strict=True))
    return computed(norm, [total, *parameters], meta, out, extras), total


_dropout: Primitive = linear_primitive(
    "dropout",
    _kernel("dropout"),
    lambda grad, p, seed, offset: _dropout(grad, p=p, seed=seed, offset=offset),
    kernel="dropout",
    formula=r"x \odot m / (1 - p)",
    jacobian=r"\operatorname{diag}(m) / (1 - p)",
    samples=lambda: [sample(real(3, 4), p=0.25, seed=1, offset=2)],
)


def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, generator: random.Generator | None = None
) -> Tensor:
    """Each element zeroed with probability p, the others divided by 1 - p.

    The mask is a function of the generator's state (the global one's by default), which moves on by
    one step: it is computed again in the backward, not kept, and checkpointing can replay it.
    Source: Srivastava et al. 2014, inverted.
    """
    if not 0 <= p <= 1:
        raise ConfigError(f"dropout: expected a probability p in [0, 1]; got {p}")
    if not training or p == 0:
        return x
    seed, offset = (generator or random.default_generator).advance()
    return apply(_dropout, [x], {"p": p, "seed": seed, "offset": offset})
