r"""Arithmetic of two numbers, element by element with broadcasting, and Python's operators for it.

y_i = f(a_i, b_i), so J = (diag(df/da), diag(df/db)): a factor for each argument. Sums and
differences are linear; products, which are bilinear, stand in products.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray

from minitorch import backend, kernels
from minitorch.errors import DtypeError
from minitorch.ops.definition import Sample
from minitorch.ops.elementwise import LARGE
from minitorch.ops.primitive import elementwise, linear, nondifferentiable
from minitorch.ops.promotion import promote
from minitorch.ops.samples import binary, distinct, positive, real, unary
from minitorch.tape import apply
from minitorch.tensor import Tensor, method, method_as


def _add_arrays(a: Any, b: Any) -> Any:
    if type(a) is ndarray and a.size < LARGE:
        return np.add(a, b)
    if isinstance(a, np.ndarray) or hasattr(a, "get"):
        return kernels.lookup("add", backend.device_of(a))(a, b)
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
floor_divide = nondifferentiable(
    "floor_divide",
    _of_numbers(np.floor_divide),
    inputs=("a", "b"),
    formula=r"\lfloor a / b \rfloor",
    samples=binary(distinct, positive),
    why="whole numbers are piecewise constant; use (a / b).floor() for its derivative, 0",
)

for _name in ("maximum", "minimum", "atan2", "remainder"):
    method(globals()[_name])


_OPERANDS = (Tensor, int, float, np.ndarray, np.generic)


def operator(primitive: Any) -> Callable[[Tensor, Any], Tensor]:
    """primitive(a, b) as a method of a, or NotImplemented so that Python may ask b's class."""
    floating = primitive.floating

    def operate(a: Tensor, b: Any) -> Tensor:
        if not isinstance(b, _OPERANDS):
            return NotImplemented
        return apply(primitive, promote((a, b), floating), {})

    return operate


def _reflected(primitive: Any) -> Callable[[Tensor, Any], Tensor]:
    """primitive(a, b) as a method of b."""
    floating = primitive.floating

    def operate(b: Tensor, a: Any) -> Tensor:
        if not isinstance(a, _OPERANDS):
            return NotImplemented
        return apply(primitive, promote((a, b), floating), {})

    return operate


def both_ways(primitive: Any, symbol: str) -> None:
    """Give Tensor the operator that Python calls `symbol`, with the tensor left and right of it."""
    method_as(f"__{symbol}__")(operator(primitive))
    method_as(f"__r{symbol}__")(_reflected(primitive))


for _primitive, _symbol in (
    (add, "add"),
    (sub, "sub"),
    (div, "truediv"),
    (pow_, "pow"),
    (remainder, "mod"),
    (floor_divide, "floordiv"),
):
    both_ways(_primitive, _symbol)
for _primitive in (add, sub, div, pow_):
    method_as(_primitive.name)(operator(_primitive))


@method_as("__neg__", "neg")
def _neg(x: Tensor) -> Tensor:
    return neg(x)


@method_as("__pos__")
def _pos(x: Tensor) -> Tensor:
    return x
