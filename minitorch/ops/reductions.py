r"""Sums and what is built on them; the largest and the smallest; running sums and products.

`sum` and `expand` are each other's transpose: J of a sum is a row of ones, and v J copies v to
every element that was added. Sums of integers and bools are int64; half precision adds up in
float32.
"""

from collections.abc import Callable, Sequence
from math import prod as product
from typing import Any, NamedTuple

import numpy as np

from minitorch import backend
from minitorch.errors import DtypeError, ShapeError
from minitorch.ops.definition import Primitive, Sample, _kernel
from minitorch.ops.dims import many_dims, one_dim
from minitorch.ops.joining import cat
from minitorch.ops.primitive import general, linear, nondifferentiable
from minitorch.ops.samples import distinct, positive, real, sample
from minitorch.tensor import Tensor, method

Dims = int | Sequence[int] | None


def _restore(x: Tensor, shape: tuple[int, ...], dim: tuple[int, ...], keepdim: bool) -> Tensor:
    """A reduced tensor broadcast over the dimensions that were reduced."""
    if not keepdim:
        x = x.reshape(tuple(1 if i in dim else n for i, n in enumerate(shape)))
    return x.expand(shape)


def _reduction_samples(region: Callable[..., np.ndarray]) -> Callable[[], list[Sample]]:
    return lambda: [
        sample(region(3, 4), dim=(0,), keepdim=False),
        sample(region(3, 4), dim=(0, 1), keepdim=False),
        sample(region(2, 3, 4), dim=(0, 2), keepdim=True),
        sample(region(), dim=(), keepdim=False),
    ]


_sum = linear(
    "sum",
    lambda x, *, dim, keepdim: _kernel("sum")(x, dim=dim, keepdim=keepdim),
    lambda grad, shape, dim, keepdim: _restore(grad, shape, dim, keepdim),
    formula=r"y = \sum_i x_i",
    kernel="sum",
    jacobian=r"\begin{pmatrix} 1 & \cdots & 1 \end{pmatrix}",
    samples=_reduction_samples(real),
)


@method
def sum(x: Tensor, dim: Dims = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    """The sum over dim (all of them by default), which keepdim leaves with length 1."""
    if dtype is not None:
        x = x.to(dtype)
    elif not backend.is_float(x.data.dtype):
        x = x.to(backend.int64)
    return _sum(x, dim=many_dims("sum", dim, x.ndim), keepdim=keepdim)


@method
def sum_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo broadcasting: the sum over the dimensions that were added or had length 1 in shape."""
    if x.data.shape == shape:
        return x
    extra = x.ndim - len(shape)
    dims = tuple(range(extra)) + tuple(
        i + extra for i, n in enumerate(shape) if n == 1 and x.shape[i + extra] != 1
    )
    out = _sum(x, dim=dims, keepdim=True) if dims else x
    return out.reshape(shape) if extra or out.shape != shape else out


@method
def mean(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The mean over dim (all of them by default). Raises DtypeError for integers."""
    if not backend.is_float(x.dtype):
        raise DtypeError(f"mean: expected floats; got {x.dtype}. Convert with .float() first")
    dims = many_dims("mean", dim, x.ndim)
    count = product(x.shape[i] for i in dims)
    return _sum(x, dim=dims, keepdim=keepdim) / count if count else _empty_mean(x, dims, keepdim)


def _empty_mean(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return _sum(x, dim=dims, keepdim=keepdim) * float("nan")


@method
def var(x: Tensor, dim: Dims = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The variance over dim: squared deviations added up and divided by count - correction.

    correction=1 is Bessel's, PyTorch's default; layer norm uses 0.
    """
    dims = many_dims("var", dim, x.ndim)
    centred = x - mean(x, dims, keepdim=True)
    count = product(x.shape[i] for i in dims)
    total = _sum(centred * centred, dim=dims, keepdim=keepdim)
    return total / (count - correction) if count > correction else total * float("nan")


@method
def std(x: Tensor, dim: Dims = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The square root of the variance."""
    return var(x, dim, correction, keepdim).sqrt()


_cumsum: Primitive = linear(
    "cumsum",
    lambda x, *, dim: np.cumsum(x, dim),
    lambda grad, dim: _cumsum(grad.flip(dim), dim=dim).flip(dim),
    formula=r"y_i = \sum_{j \le i} x_j",
    jacobian=r"\text{lower triangle of ones}",
    samples=lambda: [sample(real(3, 4), dim=0), sample(real(2, 3, 2), dim=1)],
)


@method
def cumsum(x: Tensor, dim: int) -> Tensor:
    """Running sums along dim."""
    if not backend.is_float(x.dtype):
        x = x.to(backend.int64)
    return _cumsum(x, dim=one_dim("cumsum", dim, x.ndim)) if x.ndim else x.clone()


def _prod_vjp(grad: Tensor, x: Tensor, dim: int) -> Tensor:
    """The product of all others, from running products before and after: right with zeros too."""
    ones = Tensor(np.ones((*x.shape[:dim], 1, *x.shape[dim + 1 :]), x.dtype))
    n = x.shape[dim]
    before, after = [ones], [ones]
    for i in range(n - 1):
        before.append(before[-1] * x.narrow(dim, i, 1))
        after.append(after[-1] * x.narrow(dim, n - 1 - i, 1))
    others = [a * b for a, b in zip(before, reversed(after), strict=True)]
    return grad.unsqueeze(dim) * cat(others, dim)


_prod = general(
    "prod",
    lambda x, *, dim: np.multiply.reduce(x, axis=dim),
    _prod_vjp,
    formula=r"y = \prod_i x_i",
    jacobian=r"\partial y / \partial x_i = \prod_{j \ne i} x_j",
    samples=lambda: [
        sample(positive(3, 4), dim=0),
        sample(np.array([[2.0, 0.0, 3.0], [0.0, 0.0, 1.0]]), dim=1),
    ],
)


@method
def prod(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The product over dim, or of all elements; the gradient is right where elements are zero."""
    if not backend.is_float(x.dtype):
        x = x.to(backend.int64)
    if dim is None:
        out = _prod(x.reshape(-1), dim=0)
        return out.reshape((1,) * x.ndim) if keepdim else out
    axis = one_dim("prod", dim, x.ndim)
    out = _prod(x, dim=axis)
    return out.unsqueeze(axis) if keepdim else out


def _extremum_vjp(grad: Tensor, x: Tensor, out: Tensor, dim: tuple[int, ...], keepdim: bool) -> Any:
    """The gradient goes to the extreme elements, in equal shares where several are."""
    winners = (x.detach() == _restore(out.detach(), x.shape, dim, keepdim)).to(x.dtype)
    shares = winners / winners.sum(dim, keepdim=True)
    return _restore(grad, x.shape, dim, keepdim) * shares


def _extremum(name: str, symbol: str, doc: str) -> Any:
    primitive = general(
        name,
        lambda x, *, dim, keepdim: _kernel(name)(x, dim=dim, keepdim=keepdim),
        _extremum_vjp,
        kernel=name,
        formula=rf"y = \{symbol}_i x_i",
        jacobian=r"\text{a row of the identity}",
        samples=lambda: [
            *_reduction_samples(distinct)(),
            sample(np.array([[1.0, 2.0, 2.0]]), dim=(1,), keepdim=False, singular=True),
        ],
    )

    def reduce(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
        dims = many_dims(name, dim, x.ndim)
        if any(x.shape[i] == 0 for i in dims):
            raise ShapeError(f"{name}: no elements to reduce in shape {x.shape} over {dims}")
        return primitive(x, dim=dims, keepdim=keepdim)

    reduce.__name__ = name
    reduce.__doc__ = doc
    return method(reduce)


amax = _extremum("amax", "max", "The largest over dim; ties share the gradient equally.")
amin = _extremum("amin", "min", "The smallest over dim; ties share the gradient equally.")


class ValuesAndIndices(NamedTuple):
    """What max, min, sort and topk along one dimension return."""

    values: Tensor
    indices: Tensor


def _arg(name: str, symbol: str, doc: str) -> Any:
    primitive = nondifferentiable(
        name,
        lambda x, *, dim: _kernel(name)(x, dim=dim),
        kernel=name,
        formula=rf"\operatorname{{arg\,{symbol}}}_i x_i",
        samples=lambda: [sample(distinct(3, 4), dim=1)],
        why="an index is piecewise constant",
    )

    def arg(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
        if x.numel() == 0:
            raise ShapeError(f"{name}: no elements in shape {x.shape}")
        if dim is None:
            out = primitive(x.reshape(-1), dim=0)
            return out.reshape((1,) * x.ndim) if keepdim else out
        axis = one_dim(name, dim, x.ndim)
        out = primitive(x, dim=axis) if x.ndim else primitive(x.reshape(1), dim=0)
        return out.unsqueeze(axis) if keepdim and x.ndim else out

    arg.__name__ = name
    arg.__doc__ = doc
    return method(arg)


argmax = _arg("argmax", "max", "The index of the first largest along dim, or overall.")
argmin = _arg("argmin", "min", "The index of the first smallest along dim, or overall.")


def _with_indices(name: str, whole: Any, index_of: Any) -> Any:
    def extreme(x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
        if dim is None:
            return whole(x)
        if isinstance(dim, Tensor):
            return x.maximum(dim) if name == "max" else x.minimum(dim)
        axis = one_dim(name, dim, x.ndim)
        indices = index_of(x, axis, keepdim=True)
        values = x.gather(axis, indices)
        if not keepdim:
            values, indices = values.squeeze(axis), indices.squeeze(axis)
        return ValuesAndIndices(values, indices)

    extreme.__name__ = name
    extreme.__doc__ = (
        f"{name}(): the {name}imum of all elements; {name}(dim): (values, indices) along dim, the "
        f"gradient going to the element at the index; {name}(other): elementwise."
    )
    return method(extreme)


max = _with_indices("max", amax, argmax)
min = _with_indices("min", amin, argmin)


def _truth(name: str, function: Any, symbol: str, doc: str) -> Any:
    primitive = nondifferentiable(
        name,
        lambda x, *, dim, keepdim: function(x.astype(bool), axis=dim, keepdims=keepdim),
        formula=rf"\{symbol}_i x_i",
        samples=lambda: [sample(real(3, 4) > 0, dim=(1,), keepdim=False)],
        why="truth values are piecewise constant",
        moves_data=True,
    )

    def reduce(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
        return primitive(x, dim=many_dims(name, dim, x.ndim), keepdim=keepdim)

    reduce.__name__ = name
    reduce.__doc__ = doc
    return method(reduce)


any_ = _truth("any", np.any, "bigvee", "Whether any element over dim is true.")
all_ = _truth("all", np.all, "bigwedge", "Whether all elements over dim are true.")


@method
def norm(x: Tensor, p: float = 2, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """(sum |x|^p)^(1/p) over dim; p = inf is the largest magnitude. The gradient at 0 is 0."""
    if p == float("inf"):
        return amax(x.abs(), dim, keepdim)
    if p == 1:
        return sum(x.abs(), dim, keepdim)
    total = sum(x * x if p == 2 else x.abs() ** p, dim, keepdim)
    nothing = total == 0
    return (total.masked_fill(nothing, 1.0) ** (1 / p)).masked_fill(nothing, 0.0)


@method
def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """log of the running sums of exp(x) along dim, without overflow."""
    return _logcumsumexp(x, dim=one_dim("logcumsumexp", dim, x.ndim))


_logcumsumexp = general(
    "logcumsumexp",
    lambda x, *, dim: backend.to_device(
        np.logaddexp.accumulate(backend.to_device(x, "cpu"), dim),  # which CuPy lacks
        backend.device_of(x),
    ),
    lambda grad, x, out, dim: _logcumsumexp_vjp(grad, x, out, dim),
    formula=r"y_i = \ln \sum_{j \le i} e^{x_j}",
    jacobian=r"\partial y_i / \partial x_j = e^{x_j - y_i}, \; j \le i",
    samples=lambda: [sample(real(3, 4), dim=1), sample(10 * real(5), dim=0)],
    floating=True,
)


def _logcumsumexp_vjp(grad: Tensor, x: Tensor, out: Tensor, dim: int) -> Tensor:
    """sum over i >= j of grad_i exp(x_j - out_i): no exponent is above 0, so none overflows."""
    n = x.shape[dim]
    row = x.movedim(dim, -1).unsqueeze(-2)
    column = out.movedim(dim, -1).unsqueeze(-1)
    allowed = Tensor(np.tril(np.ones((n, n), bool)))
    weights = (row - column).masked_fill(~allowed, float("-inf")).exp()
    moved = (grad.movedim(dim, -1).unsqueeze(-2) @ weights).squeeze(-2)
    return moved.movedim(-1, dim)
