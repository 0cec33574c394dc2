r"""Cutting and joining: linear primitives between one tensor and its pieces.

They come in pairs that are each other's transpose: join and split, pad and slice, repeat and sum,
overlapping windows and the addition of overlapping windows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch import backend
from minitorch.errors import ShapeError
from minitorch.ops.conversion import to
from minitorch.ops.definition import Primitive
from minitorch.ops.dims import as_shape, one_dim
from minitorch.ops.layout import expand, reshape, unsqueeze
from minitorch.ops.masking import where
from minitorch.ops.primitive import linear
from minitorch.ops.samples import real, sample
from minitorch.tensor import Tensor, method

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
    out = np.zeros_like(x, shape=shape)
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
