"""Comparisons, logic and tests of numbers: truth values, which have no derivative."""

from typing import Any

import numpy as np

from minitorch.ops.arithmetic import operator
from minitorch.ops.definition import Sample
from minitorch.ops.primitive import nondifferentiable
from minitorch.ops.samples import binary, real
from minitorch.tensor import Tensor, method, method_as


def _comparison(name: str, ufunc: Any, symbol: str) -> Any:
    primitive = nondifferentiable(
        name,
        ufunc,
        inputs=("a", "b"),
        formula=symbol,
        samples=binary(real, real),
        why="truth values are piecewise constant",
    )

    method_as(f"__{name}__", name)(operator(primitive))
    return primitive


eq = _comparison("eq", np.equal, "a = b")
ne = _comparison("ne", np.not_equal, r"a \ne b")
lt = _comparison("lt", np.less, "a < b")
le = _comparison("le", np.less_equal, r"a \le b")
gt = _comparison("gt", np.greater, "a > b")
ge = _comparison("ge", np.greater_equal, r"a \ge b")


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
