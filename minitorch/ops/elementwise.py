r"""Elementwise primitives: y_i = f(x_i), so J = diag(f'(x)).

Next to each forward function stands its derivative, as a factor. It is written from the result
`out` where that is as short and more accurate: tanh' = 1 - out^2 cannot overflow, 1/cosh^2 can.
"""

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

import numpy as np

from minitorch import backend, kernels
from minitorch.autograd import apply
from minitorch.errors import DtypeError
from minitorch.ops.primitive import Sample, elementwise, linear, nondifferentiable, promote
from minitorch.ops.samples import binary, distinct, positive, real, sample, unary, unit
from minitorch.tensor import Tensor, method, method_as


def _unary(
    name: str, forward: Callable[..., Any], derivative: Callable[..., Any], **options: Any
) -> Any:
    options.setdefault("floating", True)
    options.setdefault("inputs", ("x",))
    primitive = elementwise(name, forward, derivative, **options)
    method(primitive)
    return primitive


_LARGE = 1 << 16
"""Elements from which a kernel of its own, with threads, is faster than NumPy's loop."""


def _on_threads(name: str, ufunc: np.ufunc) -> Callable[[Any], Any]:
    """The kernel of this name for large arrays and for half precision, NumPy's loop for others."""

    def forward(x: Any) -> Any:
        if isinstance(x, np.ndarray) and (x.size >= _LARGE or x.itemsize == 2):
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
    inside = np.ones(x.shape, bool)
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


def _add_arrays(a: Any, b: Any) -> Any:
    if isinstance(a, np.ndarray) and a.size >= _LARGE:
        return kernels.lookup("add")(a, b)
    return np.add(a, b)


add = linear(
    "add",
    _add_arrays,
    lambda grad: grad,
    lambda grad: grad,
    formula=r"a + b",
    jacobian=r"\begin{pmatrix} I & I \end{pmatrix}",
    samples=binary(real, real),
    doc="a + b, with broadcasting.",
)
sub = linear(
    "sub",
    np.subtract,
    lambda grad: grad,
    lambda grad: -grad,
    formula=r"a - b",
    jacobian=r"\begin{pmatrix} I & -I \end{pmatrix}",
    samples=binary(real, real),
    doc="a - b, with broadcasting.",
)
neg = linear(
    "neg",
    np.negative,
    lambda grad: -grad,
    formula=r"-x",
    jacobian=r"-I",
    samples=unary(real),
    doc="-x.",
)
div = elementwise(
    "div",
    np.true_divide,
    lambda b: 1 / b,
    lambda b, out: -out / b,
    inputs=("a", "b"),
    formula=r"a / b",
    samples=binary(real, positive),
    floating=True,
    doc="a / b, with broadcasting; integers give floats.",
)


def _of_numbers(ufunc: np.ufunc) -> Callable[..., Any]:
    """The function of two numbers alone: of truth values NumPy would make an int8."""

    def forward(a: Any, b: Any) -> Any:
        if (a if hasattr(a, "dtype") else b).dtype.kind == "b":
            raise DtypeError(f"{ufunc.__name__}: not defined for bool; convert with long()")
        return ufunc(a, b)

    return forward


def _where_zero(condition: Tensor, otherwise: Tensor) -> Tensor:
    return otherwise.masked_fill(condition, 0.0)


def _pow_base(a: Any, b: Any) -> Any:
    """b a^(b-1), and 0 where b is 0, so that 0^0 has no NaN."""
    if isinstance(b, Tensor):
        return _where_zero(b == 0, b * a ** (b - 1))
    return 0.0 if b == 0 else b * a ** (b - 1)


def _pow_exponent(a: Any, b: Any, out: Tensor) -> Tensor:
    """a^b log a, and 0 where a = 0 and b >= 0."""
    a, b = _as_tensors(a, b, out.dtype)
    return _where_zero((a == 0) & (b >= 0), out * a.log())


def _as_tensors(a: Any, b: Any, dtype: np.dtype) -> tuple[Tensor, Tensor]:
    return (
        a if isinstance(a, Tensor) else Tensor(a, dtype),
        b if isinstance(b, Tensor) else Tensor(b, dtype),
    )


pow_ = elementwise(
    "pow",
    _of_numbers(np.power),
    _pow_base,
    _pow_exponent,
    inputs=("a", "b"),
    formula=r"a^b",
    samples=lambda: [
        *binary(positive, real)(),
        Sample((real(3, 4), 3)),
        Sample((real(3, 4), 2.0)),
        Sample((np.array([0.0, 0.0, 2.0]), np.array([0.0, 2.0, 0.0])), singular=True),
    ],
    doc="a to the power of b, with broadcasting.",
)


def _share(a: Any, b: Any, loses: Callable[[Any, Any], Any]) -> Tensor:
    """0 where a loses, a half at ties, else 1: to NaN, too, since the result is NaN."""
    left, right = _raw(a), _raw(b)
    dtype = a.dtype if isinstance(a, Tensor) else b.dtype
    return Tensor((1 - loses(left, right) - 0.5 * (left == right)).astype(dtype))


def _raw(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


maximum = elementwise(
    "maximum",
    np.maximum,
    lambda a, b: _share(a, b, np.less),
    lambda a, b: _share(b, a, np.less),
    formula=r"\max(a, b)",
    samples=lambda: [
        *binary(real, real)(),
        Sample((np.array([1.0, 2.0]), np.array([1.0, 3.0])), singular=True),
    ],
    doc="The larger of a and b; at a tie each gets half of the gradient.",
)
minimum = elementwise(
    "minimum",
    np.minimum,
    lambda a, b: _share(a, b, np.greater),
    lambda a, b: _share(b, a, np.greater),
    formula=r"\min(a, b)",
    samples=lambda: [
        *binary(real, real)(),
        Sample((np.array([1.0, 2.0]), np.array([1.0, 3.0])), singular=True),
    ],
    doc="The smaller of a and b; at a tie each gets half of the gradient.",
)


def _over_square(x: Any, a: Any, b: Any) -> Tensor:
    """x / (a^2 + b^2), and 0 in the origin, around which the angle has no limit."""
    square = a * a + b * b
    return _where_zero(square == 0, x / square)


atan2 = elementwise(
    "atan2",
    np.arctan2,
    lambda a, b: _over_square(b, a, b),
    lambda a, b: _over_square(-a, a, b),
    formula=r"\operatorname{atan2}(a, b)",
    samples=lambda: [
        *binary(positive, positive)(),
        Sample((np.zeros(4), np.array([0.0, -0.0, 1.0, -1.0])), singular=True),
    ],
    floating=True,
    doc="The angle of the point (b, a).",
)
remainder = elementwise(
    "remainder",
    _of_numbers(np.remainder),
    lambda a: 1.0,
    lambda a, b: -(a // b),
    inputs=("a", "b"),
    formula=r"a - b \lfloor a / b \rfloor",
    samples=lambda: [Sample((distinct(3, 4), 0.83)), Sample((distinct(3, 4), positive(3, 4)))],
    doc="a modulo b, with the sign of b (Python's %).",
)

for _name in ("maximum", "minimum", "atan2", "remainder"):
    method(globals()[_name])


@method_as("__add__", "add")
def _add(a: Tensor, b: Any) -> Tensor:
    return _operator(add, a, b)


@method_as("__radd__")
def _radd(a: Tensor, b: Any) -> Tensor:
    return _operator(add, b, a)


@method_as("__sub__", "sub")
def _sub(a: Tensor, b: Any) -> Tensor:
    return _operator(sub, a, b)


@method_as("__rsub__")
def _rsub(a: Tensor, b: Any) -> Tensor:
    return _operator(sub, b, a)


@method_as("__truediv__", "div")
def _div(a: Tensor, b: Any) -> Tensor:
    return _operator(div, a, b)


@method_as("__rtruediv__")
def _rdiv(a: Tensor, b: Any) -> Tensor:
    return _operator(div, b, a)


@method_as("__pow__", "pow")
def _pow(a: Tensor, b: Any) -> Tensor:
    return _operator(pow_, a, b)


@method_as("__rpow__")
def _rpow(a: Tensor, b: Any) -> Tensor:
    return _operator(pow_, b, a)


@method_as("__mod__")
def _mod(a: Tensor, b: Any) -> Tensor:
    return _operator(remainder, a, b)


@method_as("__rmod__")
def _rmod(a: Tensor, b: Any) -> Tensor:
    return _operator(remainder, b, a)


@method_as("__neg__", "neg")
def _neg(x: Tensor) -> Tensor:
    return neg(x)


@method_as("__abs__")
def _abs(x: Tensor) -> Tensor:
    return abs_(x)


@method_as("__pos__")
def _pos(x: Tensor) -> Tensor:
    return x


def _operator(primitive: Any, a: Any, b: Any) -> Tensor:
    """primitive(a, b), or NotImplemented so that Python may ask b's class."""
    if not isinstance(a, _OPERANDS) or not isinstance(b, _OPERANDS):
        return NotImplemented
    return apply(primitive, promote((a, b), primitive.floating), {})


_OPERANDS = (Tensor, int, float, np.ndarray, np.generic)


def _comparison(name: str, ufunc: Any, symbol: str, operator: str) -> Any:
    primitive = nondifferentiable(
        name,
        ufunc,
        inputs=("a", "b"),
        formula=symbol,
        samples=binary(real, real),
        why="truth values are piecewise constant",
    )

    def compare(a: Tensor, b: Any) -> Tensor:
        return _operator(primitive, a, b)

    method_as(operator, name)(compare)
    return primitive


eq = _comparison("eq", np.equal, "a = b", "__eq__")
ne = _comparison("ne", np.not_equal, r"a \ne b", "__ne__")
lt = _comparison("lt", np.less, "a < b", "__lt__")
le = _comparison("le", np.less_equal, r"a \le b", "__le__")
gt = _comparison("gt", np.greater, "a > b", "__gt__")
ge = _comparison("ge", np.greater_equal, r"a \ge b", "__ge__")


def _logical(name: str, forward: Any, symbol: str, inputs: tuple[str, ...], why: str) -> Any:
    return nondifferentiable(
        name,
        forward,
        inputs=inputs,
        formula=symbol,
        samples=lambda: [
            Sample(tuple(np.array([True, False, i == 0]) for i in range(len(inputs))))
        ],
        why=why,
    )


_TRUTH = "integers and truth values have no derivative"
bitwise_and = _logical("bitwise_and", np.bitwise_and, r"a \wedge b", ("a", "b"), _TRUTH)
bitwise_or = _logical("bitwise_or", np.bitwise_or, r"a \vee b", ("a", "b"), _TRUTH)
bitwise_xor = _logical("bitwise_xor", np.bitwise_xor, r"a \oplus b", ("a", "b"), _TRUTH)
bitwise_not = _logical("bitwise_not", np.invert, r"\neg x", ("x",), _TRUTH)
logical_not = _logical("logical_not", np.logical_not, r"\neg x", ("x",), _TRUTH)
logical_and = _logical("logical_and", np.logical_and, r"a \wedge b", ("a", "b"), _TRUTH)
logical_or = _logical("logical_or", np.logical_or, r"a \vee b", ("a", "b"), _TRUTH)
isnan = _logical("isnan", np.isnan, r"x \ne x", ("x",), _TRUTH)
isinf = _logical("isinf", np.isinf, r"|x| = \infty", ("x",), _TRUTH)
isfinite = _logical("isfinite", np.isfinite, r"|x| < \infty", ("x",), _TRUTH)

for _name in ("logical_not", "logical_and", "logical_or", "isnan", "isinf", "isfinite"):
    method(globals()[_name])


@method_as("__and__", "__rand__")
def _and(a: Tensor, b: Any) -> Tensor:
    return bitwise_and(a, b)


@method_as("__or__", "__ror__")
def _or(a: Tensor, b: Any) -> Tensor:
    return bitwise_or(a, b)


@method_as("__xor__", "__rxor__")
def _xor(a: Tensor, b: Any) -> Tensor:
    return bitwise_xor(a, b)


@method_as("__invert__")
def _invert(x: Tensor) -> Tensor:
    return bitwise_not(x)


floor_divide = nondifferentiable(
    "floor_divide",
    _of_numbers(np.floor_divide),
    inputs=("a", "b"),
    formula=r"\lfloor a / b \rfloor",
    samples=binary(distinct, positive),
    why="whole numbers are piecewise constant; use (a / b).floor() for its derivative, 0",
)


@method_as("__floordiv__")
def _floordiv(a: Tensor, b: Any) -> Tensor:
    return _operator(floor_divide, a, b)


@method_as("__rfloordiv__")
def _rfloordiv(a: Tensor, b: Any) -> Tensor:
    return _operator(floor_divide, b, a)
