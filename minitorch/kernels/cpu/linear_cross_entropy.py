"""The head's product and its loss on the CPU, in chunks (minitorch/kernels/chunked_head.py).

The size of a chunk is a bargain. Each one reads the weight twice, and reads and writes dweight:
four times the weight's bytes through memory, which few rows cannot hide. With 50257 classes and 768
features, on two cores, chunks of 64 rows took nearly half as long again as chunks of 256, chunks of
128 a tenth longer, and 512 rows gained nothing more. So a chunk has 256 rows, or more where 4 MiB
hold more; with 768 features it is a third as large as the weight.
"""

from typing import Any

import numpy as np

from minitorch.backend import bfloat16, float32
from minitorch.kernels.chunked_head import Device, kernels
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.cross_entropy import cross_entropy, cross_entropy_backward
from minitorch.kernels.cpu.elementwise import cast
from minitorch.kernels.cpu.matmul import matmul
from minitorch.kernels.table import register

Array = np.ndarray


def _takes(x: Array, weight: Array, lower: np.dtype | None) -> bool:
    return (
        x.dtype in FLOATS
        and weight.dtype == x.dtype
        and (lower is None or (lower == bfloat16 and x.dtype == float32))
    )


def _differentiate(
    grad: Array,
    logits: Array,
    target: Array,
    log_normaliser: Array,
    dtype: np.dtype,
    **options: Any,
) -> Array:
    out = logits
    if dtype == bfloat16:  # each row in the first half of its own memory
        out = logits.view(bfloat16)[:, : logits.shape[1]]
    return cross_entropy_backward(
        grad, logits, target, log_normaliser, reduction="sum", out=out, **options
    )


_DEVICE = Device(
    takes=_takes,
    matmul=matmul,
    cross_entropy=cross_entropy,
    differentiate=_differentiate,
    cast=cast,
    empty=lambda like, shape, dtype: np.empty(shape, dtype),
    least_rows=256,
    chunk_bytes=4 << 20,
)
_forward, _backward = kernels(_DEVICE)
register("linear_cross_entropy", "cpu", half=(bfloat16,))(_forward)
register("linear_cross_entropy_backward", "cpu", half=(bfloat16,))(_backward)
