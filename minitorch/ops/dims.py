"""Dimensions as the user writes them (negative, None, one or several) made plain."""

from collections.abc import Sequence
from operator import index

from minitorch.errors import ShapeError


def one_dim(operation: str, dim: int, ndim: int) -> int:
    """dim in [0, ndim), negative ones counted from the end. Raises ShapeError outside."""
    limit = max(ndim, 1)
    try:
        at = index(dim)
    except TypeError:
        raise ShapeError(f"{operation}: expected an integer dim; got {dim!r}") from None
    if not -limit <= at < limit:
        raise ShapeError(
            f"{operation}: dim {at} is out of range for a tensor of {ndim} dimensions; expected "
            f"{-limit} to {limit - 1}"
        )
    return at % limit


def many_dims(operation: str, dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """dim as a tuple without repeats; None means all dimensions."""
    if dim is None:
        return tuple(range(ndim))
    if not isinstance(dim, Sequence):
        return (one_dim(operation, dim, ndim),) if ndim else ()
    dims = tuple(one_dim(operation, d, ndim) for d in dim)
    if len(set(dims)) != len(dims):
        raise ShapeError(f"{operation}: dim {tuple(dim)} names a dimension twice")
    return dims if ndim else ()


def as_shape(operation: str, shape: tuple) -> tuple[int, ...]:
    """f(2, 3), f((2, 3)) and f([2, 3]) alike."""
    if len(shape) == 1 and isinstance(shape[0], Sequence):
        shape = tuple(shape[0])
    try:
        return tuple(map(index, shape))
    except TypeError:
        raise ShapeError(f"{operation}: expected integers as the shape; got {shape}") from None
