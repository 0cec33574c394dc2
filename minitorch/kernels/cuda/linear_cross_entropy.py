"""The head's product and its loss on the device, in chunks (minitorch/kernels/chunked_head.py).

Chunks are larger than on the CPU: each has to keep a whole GPU busy.
"""

from typing import Any

from minitorch.backend import bfloat16, float16, float32
from minitorch.kernels.chunked_head import Device, backward, forward
from minitorch.kernels.cuda.cross_entropy import cross_entropy, cross_entropy_backward
from minitorch.kernels.cuda.elementwise import cast
from minitorch.kernels.cuda.extension import FLOATS, device_kernel, empty
from minitorch.kernels.cuda.matmul import matmul
from minitorch.kernels.reference import linear_cross_entropy as reference
from minitorch.kernels.reference.linear_cross_entropy import Gradients

Array = Any


@device_kernel("linear_cross_entropy")
def linear_cross_entropy(
    x: Array,
    weight: Array,
    target: Array,
    bias: Array | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    lower: Any | None = None,
    ahead: tuple[bool, bool, bool] = (False, False, False),
) -> tuple[Array, Array, Gradients]:
    """The reference's, in chunks."""
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "reduction": reduction,
        "lower": lower,
    }
    if not _takes(x, weight, lower):
        return reference.linear_cross_entropy(x, weight, target, bias, ahead=ahead, **options)
    return forward(_DEVICE, x, weight, target, bias, ahead=ahead, **options)


@device_kernel("linear_cross_entropy_backward")
def linear_cross_entropy_backward(
    grad: Array,
    x: Array,
    weight: Array,
    target: Array,
    bias: Array | None,
    log_normaliser: Array,
    *,
    needs: tuple[bool, bool, bool],
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    lower: Any | None = None,
) -> Gradients:
    """The reference's, in chunks."""
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "reduction": reduction,
        "lower": lower,
    }
    arrays = grad, x, weight, target, bias, log_normaliser
    if not _takes(x, weight, lower):
        return reference.linear_cross_entropy_backward(*arrays, needs=needs, **options)
    return backward(_DEVICE, *arrays, needs=needs, **options)


def _takes(x: Array, weight: Array, lower: Any) -> bool:
    return (
        x.dtype in FLOATS
        and weight.dtype == x.dtype
        and (lower is None or (lower in (bfloat16, float16) and x.dtype == float32))
        and x.size > 0
        and weight.size > 0
    )


def _differentiate(
    grad: Array, logits: Array, target: Array, log_normaliser: Array, dtype: Any, **options: Any
) -> Array:
    dlogits = cross_entropy_backward(
        grad, logits, target, log_normaliser, reduction="sum", out=logits, **options
    )
    return dlogits if dlogits.dtype == dtype else cast(dlogits, dtype=dtype)


_DEVICE = Device(
    matmul=matmul,
    cross_entropy=cross_entropy,
    differentiate=_differentiate,
    cast=cast,
    empty=empty,
    least_rows=1024,
    chunk_bytes=64 << 20,
)
