"""Arrays on which primitives are checked: small, of odd shapes, and the same every time.

Each function draws float64 values from a region in which a derivative is well behaved: `real`
everywhere, `positive` away from zero, `unit` inside of (-1, 1), `distinct` with gaps between the
values and around zero and the half integers, so that no kink, tie or step lies within reach of a
finite difference.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minitorch.ops.definition import Sample


def real(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal values."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    """Values in [0.5, 2]."""
    return np.random.default_rng([seed, *shape]).uniform(0.5, 2.0, shape)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    """Values in [-0.9, 0.9]."""
    return np.random.default_rng([seed, *shape]).uniform(-0.9, 0.9, shape)


def distinct(*shape: int, seed: int = 0) -> np.ndarray:
    """A shuffled grid of spacing 0.3, off zero and off every half integer by 0.05 or more."""
    count = int(np.prod(shape))
    grid = 0.3 * (np.arange(count) - count // 2) + 0.1
    nearest = np.round(2 * grid) / 2
    grid = np.where(np.abs(grid - nearest) < 0.05, nearest + 0.06, grid)
    return np.random.default_rng([seed, *shape]).permutation(grid).reshape(shape)


def integers(high: int, *shape: int, seed: int = 0) -> np.ndarray:
    """int64 values in [0, high)."""
    return np.random.default_rng([seed, high, *shape]).integers(0, high, shape)


def mask(*shape: int, seed: int = 0) -> np.ndarray:
    """Random truth values."""
    return np.random.default_rng([seed, *shape]).random(shape) < 0.5


Region = Callable[..., np.ndarray]


def unary(region: Region, *singular: float) -> Callable[[], list[Sample]]:
    """Samples of a function of one tensor, and points where its derivative is a convention."""

    def samples() -> list[Sample]:
        shapes: list[tuple[int, ...]] = [(3, 4), (), (2, 1, 3), (0, 2)]
        points = [Sample((region(*shape),)) for shape in shapes]
        if singular:
            points.append(Sample((np.array(singular),), singular=True))
        return points

    return samples


def binary(a: Region, b: Region) -> Callable[[], list[Sample]]:
    """Samples of a function of two tensors: equal shapes, broadcasting both ways, numbers."""

    def samples() -> list[Sample]:
        pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
            ((3, 4), (3, 4)),
            ((3, 4), (4,)),
            ((3, 1), (2, 1, 4)),
            ((), (2, 3)),
            ((), ()),
        ]
        points = [Sample((a(*left), b(*right, seed=1))) for left, right in pairs]
        return [*points, Sample((a(3, 4), 1.5)), Sample((1.5, b(3, 4, seed=1)))]

    return samples


def sample(*inputs: Any, singular: bool = False, **meta: Any) -> Sample:
    """A Sample, with its options as keyword arguments."""
    return Sample(inputs, meta, singular)
