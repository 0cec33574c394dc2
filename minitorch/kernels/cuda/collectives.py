"""Collectives between ranks on the device (csrc/cuda/collectives.cu), and which algorithm."""

from typing import Any

import numpy as np

from minitorch.errors import ConfigError, DtypeError
from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty

Array = Any

ALGORITHMS = ("one-shot", "two-shot", "ring")
MOST_RANKS = 8
SPACE_BYTES = 8 << 20
"""Of one rank: a 64th of it is how much a block tells the others at once."""


def collective_space(like: Array, size: int = SPACE_BYTES) -> Array:
    """A rank's space where `like` is, of `size` bytes: flags that nobody has set, and buffers."""
    space = empty(like, (size,), np.dtype(np.uint8))
    space.fill(0)
    return space


def choose_all_reduce(ranks: int, size: int) -> str:
    """The algorithm for arrays of so many bytes, where every rank reaches every other directly.

    ====== ================= =================
    ranks  one-shot          two-shot
    ====== ================= =================
    2      always            never
    3, 4   below 512 KiB     from there on
    5 to 8 below 256 KiB     from there on
    ====== ================= =================

    One-shot waits once and reads R - 1 arrays, two-shot waits twice and reads 2 (R - 1) / R of one.
    The thresholds are vLLM's, custom_all_reduce.cuh. A ring reads as little as two-shot and waits
    R - 1 times as often: it is for ranks that reach their neighbours alone, and for who asks.
    """
    if ranks <= 2:
        return "one-shot"
    return "one-shot" if size < (512 if ranks <= 4 else 256) << 10 else "two-shot"


@device_kernel("all_reduce")
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
    """The reference's; `algorithm` "ring" adds in another order, the same on all ranks."""
    _check_floats("all_reduce", arrays[0])
    algorithm = algorithm or choose_all_reduce(len(spaces), arrays[0].nbytes)
    if algorithm not in ALGORITHMS:
        raise ConfigError(
            f"all_reduce: expected an algorithm among {', '.join(ALGORITHMS)}; got {algorithm!r}"
        )
    how = [average, ALGORITHMS.index(algorithm)]
    return _same_shape("all_reduce", spaces, arrays, out, [rank, blocks or 0, *how])


@device_kernel("reduce_scatter")
def reduce_scatter(
    spaces: list[Array],
    arrays: list[Array],
    *,
    rank: int = 0,
    average: bool = False,
    blocks: int | None = None,
) -> list[Array]:
    """The reference's."""
    _check_floats("reduce_scatter", arrays[0])
    first, *rest = arrays[0].shape
    outs = [empty(x, (first // len(spaces), *rest)) for x in arrays]
    if outs[0].size:
        given = [contiguous(x) for x in arrays]
        call("reduce_scatter", spaces, given, outs, len(spaces), rank, blocks or 0, average)
    return outs


@device_kernel("all_gather")
def all_gather(
    spaces: list[Array], arrays: list[Array], *, rank: int = 0, blocks: int | None = None
) -> list[Array]:
    """The reference's."""
    first, *rest = arrays[0].shape or (1,)
    outs = [empty(x, (first * len(spaces), *rest)) for x in arrays]
    if outs[0].size:
        given = [_bytes(contiguous(x)) for x in arrays]
        call("all_gather", spaces, given, [_bytes(x) for x in outs], len(spaces), rank, blocks or 0)
    return outs


@device_kernel("broadcast")
def broadcast(
    spaces: list[Array],
    arrays: list[Array],
    *,
    rank: int = 0,
    source: int = 0,
    blocks: int | None = None,
    out: list[Array] | None = None,
) -> list[Array]:
    """The reference's."""
    return _same_shape("broadcast", spaces, arrays, out, [rank, blocks or 0, source])


def _same_shape(
    kernel: str,
    spaces: list[Array],
    arrays: list[Array],
    out: list[Array] | None,
    numbers: list[Any],
) -> list[Array]:
    """The kernel's results, in `out` where it is given, whatever the layout of these."""
    given = [contiguous(x) for x in arrays]
    fits = out is not None and all(x.flags.c_contiguous for x in out)
    outs = out if out is not None and fits else [empty(x, x.shape) for x in given]
    if given[0].size:
        flat = _bytes if kernel == "broadcast" else lambda x: x.reshape(-1)
        call(kernel, spaces, [*map(flat, given)], [*map(flat, outs)], len(spaces), *numbers)
    if out is not None and not fits:
        for into, x in zip(out, outs, strict=True):
            into[...] = x
        return out
    return outs


def _bytes(x: Array) -> Array:
    return x.reshape(-1).view(np.uint8)


def _check_floats(name: str, x: Array) -> None:
    if x.dtype not in FLOATS:
        raise DtypeError(f"{name}: expected a floating dtype; got {x.dtype}. Convert it with to()")
