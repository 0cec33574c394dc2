"""Tensors from nothing: constants, ranges and random draws. All are leaves."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch import backend, random
from minitorch.errors import ConfigError, DtypeError, ShapeError
from minitorch.ops.dims import as_shape
from minitorch.tensor import Tensor, method

Generator = random.Generator


def _finish(array: np.ndarray, requires_grad: bool) -> Tensor:
    return Tensor(array, requires_grad=requires_grad)


def _dtype(dtype: Any) -> np.dtype:
    return backend.DEFAULT_FLOAT if dtype is None else backend.as_dtype(dtype)


def zeros(*shape: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of shape."""
    return _finish(np.zeros(as_shape("zeros", shape), _dtype(dtype)), requires_grad)


def ones(*shape: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of shape."""
    return _finish(np.ones(as_shape("ones", shape), _dtype(dtype)), requires_grad)


def empty(*shape: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Memory of shape with arbitrary values."""
    return _finish(np.empty(as_shape("empty", shape), _dtype(dtype)), requires_grad)


def full(
    shape: Sequence[int], fill_value: Any, dtype: Any = None, requires_grad: bool = False
) -> Tensor:
    """One value everywhere; the dtype follows the value unless given."""
    dtype = backend.scalar_dtype(fill_value) if dtype is None else backend.as_dtype(dtype)
    return _finish(
        np.full(tuple(shape), backend.cast(np.asarray(fill_value), dtype)), requires_grad
    )


def zeros_like(x: Tensor, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of the shape and dtype of x."""
    return zeros(x.shape, dtype=dtype or x.dtype, requires_grad=requires_grad)


def ones_like(x: Tensor, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of the shape and dtype of x."""
    return ones(x.shape, dtype=dtype or x.dtype, requires_grad=requires_grad)


def full_like(x: Tensor, fill_value: Any, dtype: Any = None) -> Tensor:
    """One value everywhere, in the shape and dtype of x."""
    return full(x.shape, fill_value, dtype=dtype or x.dtype)


def empty_like(x: Tensor, dtype: Any = None) -> Tensor:
    """Arbitrary values in the shape and dtype of x."""
    return empty(x.shape, dtype=dtype or x.dtype)


@method
def new_zeros(x: Tensor, *shape: Any) -> Tensor:
    """Zeros of shape in the dtype of x."""
    return zeros(*shape, dtype=x.dtype)


def arange(start: Any, end: Any = None, step: Any = 1, dtype: Any = None) -> Tensor:
    """start, start + step, ... below end; arange(end) starts at 0. Integers give int64."""
    if end is None:
        start, end = 0, start
    if step == 0:
        raise ConfigError("arange: expected a step other than 0")
    if dtype is None:
        dtype = (
            backend.int64
            if all(isinstance(v, int) for v in (start, end, step))
            else backend.DEFAULT_FLOAT
        )
    return Tensor(np.arange(start, end, step), dtype=dtype)


def linspace(start: float, end: float, steps: int, dtype: Any = None) -> Tensor:
    """`steps` values at equal distances, both ends included."""
    return Tensor(np.linspace(start, end, steps), dtype=_dtype(dtype))


def eye(n: int, m: int | None = None, dtype: Any = None) -> Tensor:
    """The identity matrix, (n, m or n)."""
    return Tensor(np.eye(n, m, dtype=_dtype(dtype)))


def _draw(generator: Generator | None) -> np.random.Generator:
    return (generator or random.default_generator).draw()


def _floats(array: np.ndarray, dtype: Any, requires_grad: bool) -> Tensor:
    wanted = _dtype(dtype)
    if not backend.is_float(wanted):
        raise DtypeError(f"random: expected a floating dtype; got {wanted}")
    return _finish(array.astype(wanted, copy=False), requires_grad)


def randn(
    *shape: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Independent standard normal values of shape."""
    wide = np.float64 if _dtype(dtype) == backend.float64 else np.float32
    values = _draw(generator).standard_normal(as_shape("randn", shape), wide)
    return _floats(np.asarray(values), dtype, requires_grad)


def rand(
    *shape: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Independent uniform values in [0, 1) of shape."""
    wide = np.float64 if _dtype(dtype) == backend.float64 else np.float32
    values = _draw(generator).random(as_shape("rand", shape), wide)
    return _floats(np.asarray(values), dtype, requires_grad)


def randn_like(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Standard normal values of the shape and dtype of x."""
    return randn(x.shape, generator=generator, dtype=x.dtype)


def rand_like(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Uniform values in [0, 1) of the shape and dtype of x."""
    return rand(x.shape, generator=generator, dtype=x.dtype)


def randint(
    low: int,
    high: int | Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform int64 values in [low, high) of shape; randint(high, shape) starts at 0."""
    if shape is None:
        low, high, shape = 0, low, high  # type: ignore[assignment]
    if not isinstance(shape, Sequence) or not isinstance(high, int) or low >= high:
        raise ConfigError(
            f"randint: expected low < high and a shape; got low {low}, high {high}, shape {shape}"
        )
    return Tensor(np.asarray(_draw(generator).integers(low, high, tuple(shape))))


def randperm(n: int, generator: Generator | None = None) -> Tensor:
    """A random order of 0, ..., n - 1."""
    return Tensor(_draw(generator).permutation(n))


def bernoulli(p: Tensor, generator: Generator | None = None) -> Tensor:
    """1 with probability p, else 0, in the shape and dtype of p."""
    return Tensor((_draw(generator).random(p.shape) < p.data).astype(p.dtype))


def multinomial(
    probs: Tensor,
    num_samples: int,
    replacement: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Indices drawn in proportion to weights that need not add up to 1: (..., num_samples).

    probs: (classes,) or (rows, classes), not negative. Without replacement each index comes at
    most once a row (Gumbel's trick: the largest of log p + Gumbel noise).
    """
    weights = probs.data.astype(np.float64)
    available = (weights > 0).sum(-1)
    if probs.ndim not in (1, 2) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ShapeError(
            "multinomial: expected finite weights, not negative, of 1 or 2 dimensions; got shape "
            f"{probs.shape}"
        )
    if (available < (1 if replacement else num_samples)).any():
        raise ShapeError(
            f"multinomial: a row has fewer than {num_samples} classes of positive weight; pass "
            "replacement=True"
        )
    draw = _draw(generator)
    if not replacement and num_samples > 1:
        with np.errstate(divide="ignore"):
            keys = np.log(weights) + draw.gumbel(size=weights.shape)
        return Tensor(np.argsort(-keys, -1, kind="stable")[..., :num_samples].copy())
    edges = np.cumsum(weights, -1)
    points = draw.random((*weights.shape[:-1], num_samples)) * edges[..., -1:]
    rows = zip(edges.reshape(-1, edges.shape[-1]), points.reshape(-1, num_samples), strict=True)
    index = np.array([np.searchsorted(row, at, side="right") for row, at in rows], np.int64)
    return Tensor(index.reshape(points.shape))
