"""The ladder of matrix products: how fast each step is on a GPU, or what it asks of the emulator.

Steps in float32 are beside cuBLAS in float32, those on tensor cores in bfloat16 beside cuBLAS in
float16, since CuPy has no bfloat16. In the emulator nothing is timed, but counted, for a product of
a size that it makes in a second.
"""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from minitorch.backend import bfloat16, float16, float32, to_device
from minitorch.errors import ConfigError
from minitorch.kernels import lookup
from minitorch.kernels.cuda.extension import is_available
from minitorch.kernels.cuda.ladder import LADDER, matmul_step
from minitorch.kernels.cuda.traffic import counted

_ROUNDS = 7
_SIZES = {"cuda": 4096, "simt": 128}


def ladder_table(seed: int) -> Table:
    """A row for each step: on a GPU its speed, in the emulator what it asks of the memories.

    Raises ConfigError where there is neither.
    """
    if is_available("cuda"):
        return _table("TFLOP/s", ("TFLOP/s", "of cuBLAS"), _speeds(seed), _SIZES["cuda"])
    if is_available("simt"):
        headings = "sectors read", "wavefronts", "bank conflicts"
        return _table("for 1000 multiply-adds", headings, _counts(seed), _SIZES["simt"])
    raise ConfigError(
        "bench matmul --ladder: expected the CUDA kernels or their emulator; got neither; install "
        "where there is a C++20 compiler, or nvcc and a GPU"
    )


def _table(
    title: str, headings: tuple[str, ...], rows: Iterator[tuple[str, ...]], size: int
) -> Table:
    table = Table(title=f"{size}³, {title}", title_justify="left", box=None, pad_edge=False)
    for heading in ("step", "dtype"):
        table.add_column(heading)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _steps() -> Iterator[tuple[str, Any]]:
    for kernel, steps in LADDER.items():
        for step in steps:
            yield step, float32 if kernel == "matmul" else bfloat16


def _operands(size: int, dtype: Any, device: str, seed: int) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(seed)
    x, y = (generator.standard_normal((size, size), np.float32) for _ in range(2))
    a, b = (to_device(each.astype(dtype), device) for each in (x, y))
    return a, b, to_device(np.empty((size, size), dtype), device)


def _speeds(seed: int) -> Iterator[tuple[str, ...]]:
    import cupy

    size = _SIZES["cuda"]
    peers = {
        dtype: _seconds(partial(cupy.matmul, a, b, out=out))
        for dtype in (float32, float16)
        for a, b, out in [_operands(size, dtype, "cuda", seed)]
    }
    for step, dtype in _steps():
        a, b, out = _operands(size, dtype, "cuda", seed)
        with matmul_step(step):
            took = _seconds(partial(lookup("matmul", "cuda"), a, b, out=out))
        peer = peers[float32 if dtype == float32 else float16]
        yield step, str(dtype), f"{2 * size**3 / took / 1e12:.1f}", f"{peer / took:.2f}"


def _seconds(call: Callable[[], Any]) -> float:
    """Of one call, by the device's clock; the median."""
    import cupy

    took = []
    for _ in range(_ROUNDS + 1):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        call()
        end.record()
        end.synchronize()
        took.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
    return statistics.median(took[1:])


def _counts(seed: int) -> Iterator[tuple[str, ...]]:
    size = _SIZES["simt"]
    for step, dtype in _steps():
        a, b, out = _operands(size, dtype, "simt", seed)
        with matmul_step(step), counted() as rows:
            lookup("matmul", "simt")(a, b, out=out)
        sectors = sum(
            row.transfers for row in rows if (row.memory, row.access) == ("global", "read")
        )
        wavefronts = sum(row.transfers for row in rows if row.memory == "shared")
        conflicts = sum(row.conflicts for row in rows)
        thousands = size**3 / 1000
        numbers = (f"{number / thousands:.3g}" for number in (sectors, wavefronts, conflicts))
        yield step, str(dtype), *numbers
