"""Collectives: arrays of one shape, one for each rank, and what every rank gets.

Sums are made in the order of the ranks, in float32 for half precision, and are rounded once. The
`spaces`, and how a kernel goes about it, say nothing about the result: on the CPU a loop will do.
"""

from typing import Any

import numpy as np

from minitorch.backend import float32, half_precision
from minitorch.kernels.table import register

Array = Any


@register("all_reduce", "numpy")
def all_reduce(
    spaces: list[Array],
    arrays: list[Array],
    *,
    rank: int = 0,
    average: bool = False,
    algorithm: str | None = None,
    blocks: int | None = None,
    out: list[Array] | None = None,
) -> list[Array]:
    """For each rank the sum of all arrays, or their mean; written into `out` where it is given.

    spaces: of all ranks, what they reach of each other's memory (`collective_space`). arrays: of
    those ranks that are here, from `rank` on. algorithm: "one-shot", "two-shot" or "ring"; None
    takes what the size asks for. blocks: of each rank's grid; None: by the size.
    """
    total = _total(arrays, average)
    return [_written(total, x) for x in out] if out else [total.copy() for _ in arrays]


@register("reduce_scatter", "numpy")
def reduce_scatter(
    spaces: list[Array],
    arrays: list[Array],
    *,
    rank: int = 0,
    average: bool = False,
    blocks: int | None = None,
) -> list[Array]:
    """For rank r of R, part r of the sum of all arrays: (R n, ...) -> (n, ...)."""
    return [part.copy() for part in np.split(_total(arrays, average), len(arrays))]


@register("all_gather", "numpy")
def all_gather(
    spaces: list[Array], arrays: list[Array], *, rank: int = 0, blocks: int | None = None
) -> list[Array]:
    """For each rank all arrays, one after the other: (n, ...) -> (R n, ...), of any dtype."""
    return [np.concatenate([np.atleast_1d(x) for x in arrays]) for _ in arrays]


@register("broadcast", "numpy")
def broadcast(
    spaces: list[Array],
    arrays: list[Array],
    *,
    rank: int = 0,
    source: int = 0,
    blocks: int | None = None,
    out: list[Array] | None = None,
) -> list[Array]:
    """For each rank the array of rank `source`; written into `out` where it is given."""
    given = arrays[source]
    return [_written(given, x) for x in out] if out else [given.copy() for _ in arrays]


def _total(arrays: list[Array], average: bool) -> Array:
    dtype = arrays[0].dtype
    wide = float32 if half_precision(dtype) else dtype
    total = arrays[0].astype(wide)
    for other in arrays[1:]:
        total = total + other.astype(wide, copy=False)
    if average:
        total = total / wide.type(len(arrays))
    return total.astype(dtype, copy=False)


def _written(x: Array, into: Array) -> Array:
    into[...] = x
    return into
