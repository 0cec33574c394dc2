r"""Linear primitives that move values without arithmetic.

Each is a matrix of zeros and ones, so its transpose moves the cotangent back: permute by the
inverse permutation, reshape to the old shape, and what was copied to several places (expand) is
summed over them. Where NumPy can, the result is a view.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch import backend
from minitorch.autograd import apply
from minitorch.errors import DtypeError, ShapeError
from minitorch.ops.dims import as_shape, many_dims, one_dim
from minitorch.ops.primitive import Primitive, linear, promote
from minitorch.ops.samples import mask, real, sample, unary
from minitorch.tensor import Tensor, method, method_as

alias = linear(
    "alias",
    lambda x: x.view(),
    lambda grad: grad,
    formula="x",
    samples=unary(real),
    may_view=True,
    moves_data=True,
    doc="The same memory as a new node of the tape.",
)
method(alias)

clone = linear(
    "clone",
    lambda x: x.copy(order="C"),
    lambda grad: grad,
    formula="x",
    samples=unary(real),
    moves_data=True,
    doc="A copy in memory of its own.",
)
method(clone)

_cast = linear(
    "cast",
    lambda x, *, dtype: x.astype(dtype),
    lambda grad: grad,
    formula=r"\operatorname{cast}(x)",
    samples=lambda: [sample(real(3, 4), dtype=np.dtype(np.float64))],
    moves_data=True,
)


@method
def to(x: Tensor, *target: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """The tensor in another dtype or on another device; itself where nothing changes.

    to("cuda"), to(minitorch.float64), to("bfloat16"), to(dtype=..., device=...), to(other). The
    gradient is cast back; integers and bool have none.
    """
    for item in target:
        if isinstance(item, Tensor):
            dtype, device = item.dtype, item.device
        elif item in ("cpu", "cuda"):
            device = item
        else:
            dtype = item
    if device is not None and device != x.device:
        x = _move(x, device=device)
    if dtype is None or x.data.dtype == (wanted := backend.as_dtype(dtype)):
        return x
    if x.requires_grad and not backend.is_float(wanted):
        x = x.detach()
    return _cast(x, dtype=wanted)


_move = linear(
    "move",
    lambda x, *, device: backend.to_device(x, device),
    lambda grad: grad,
    formula="x",
    samples=lambda: [sample(real(3, 4), device="cpu")],
    moves_data=True,
)


def _converter(name: str, dtype: np.dtype) -> None:
    def convert(x: Tensor) -> Tensor:
        return to(x, dtype)

    convert.__doc__ = f"The tensor as {dtype}."
    method_as(name)(convert)


for _name, _dtype in {
    "float": backend.float32,
    "double": backend.float64,
    "half": backend.float16,
    "bfloat16": backend.bfloat16,
    "long": backend.int64,
    "int": backend.int32,
    "bool": backend.bool,
}.items():
    _converter(_name, _dtype)


@method
def type_as(x: Tensor, other: Tensor) -> Tensor:
    """The tensor in the dtype of other."""
    return to(x, other.dtype)


@method
def cpu(x: Tensor) -> Tensor:
    """The tensor in main memory."""
    return to(x, "cpu")


@method
def contiguous(x: Tensor) -> Tensor:
    """The tensor itself if its elements lie in C order without gaps, else a copy that does."""
    return x if x.is_contiguous() else clone(x)


_reshape = linear(
    "reshape",
    lambda x, *, to: x.reshape(to),
    lambda grad, shape: reshape(grad, shape),
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
    known = 1
    for length in shape:
        known *= length if length != -1 else 1
    total = x.numel()
    if shape.count(-1) == 1 and known > 0 and total % known == 0:
        return tuple(total // known if length == -1 else length for length in shape)
    if -1 in shape or known != total or any(length < 0 for length in shape):
        raise ShapeError(
            f"{operation}: cannot see shape {x.shape}, of {total} elements, as {shape}"
        )
    return shape


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
    a, b = one_dim("transpose", dim0, x.ndim), one_dim("transpose", dim1, x.ndim)
    order = list(range(x.ndim))
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
    out = np.zeros(shape, x.dtype)
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


_pad = linear(
    "pad",
    lambda x, *, widths, value: np.pad(x, widths, constant_values=value),
    lambda grad, shape, widths: grad[
        tuple(slice(a, a + n) for (a, _), n in zip(widths, shape, strict=True))
    ],
    formula=r"\operatorname{pad}(x)",
    samples=lambda: [sample(real(2, 3), widths=((0, 1), (2, 0)), value=0.0)],
    moves_data=True,
)


def pad(x: Tensor, pad: Sequence[int], value: float = 0.0) -> Tensor:
    """Constant padding. pad: (before, after) of the last dimension, then of the one before it, ...

    Negative widths are not taken; slice instead. In PyTorch: torch.nn.functional.pad.
    """
    if len(pad) % 2 or len(pad) > 2 * x.ndim or any(width < 0 for width in pad):
        raise ShapeError(
            f"pad: expected pairs of widths of at most {x.ndim} dimensions, not negative; got "
            f"{tuple(pad)}"
        )
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    widths = ((0, 0),) * (x.ndim - len(pairs)) + tuple(reversed(pairs))
    if value == 0:
        return _pad(x, widths=widths, value=0)
    inside = _pad(Tensor(np.ones(x.shape, bool)), widths=widths, value=0)
    return where(inside, _pad(x, widths=widths, value=0), value)


_cat = linear(
    "cat",
    lambda *xs, dim: np.concatenate(xs, dim),
    lambda grad, shapes, dim: split(grad, [shape[dim] for shape in shapes], dim),
    formula=r"(x_1, \dots, x_k)",
    samples=lambda: [
        sample(real(2, 3), real(2, 1), real(2, 2), dim=1),
        sample(real(3, seed=1), real(2), dim=0),
    ],
    moves_data=True,
)


def _same_dtype(operation: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not tensors or not all(isinstance(x, Tensor) for x in tensors):
        raise ShapeError(f"{operation}: expected a list of at least one tensor; got {tensors!r}")
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = backend.promote_types(dtype, x.dtype)
    return [to(x, dtype) for x in tensors]


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors joined along an existing dimension; their other lengths must agree."""
    parts = _same_dtype("cat", tensors)
    dim = one_dim("cat", dim, parts[0].ndim)
    rest = {(*x.shape[:dim], *x.shape[dim + 1 :]) for x in parts}
    if len(rest) > 1 or any(x.ndim == 0 for x in parts):
        raise ShapeError(
            f"cat: shapes must agree but for dimension {dim}; got {[x.shape for x in parts]}"
        )
    return _cat(*parts, dim=dim)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape joined along a new dimension."""
    parts = _same_dtype("stack", tensors)
    if len({x.shape for x in parts}) > 1:
        raise ShapeError(f"stack: expected one shape; got {[x.shape for x in parts]}")
    return cat([unsqueeze(x, dim) for x in parts], one_dim("stack", dim, parts[0].ndim + 1))


@method
def split(x: Tensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Views of consecutive pieces: of length split_size (the last may be shorter), or as listed."""
    dim = one_dim("split", dim, x.ndim)
    length = x.shape[dim]
    if isinstance(split_size, int):
        if split_size <= 0:
            raise ShapeError(f"split: expected a positive length; got {split_size}")
        sizes = [min(split_size, length - i) for i in range(0, length, split_size)] or [0]
    else:
        sizes = list(split_size)
    if sum(sizes) != length:
        raise ShapeError(
            f"split: the lengths {sizes} add up to {sum(sizes)}, not to dimension {dim}, {length}"
        )
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return tuple(narrow(x, dim, a, n) for a, n in zip(starts, sizes, strict=True))


@method
def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of about equal consecutive pieces, at most `chunks` of them."""
    if chunks < 1:
        raise ShapeError(f"chunk: expected at least one piece; got {chunks}")
    length = x.shape[one_dim("chunk", dim, x.ndim)]
    return split(x, max(1, -(-length // chunks)), dim)


@method
def unbind(x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along dim, without that dimension."""
    dim = one_dim("unbind", dim, x.ndim)
    return tuple(select(x, dim, i) for i in range(x.shape[dim]))


@method
def narrow(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """x[..., start : start + length, ...] along dim; a view."""
    return x[(slice(None),) * dim + (slice(start, start + length),)]


@method
def select(x: Tensor, dim: int, index: int) -> Tensor:
    """x[..., index, ...] along dim; a view without that dimension."""
    return x[(slice(None),) * one_dim("select", dim, x.ndim) + (index,)]


@method
def repeat(x: Tensor, *repeats: Any) -> Tensor:
    """The tensor tiled: repeats[i] copies along dimension i (new dimensions in front)."""
    counts = as_shape("repeat", repeats)
    if len(counts) < x.ndim:
        raise ShapeError(f"repeat: expected at least {x.ndim} counts; got {counts}")
    lengths = (1,) * (len(counts) - x.ndim) + x.shape
    spread = reshape(x, [n for length in lengths for n in (1, length)])
    wide = expand(spread, [n for pair in zip(counts, lengths, strict=True) for n in pair])
    return reshape(wide, [c * n for c, n in zip(counts, lengths, strict=True)])


@method
def repeat_interleave(x: Tensor, repeats: int | Tensor, dim: int | None = None) -> Tensor:
    """Each element along dim repeated in place; without dim as if flat."""
    if dim is None:
        return repeat_interleave(reshape(x, -1), repeats, 0)
    dim = one_dim("repeat_interleave", dim, x.ndim)
    counts = repeats.data if isinstance(repeats, Tensor) else repeats
    index = np.repeat(np.arange(x.shape[dim]), counts)
    return x.index_select(dim, Tensor(index))


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


_windows = linear(
    "unfold",
    lambda x, *, dim, size, step: _sliding(x, dim, size, step),
    lambda grad, shape, dim, size, step: _fold(grad, shape=shape, dim=dim, size=size, step=step),
    formula=r"y_{ij} = x_{si + j}",
    samples=lambda: [
        sample(real(2, 7), dim=1, size=3, step=2),
        sample(real(5, 2), dim=0, size=2, step=1),
    ],
    may_view=True,
    moves_data=True,
)


def _sliding(x: np.ndarray, dim: int, size: int, step: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, size, dim)
    return windows[(slice(None),) * dim + (slice(None, None, step),)]


def _overlap_add(
    x: np.ndarray, *, shape: tuple[int, ...], dim: int, size: int, step: int
) -> np.ndarray:
    out = np.zeros(shape, x.dtype)
    moved = np.moveaxis(out, dim, -1)
    parts = np.moveaxis(x, dim, -2)
    count = parts.shape[-2]
    for j in range(size):
        moved[..., j : j + step * (count - 1) + 1 : step] += parts[..., j]
    return out


_fold: Primitive = linear(
    "fold",
    _overlap_add,
    lambda grad, dim, size, step: _windows(grad, dim=dim, size=size, step=step),
    formula=r"y_k = \sum_{si + j = k} x_{ij}",
    samples=lambda: [sample(real(2, 3, 3), shape=(2, 7), dim=1, size=3, step=2)],
)


@method
def unfold(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Windows of length size, every step elements along a dimension, as a new last dimension.

    A view. Its transpose adds overlapping windows. In PyTorch: Tensor.unfold.
    """
    dim = one_dim("unfold", dimension, x.ndim)
    if not 0 < size <= x.shape[dim] or step < 1:
        raise ShapeError(
            f"unfold: expected 0 < size <= {x.shape[dim]} and step >= 1; got size {size}, step "
            f"{step}"
        )
    return _windows(x, dim=dim, size=size, step=step)
