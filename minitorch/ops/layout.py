r"""The same elements in another shape or order: linear primitives without arithmetic.

Each is a matrix of zeros and ones, so its transpose moves the cotangent back: permute by the
inverse permutation, reshape to the old shape, and what was copied to several places (expand) is
summed over them. Where NumPy can, the result is a view.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from minitorch.errors import DtypeError, ShapeError
from minitorch.ops.definition import Primitive
from minitorch.ops.dims import as_shape, many_dims, one_dim
from minitorch.ops.primitive import linear
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor, method

_reshape: Primitive = linear(
    "reshape",
    lambda x, *, to: x.reshape(to),
    lambda grad, shape: apply(_reshape, [grad], {"to": shape}),
    formula=r"\operatorname{reshape}(x)",
    jacobian="I",
    samples=lambda: [
        sample(real(3, 4), to=(2, 6)),
        sample(real(3, 4), to=(12,)),
        sample(real(), to=(1, 1)),
        sample(real(0, 3), to=(3, 0)),
    ],
    may_view=True,
    moves_data=True,
)


@method
def reshape(x: Tensor, *shape: Any) -> Tensor:
    """The same elements, in C order, under another shape; one length may be -1 (the rest).

    A view where the memory allows it, else a copy.
    """
    wanted = as_shape("reshape", shape)
    return _reshape(x, to=_infer_length("reshape", wanted, x))


@method
def view(x: Tensor, *shape: Any) -> Tensor:
    """`reshape` that promises to share memory; raises ShapeError where it cannot."""
    if len(shape) == 1 and not isinstance(shape[0], (int, Sequence)):
        raise DtypeError("view: reinterpreting bits as another dtype is not supported; use .to()")
    wanted = _infer_length("view", as_shape("view", shape), x)
    if isinstance(x.data, np.ndarray) and x.numel() and not x.is_contiguous():
        try:
            x.data.reshape(wanted, copy=False)
        except ValueError:
            raise ShapeError(
                f"view: a tensor of shape {x.shape} and strides {x.stride()} cannot be seen as "
                f"{wanted} without a copy; use reshape(), or contiguous() first"
            ) from None
    return _reshape(x, to=wanted)


def _infer_length(operation: str, shape: tuple[int, ...], x: Tensor) -> tuple[int, ...]:
    total, known = prod(x.data.shape), prod(shape)
    if known == total and min(shape, default=0) >= 0:
        return shape
    if shape.count(-1) == 1 and min(shape) == -1 and known < 0 and total % known == 0:
        return tuple(total // -known if length == -1 else length for length in shape)
    raise ShapeError(f"{operation}: cannot see shape {x.shape}, of {total} elements, as {shape}")


@method
def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions start_dim to end_dim, both included, merged into one."""
    start, end = one_dim("flatten", start_dim, x.ndim), one_dim("flatten", end_dim, x.ndim)
    return reshape(x, (*x.shape[:start], -1 if x.numel() else 0, *x.shape[end + 1 :]))


@method
def unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension dim split into several."""
    dim = one_dim("unflatten", dim, x.ndim)
    return reshape(x, (*x.shape[:dim], *sizes, *x.shape[dim + 1 :]))


@method
def view_as(x: Tensor, other: Tensor) -> Tensor:
    """`view` with the shape of other."""
    return view(x, other.shape)


_permute: Primitive = linear(
    "permute",
    lambda x, *, dims: x.transpose(dims),
    lambda grad, dims: _permute(grad, dims=tuple(np.argsort(dims).tolist())),
    formula=r"y_{i_{p(1)} \dots i_{p(n)}} = x_{i_1 \dots i_n}",
    samples=lambda: [sample(real(2, 3, 4), dims=(2, 0, 1)), sample(real(2, 3), dims=(1, 0))],
    may_view=True,
    moves_data=True,
)


@method
def permute(x: Tensor, *dims: Any) -> Tensor:
    """The dimensions in another order: result.shape[i] = x.shape[dims[i]]. A view."""
    order = many_dims("permute", as_shape("permute", dims), x.ndim)
    if len(order) != x.ndim:
        raise ShapeError(f"permute: expected {x.ndim} dimensions in some order; got {order}")
    return _permute(x, dims=order)


@method
def transpose(x: Tensor, dim0: int = -2, dim1: int = -1) -> Tensor:
    """Two dimensions exchanged. A view."""
    ndim = x.ndim
    a, b = one_dim("transpose", dim0, ndim), one_dim("transpose", dim1, ndim)
    order = list(range(ndim))
    if order:
        order[a], order[b] = order[b], order[a]
    return _permute(x, dims=tuple(order))


@method
def movedim(x: Tensor, source: int, destination: int) -> Tensor:
    """Dimension source moved to destination, the others kept in order. A view."""
    order = list(range(x.ndim))
    moved = order.pop(one_dim("movedim", source, x.ndim))
    order.insert(one_dim("movedim", destination, x.ndim), moved)
    return _permute(x, dims=tuple(order))


@method
def t(x: Tensor) -> Tensor:
    """The transpose of a matrix; vectors and scalars as they are."""
    if x.ndim > 2:
        raise ShapeError(f"t: expected at most 2 dimensions; got shape {x.shape}; use .mT")
    return x if x.ndim < 2 else transpose(x, 0, 1)


Tensor.T = property(lambda x: _permute(x, dims=tuple(reversed(range(x.ndim)))))  # type: ignore
Tensor.mT = property(lambda x: transpose(x, -2, -1))  # type: ignore

_expand = linear(
    "expand",
    lambda x, *, to: np.broadcast_to(x, to),
    lambda grad, shape: grad.sum_to(shape),
    formula=r"y_{ij} = x_j",
    jacobian=r"\begin{pmatrix} I \\ \vdots \\ I \end{pmatrix}",
    samples=lambda: [
        sample(real(3, 1), to=(3, 4)),
        sample(real(4), to=(2, 3, 4)),
        sample(real(), to=(2, 3)),
    ],
    may_view=True,
    moves_data=True,
)


@method
def expand(x: Tensor, *shape: Any) -> Tensor:
    """Dimensions of length 1 repeated, and new ones in front, without a copy; -1 keeps a length."""
    wanted = as_shape("expand", shape)
    extra = len(wanted) - x.ndim
    lengths = tuple(
        x.shape[i - extra] if length == -1 and i >= extra else length
        for i, length in enumerate(wanted)
    )
    if extra < 0 or any(a not in (1, b) for a, b in zip(x.shape, lengths[extra:], strict=True)):
        raise ShapeError(f"expand: shape {x.shape} cannot be repeated to {wanted}")
    return _expand(x, to=lengths)


@method
def expand_as(x: Tensor, other: Tensor) -> Tensor:
    """`expand` to the shape of other."""
    return expand(x, other.shape)


def broadcast_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`expand` to shape."""
    return expand(x, tuple(shape))


@method
def squeeze(x: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Without the dimensions of length 1 (or without those of dim that have length 1)."""
    dims = many_dims("squeeze", dim, x.ndim)
    keep = [n for i, n in enumerate(x.shape) if not (n == 1 and i in dims)]
    return _reshape(x, to=tuple(keep))


@method
def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """With a new dimension of length 1 at dim."""
    dim = one_dim("unsqueeze", dim, x.ndim + 1)
    return _reshape(x, to=(*x.shape[:dim], 1, *x.shape[dim:]))


_flip: Primitive = linear(
    "flip",
    lambda x, *, dims: np.flip(x, dims),
    lambda grad, dims: _flip(grad, dims=dims),
    formula=r"y_i = x_{n-1-i}",
    samples=lambda: [sample(real(3, 4), dims=(0,)), sample(real(3, 4), dims=(0, 1))],
    may_view=True,
    moves_data=True,
)


@method
def flip(x: Tensor, *dims: Any) -> Tensor:
    """Each of dims in reverse order."""
    return _flip(x, dims=many_dims("flip", as_shape("flip", dims), x.ndim))


_roll: Primitive = linear(
    "roll",
    lambda x, *, shifts, dims: np.roll(x, shifts, dims),
    lambda grad, shifts, dims: _roll(grad, shifts=tuple(-s for s in shifts), dims=dims),
    formula=r"y_i = x_{(i - s) \bmod n}",
    samples=lambda: [sample(real(3, 4), shifts=(1,), dims=(0,))],
    moves_data=True,
)


@method
def roll(x: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> Tensor:
    """Elements moved on by shifts along dims, and round the end; without dims as if flat."""
    steps = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    if dims is None:
        return reshape(_roll(reshape(x, -1), shifts=steps, dims=(0,)), x.shape)
    return _roll(x, shifts=steps, dims=many_dims("roll", dims, x.ndim))
