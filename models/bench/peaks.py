"""What this machine can do at most, measured: the limits that stand beside every figure.

Arithmetic: multiply-adds in registers, nothing else, on all threads (csrc/cpu/kernels/peaks.cpp);
in bfloat16 by the instructions that products use: of tiles, of pairs, or float32's.
Bandwidth: every thread sums its part of an array many times larger than the caches. The best of
several tries, since a limit is what cannot be exceeded.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels import get_num_threads
from minitorch.kernels.cpu.extension import extension

ROUNDS = 200_000
ARRAY_BYTES = 1 << 28
LEAST_READ = 1 << 25
TRIES = 8


@dataclass(frozen=True)
class Peaks:
    """Multiply-adds (two operations each) and bytes read, per second, on `threads` threads."""

    threads: int
    float32_flops: float
    float64_flops: float
    bfloat16_flops: float
    read_bytes: float

    def to_json(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


def measure_peaks() -> Peaks | None:
    """The machine's limits with the current number of threads; None without compiled kernels."""
    if extension is None:
        return None
    threads = get_num_threads()
    flops = [_flops(dtype, threads) for dtype in (float32, float64, bfloat16)]
    read = measure_read(ARRAY_BYTES)
    assert read is not None
    return Peaks(threads, flops[0], flops[1], flops[2], read)


def measure_read(array_bytes: int) -> float | None:
    """Bytes per second that all threads together read of an array that they read again and again.

    array_bytes: 4096 for each thread at least. None without compiled kernels.
    """
    if extension is None:
        return None
    x = np.ones(array_bytes // 4, np.float32)
    out = np.zeros(get_num_threads(), np.float32)
    passes = max(1, LEAST_READ // array_bytes)
    seconds = _best(partial(extension.peak_read, x, out, passes))
    return passes * x.nbytes / seconds


def _flops(dtype: np.dtype[Any], threads: int) -> float:
    out, operations = np.zeros(threads, dtype), np.zeros(1)
    seconds = _best(partial(extension.peak_arithmetic, out, operations, ROUNDS))
    return operations.item() * ROUNDS * threads / seconds


def _best(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
