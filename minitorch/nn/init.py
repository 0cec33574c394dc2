"""Initial values of parameters, written in place.

What they are for: if every layer keeps the variance of what passes through it, forwards and
backwards, a deep network starts neither exploding nor vanishing. A linear layer y = W x sums
fan_in independent terms, so Var(y) = fan_in Var(W) Var(x), and Var(W) = 1 / fan_in keeps the
activations' variance; the gradients' is kept by 1 / fan_out.

    xavier   Var(W) = gain² 2 / (fan_in + fan_out)   a compromise; Glorot & Bengio 2010
    kaiming  Var(W) = gain² / fan_in                 gain² = 2 for ReLU, which drops half of the
                                                     variance; He et al. 2015 (arXiv 1502.01852)

A weight is (out, in, *kernel): fan_in = in * |kernel|, fan_out = out * |kernel|. A uniform
distribution over [-b, b] has variance b² / 3. Numbers come from `generator`, or else from the
global one.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minitorch import backend
from minitorch import random as streams
from minitorch.errors import ConfigError, ShapeError
from minitorch.random import Generator
from minitorch.tensor import Tensor

_allocating = True


@contextlib.contextmanager
def unallocated() -> Iterator[None]:
    """Within the block, layers are made with parameters that have a shape and no memory.

    They read as 0 and cannot be written; initialisers pass over them. For counting what a model of
    any size would hold, and for one whose parameters are going to be loaded. In PyTorch:
    torch.device("meta").
    """
    global _allocating
    before, _allocating = _allocating, False
    try:
        yield
    finally:
        _allocating = before


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory for a parameter, not yet initialised; none of it where `unallocated()` is on."""
    dtype = backend.as_dtype(dtype)
    return np.empty(shape, dtype) if _allocating else np.broadcast_to(np.zeros((), dtype), shape)


def _writes(initialise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The initialiser, which passes over tensors that have no memory."""

    @functools.wraps(initialise)
    def unless_unallocated(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return initialise(tensor, *args, **kwargs) if _allocating else tensor

    return unless_unallocated


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1."""
    return constant_(tensor, 1.0)


@_writes
def constant_(tensor: Tensor, value: float) -> Tensor:
    """Fill with value."""
    return _write(tensor, np.asarray(value))


@_writes
def uniform_(
    tensor: Tensor, low: float = 0.0, high: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill from the uniform distribution over [low, high)."""
    draw = _draw(generator)
    return _fill(tensor, lambda count: low + (high - low) * draw.random(count))


@_writes
def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill from the normal distribution."""
    draw = _draw(generator)
    return _fill(tensor, lambda count: mean + std * draw.standard_normal(count))


@_writes
def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Fill from the normal distribution restricted to [low, high], bounds in absolute terms.

    By rejection: what falls outside is drawn again. Raises ConfigError for an interval that holds
    less than a hundredth of the distribution.
    """
    root = std * math.sqrt(2)
    inside = (math.erf((high - mean) / root) - math.erf((low - mean) / root)) / 2
    if not inside > 0.01:
        raise ConfigError(
            "trunc_normal_: expected an interval that holds at least 1% of the distribution; got "
            f"[{low}, {high}] for mean {mean} and std {std}"
        )
    draw = _draw(generator)
    values = draw.normal(mean, std, tensor.shape)
    outside = (values < low) | (values > high)
    while outside.any():
        values[outside] = draw.normal(mean, std, np.count_nonzero(outside))
        outside = (values < low) | (values > high)
    return _write(tensor, values)


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Uniform over [-b, b], b = gain sqrt(6 / (fan_in + fan_out))."""
    bound = gain * math.sqrt(6 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with std gain sqrt(2 / (fan_in + fan_out))."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(fans(tensor))), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Uniform over [-b, b], b = gain sqrt(3 / fan); a is the leaky ReLU's negative slope."""
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Normal with std gain / sqrt(fan); a is the leaky ReLU's negative slope."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ConfigError(f"kaiming: expected mode 'fan_in' or 'fan_out'; got {mode!r}")
    fan_in, fan_out = fans(tensor)
    return calculate_gain(nonlinearity, a) / math.sqrt(fan_in if mode == "fan_in" else fan_out)


@_writes
def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """gain times a random matrix with orthonormal rows (or columns, if there are more rows).

    tensor: (rows, ...), what follows the first dimension counting as columns. Q of a QR
    decomposition with R's diagonal made positive is uniformly distributed. Source: Saxe et al.
    2013 (arXiv 1312.6120).
    """
    if tensor.ndim < 2:
        raise ShapeError(f"orthogonal_: expected at least 2 dimensions; got shape {tensor.shape}")
    rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
    noise = _draw(generator).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(noise)
    q *= np.sign(np.diag(r))
    return _write(tensor, gain * (q if rows >= columns else q.T).reshape(tensor.shape))


GAINS: dict[str, Callable[[float], float]] = {
    "linear": lambda _: 1.0,
    "sigmoid": lambda _: 1.0,
    "tanh": lambda _: 5 / 3,
    "relu": lambda _: math.sqrt(2),
    "leaky_relu": lambda slope: math.sqrt(2 / (1 + slope**2)),
}


def calculate_gain(nonlinearity: str, param: float = 0.01) -> float:
    """What a weight's std is multiplied by to make up for the nonlinearity; as in PyTorch."""
    if nonlinearity not in GAINS:
        raise ConfigError(f"gain: expected one of {', '.join(GAINS)}; got {nonlinearity!r}")
    return GAINS[nonlinearity](param)


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, *kernel)."""
    if tensor.ndim < 2:
        raise ShapeError(
            f"init: expected a weight of at least 2 dimensions, (out, in, ...); got shape "
            f"{tensor.shape}"
        )
    out_features, in_features, *kernel = tensor.shape
    size = math.prod(kernel)
    return in_features * size, out_features * size


def _draw(generator: Generator | None) -> np.random.Generator:
    return (streams.default_generator if generator is None else generator).draw()


_BLOCK = 1 << 16


def _fill(tensor: Tensor, draw: Callable[[int], np.ndarray]) -> Tensor:
    """Write draw(count) for one block of elements after the other.

    The numbers are those of one large draw, without float64 arrays of the tensor's size.
    """
    if tensor.device != "cpu" or not tensor.data.flags.c_contiguous:
        return _write(tensor, draw(tensor.numel()).reshape(tensor.shape))
    flat = tensor.data.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        block[...] = draw(block.size)
    tensor.bump_version()
    return tensor


def _write(tensor: Tensor, values: np.ndarray) -> Tensor:
    """Copy values into the tensor's memory, which the tape need not know of: it is a leaf."""
    tensor.data[...] = backend.to_device(values.astype(tensor.dtype), tensor.device)
    tensor.bump_version()
    return tensor
