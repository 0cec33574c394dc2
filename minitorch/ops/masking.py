r"""Some elements and not others: triangles, diagonals, and a choice by condition.

Linear primitives whose matrix is diagonal with zeros and ones, or picks rows of the identity, and
their transposes: a mask is its own, and that of taking a diagonal is writing one into zeros.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch import backend
from minitorch.errors import DtypeError, ShapeError
from minitorch.ops.conversion import to
from minitorch.ops.definition import Primitive
from minitorch.ops.dims import one_dim
from minitorch.ops.primitive import linear
from minitorch.ops.promotion import promote
from minitorch.ops.samples import mask, real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor, method, method_as


def _triangle(name: str, function: Any, doc: str) -> Any:
    primitive: Primitive = linear(
        name,
        lambda x, *, diagonal: function(x, diagonal),
        lambda grad, diagonal: primitive(grad, diagonal=diagonal),
        formula=rf"\operatorname{{{name}}}(x)",
        samples=lambda: [
            sample(real(3, 4), diagonal=0),
            sample(real(2, 4, 3), diagonal=-1),
            sample(real(3, 3), diagonal=1),
        ],
        moves_data=True,
    )

    def triangle(x: Tensor, diagonal: int = 0) -> Tensor:
        if x.ndim < 2:
            raise ShapeError(f"{name}: expected at least 2 dimensions; got shape {x.shape}")
        return primitive(x, diagonal=diagonal)

    triangle.__doc__ = doc
    triangle.__name__ = name
    return method(triangle)


tril = _triangle("tril", np.tril, "The lower triangle of each matrix, zeros above `diagonal`.")
triu = _triangle("triu", np.triu, "The upper triangle of each matrix, zeros below `diagonal`.")

_diagonal = linear(
    "diagonal",
    lambda x, *, offset, dim1, dim2: _diagonal_view(x, offset, dim1, dim2),
    lambda grad, shape, offset, dim1, dim2: _diagonal_scatter(
        grad, shape=shape, offset=offset, dim1=dim1, dim2=dim2
    ),
    formula=r"y_i = x_{ii}",
    samples=lambda: [
        sample(real(3, 4), offset=0, dim1=0, dim2=1),
        sample(real(2, 3, 3), offset=1, dim1=1, dim2=2),
    ],
    may_view=True,
    moves_data=True,
)


def _diagonal_view(x: np.ndarray, offset: int, dim1: int, dim2: int) -> np.ndarray:
    view = np.diagonal(x, offset, dim1, dim2)
    if isinstance(x, np.ndarray):  # NumPy's is read-only, though no two elements share memory
        view.flags.writeable = x.flags.writeable
    return view


def _scatter_diagonal(
    x: np.ndarray, *, shape: tuple[int, ...], offset: int, dim1: int, dim2: int
) -> np.ndarray:
    out = np.zeros_like(x, shape=shape)
    _diagonal_view(out, offset, dim1, dim2)[...] = x
    return out


_diagonal_scatter: Primitive = linear(
    "diagonal_scatter",
    _scatter_diagonal,
    lambda grad, offset, dim1, dim2: _diagonal(grad, offset=offset, dim1=dim1, dim2=dim2),
    formula=r"y_{ii} = x_i, \; y_{ij} = 0",
    samples=lambda: [sample(real(3), shape=(3, 3), offset=0, dim1=0, dim2=1)],
    moves_data=True,
)


@method
def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements [i, i + offset] of dimensions dim1 and dim2, as the last dimension.

    A view.
    """
    a, b = one_dim("diagonal", dim1, x.ndim), one_dim("diagonal", dim2, x.ndim)
    return _diagonal(x, offset=offset, dim1=a, dim2=b)


@method
def diag(x: Tensor, diagonal: int = 0) -> Tensor:
    """A matrix with this vector on its diagonal, or the diagonal of this matrix."""
    if x.ndim == 2:
        return _diagonal(x, offset=diagonal, dim1=0, dim2=1)
    if x.ndim != 1:
        raise ShapeError(f"diag: expected a vector or a matrix; got shape {x.shape}")
    size = x.shape[0] + abs(diagonal)
    return _diagonal_scatter(x, shape=(size, size), offset=diagonal, dim1=0, dim2=1)


_where = linear(
    "where",
    lambda a, b, condition: np.where(condition, a, b),
    lambda grad, condition: where(condition, grad, 0.0),
    lambda grad, condition: where(condition, 0.0, grad),
    formula=r"c \, ? \, a : b",
    jacobian=r"\begin{pmatrix} \operatorname{diag}(c) & \operatorname{diag}(1-c) \end{pmatrix}",
    samples=lambda: [
        sample(real(3, 4), real(3, 4, seed=1), mask(3, 4)),
        sample(real(4), real(3, 1), mask(3, 4)),
        sample(real(3, 4), np.array(-1.5), mask(4)),
    ],
    moves_data=True,
)


def where(condition: Tensor, a: Any = None, b: Any = None) -> Any:
    """Elements of a where condition is true, else of b, all three broadcast.

    With the condition alone: the indices of its true elements, a tuple of one tensor a dimension.
    """
    if a is None and b is None:
        return tuple(Tensor(index) for index in np.nonzero(condition.data))
    if condition.dtype != backend.bool:
        raise DtypeError(f"where: expected a bool condition; got {condition.dtype}")
    return apply(_where, [*_plain(promote((a, b))), condition], {})


def _plain(pair: Sequence[Any]) -> list[Any]:
    """Python numbers as arrays of the other's dtype: np.where would widen them."""
    dtype = next(x.dtype for x in pair if isinstance(x, Tensor))
    return [x if isinstance(x, Tensor) else Tensor(x, dtype) for x in pair]


method_as("where")(lambda a, condition, b: where(condition, a, b))


@method
def masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """The tensor with value where mask (bool, broadcast) is true."""
    if not isinstance(value, Tensor):
        value = Tensor(value, x.dtype)
    return where(mask, to(value, x.dtype), x)
