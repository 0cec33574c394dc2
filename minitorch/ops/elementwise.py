r"""Elementwise functions of one number: y_i = f(x_i), so J = diag(f'(x)).

Next to each forward function stands its derivative, as a factor. It is written from the result
`out` where that is as short and more accurate: tanh' = 1 - out^2 cannot overflow, 1/cosh^2 can.
"""

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

import numpy as np

from minitorch import backend, kernels
from minitorch.ops.primitive import elementwise
from minitorch.ops.samples import distinct, positive, real, sample, unary, unit
from minitorch.tensor import Tensor, method, method_as


def _unary(
    name: str, forward: Callable[..., Any], derivative: Callable[..., Any], **options: Any
) -> Any:
    options.setdefault("floating", True)
    options.setdefault("inputs", ("x",))
    primitive = elementwise(name, forward, derivative, **options)
    method(primitive)
    return primitive


LARGE = 1 << 16
"""Elements from which a kernel of its own, with threads, is faster than NumPy's loop."""


def _on_threads(name: str, ufunc: np.ufunc) -> Callable[[Any], Any]:
    """The kernel of this name for large arrays and for half precision, NumPy's loop for others."""

    def forward(x: Any) -> Any:
        if isinstance(x, np.ndarray) and (x.size >= LARGE or x.itemsize == 2):
            return kernels.lookup(name)(x)
        return ufunc(x)

    return forward


exp = _unary(
    "exp",
    _on_threads("exp", np.exp),
    lambda out: out,
    kernel="exp",
    formula=r"e^x",
    samples=unary(real),
    doc="e to the power of each element.",
)
expm1 = _unary(
    "expm1",
    np.expm1,
    lambda out: out + 1,
    formula=r"e^x - 1",
    samples=unary(real),
    doc="exp(x) - 1, accurate near zero.",
)
log = _unary(
    "log",
    _on_threads("log", np.log),
    lambda x: 1 / x,
    kernel="log",
    formula=r"\ln x",
    samples=unary(positive),
    doc="The natural logarithm; -inf at 0 and NaN below.",
)
log1p = _unary(
    "log1p",
    np.log1p,
    lambda x: 1 / (1 + x),
    formula=r"\ln(1 + x)",
    samples=unary(positive),
    doc="log(1 + x), accurate near zero.",
)
log2 = _unary(
    "log2",
    np.log2,
    lambda x: (1 / float(np.log(2))) / x,
    formula=r"\log_2 x",
    samples=unary(positive),
    doc="The logarithm to base 2.",
)
sqrt_ = _unary(
    "sqrt",
    np.sqrt,
    lambda out: 0.5 / out,
    formula=r"\sqrt{x}",
    samples=unary(positive, 0.0),
    doc="The square root; NaN below 0, and an infinite derivative at 0.",
)
rsqrt = _unary(
    "rsqrt",
    lambda x: 1 / np.sqrt(x),
    lambda out: -0.5 * out * out * out,
    formula=r"1 / \sqrt{x}",
    samples=unary(positive),
    doc="The reciprocal of the square root.",
)
square = _unary(
    "square",
    np.square,
    lambda x: 2 * x,
    formula=r"x^2",
    samples=unary(real),
    floating=False,
    doc="x * x.",
)
reciprocal = _unary(
    "reciprocal",
    lambda x: 1 / x,
    lambda out: -(out * out),
    formula=r"1 / x",
    samples=unary(positive),
    doc="1 / x.",
)
sin = _unary(
    "sin",
    np.sin,
    lambda x: x.cos(),
    formula=r"\sin x",
    samples=unary(real),
    doc="The sine, of radians.",
)
cos = _unary(
    "cos",
    np.cos,
    lambda x: -x.sin(),
    formula=r"\cos x",
    samples=unary(real),
    doc="The cosine, of radians.",
)
tan = _unary(
    "tan",
    np.tan,
    lambda out: 1 + out * out,
    formula=r"\tan x",
    samples=unary(unit),
    doc="The tangent, of radians.",
)
asin = _unary(
    "asin",
    np.arcsin,
    lambda x: (1 - x * x).rsqrt(),
    formula=r"\arcsin x",
    samples=unary(unit),
    doc="The inverse of the sine, in [-pi/2, pi/2].",
)
acos = _unary(
    "acos",
    np.arccos,
    lambda x: -(1 - x * x).rsqrt(),
    formula=r"\arccos x",
    samples=unary(unit),
    doc="The inverse of the cosine, in [0, pi].",
)
atan = _unary(
    "atan",
    np.arctan,
    lambda x: 1 / (1 + x * x),
    formula=r"\arctan x",
    samples=unary(real),
    doc="The inverse of the tangent, in (-pi/2, pi/2).",
)
sinh = _unary(
    "sinh",
    np.sinh,
    lambda x: x.cosh(),
    formula=r"\sinh x",
    samples=unary(real),
    doc="The hyperbolic sine.",
)
cosh = _unary(
    "cosh",
    np.cosh,
    lambda x: x.sinh(),
    formula=r"\cosh x",
    samples=unary(real),
    doc="The hyperbolic cosine.",
)
tanh = _unary(
    "tanh",
    _on_threads("tanh", np.tanh),
    lambda out: 1 - out * out,
    kernel="tanh",
    formula=r"\tanh x",
    samples=unary(real),
    doc="The hyperbolic tangent.",
)


sigmoid = _unary(
    "sigmoid",
    lambda x: kernels.lookup("sigmoid", backend.device_of(x))(x),
    lambda out: out * (1 - out),
    kernel="sigmoid",
    formula=r"\sigma(x) = 1 / (1 + e^{-x})",
    samples=unary(real),
    doc="The logistic function.",
)
softplus = _unary(
    "softplus",
    lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    lambda x: x.sigmoid(),
    formula=r"\ln(1 + e^x)",
    samples=unary(real),
    doc="log(1 + exp(x)) without overflow.",
)
logsigmoid = _unary(
    "logsigmoid",
    lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
    lambda x: (-x).sigmoid(),
    formula=r"\ln \sigma(x)",
    samples=unary(real),
    doc="log(sigmoid(x)) without underflow.",
)
erf = _unary(
    "erf",
    lambda x: kernels.lookup("erf", backend.device_of(x))(x),
    lambda x: (2 / sqrt(pi)) * (-(x * x)).exp(),
    kernel="erf",
    formula=r"\operatorname{erf} x",
    samples=unary(real),
    doc="The error function.",
)
abs_ = _unary(
    "abs",
    np.abs,
    lambda x: x.sign(),
    formula=r"|x|",
    samples=unary(distinct, 0.0),
    floating=False,
    doc="The absolute value; its derivative at 0 is taken as 0.",
)
method_as("__abs__")(abs_)
relu = _unary(
    "relu",
    lambda x: np.maximum(x, 0),
    lambda out: Tensor((~(out.data <= 0)).astype(out.dtype)),  # 1 for NaN, whose result is NaN
    formula=r"\max(x, 0)",
    samples=unary(distinct, 0.0),
    floating=False,
    doc="max(x, 0); its derivative at 0 is taken as 0.",
)

sign = _unary(
    "sign",
    np.sign,
    lambda x: 0.0,
    formula=r"\operatorname{sign} x",
    samples=unary(distinct),
    floating=False,
    doc="-1, 0 or 1. The derivative is 0 almost everywhere.",
)
floor = _unary(
    "floor",
    np.floor,
    lambda x: 0.0,
    formula=r"\lfloor x \rfloor",
    samples=unary(distinct),
    floating=False,
    doc="The largest integer not above x. The derivative is 0 almost everywhere.",
)
ceil = _unary(
    "ceil",
    np.ceil,
    lambda x: 0.0,
    formula=r"\lceil x \rceil",
    samples=unary(distinct),
    floating=False,
    doc="The smallest integer not below x. The derivative is 0 almost everywhere.",
)
round_ = _unary(
    "round",
    np.round,
    lambda x: 0.0,
    formula=r"\operatorname{round} x",
    samples=unary(distinct),
    floating=False,
    doc="The nearest integer, halves to even. The derivative is 0 almost everywhere.",
)
trunc = _unary(
    "trunc",
    np.trunc,
    lambda x: 0.0,
    formula=r"\operatorname{trunc} x",
    samples=unary(distinct),
    floating=False,
    doc="The integer part. The derivative is 0 almost everywhere.",
)

_clamp = elementwise(
    "clamp",
    lambda x, *, min, max: np.clip(x, min, max),
    lambda x, min, max: _inside(x, min, max),
    formula=r"\min(\max(x, a), b)",
    samples=lambda: [
        sample(distinct(3, 4), min=-0.65, max=0.85),
        sample(distinct(3, 4), min=None, max=0.85),
        sample(np.array([-1.0, 1.0]), min=-1.0, max=1.0, singular=True),
    ],
)


def _inside(x: Tensor, low: float | None, high: float | None) -> Tensor:
    inside = np.ones_like(x.data, bool)
    if low is not None:
        inside = inside & (x.data >= low)
    if high is not None:
        inside = inside & (x.data <= high)
    return Tensor(inside.astype(x.dtype))


@method
def clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """Each element limited to [min, max]; the derivative is 1 inside and on the limits, else 0."""
    return _clamp(x, min=min, max=max)


_leaky_relu = elementwise(
    "leaky_relu",
    lambda x, *, negative_slope: np.where(x > 0, x, negative_slope * x),
    lambda x, negative_slope: Tensor(np.where(x.data > 0, 1, negative_slope).astype(x.dtype)),
    formula=r"x \text{ if } x > 0 \text{ else } a x",
    samples=lambda: [
        sample(distinct(3, 4), negative_slope=0.1),
        sample(np.array([0.0]), negative_slope=0.1, singular=True),
    ],
)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where positive, negative_slope * x elsewhere."""
    return _leaky_relu(x, negative_slope=negative_slope)
