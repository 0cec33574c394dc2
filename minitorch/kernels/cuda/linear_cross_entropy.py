"""The head's product and its loss on the device, in chunks (minitorch/kernels/chunked_head.py).

Chunks are larger than on the CPU: each has to keep a whole GPU busy.
"""

from typing import Any

from minitorch.backend import bfloat16, float16, float32
from minitorch.kernels.chunked_head import Device, kernels
from minitorch.kernels.cuda.cross_entropy import cross_entropy, cross_entropy_backward
from minitorch.kernels.cuda.elementwise import cast, cast_in_lines
from minitorch.kernels.cuda.extension import FLOATS, device_kernel, empty
from minitorch.kernels.cuda.matmul import matmul

Array = Any


def _takes(x: Array, weight: Array, lower: Any) -> bool:
    return (
        x.dtype in FLOATS
        and weight.dtype == x.dtype
        and (lower is None or (lower in (bfloat16, float16) and x.dtype == float32))
    )


def _differentiate(
    grad: Array, logits: Array, target: Array, log_normaliser: Array, dtype: Any, **options: Any
) -> Array:
    dlogits = cross_entropy_backward(
        grad, logits, target, log_normaliser, reduction="sum", out=logits, **options
    )
    return dlogits if dlogits.dtype == dtype else cast_in_lines(dlogits, dtype=dtype)


_DEVICE = Device(
    takes=_takes,
    matmul=matmul,
    cross_entropy=cross_entropy,
    differentiate=_differentiate,
    cast=cast,
    empty=empty,
    least_rows=1024,
    chunk_bytes=64 << 20,
)
_forward, _backward = kernels(_DEVICE)
device_kernel("linear_cross_entropy")(_forward)
device_kernel("linear_cross_entropy_backward")(_backward)
