"""Lightning attention (csrc/cpu/kernels/lightning.cpp): a thread takes one head of one text."""

import numpy as np

from minitorch.backend import float32, float64
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import lightning as reference
from minitorch.kernels.table import register

Array = np.ndarray


@register("lightning_attention", "cpu")
def lightning_attention(x: Array, *, slopes: tuple[float, ...], block_size: int) -> Array:
    """The reference's."""
    if not _takes(x):
        return reference.lightning_attention(x, slopes=slopes, block_size=block_size)
    out = np.empty((*x.shape[:2], x.shape[2] // 3), x.dtype)
    extension.lightning_attention(np.ascontiguousarray(x), np.array(slopes), out, block_size)
    return out


@register("lightning_attention_backward", "cpu")
def lightning_attention_backward(
    grad: Array, x: Array, *, slopes: tuple[float, ...], block_size: int
) -> Array:
    """The reference's."""
    if not _takes(x) or grad.dtype != x.dtype:
        return reference.lightning_attention_backward(grad, x, slopes=slopes, block_size=block_size)
    dx = np.empty(x.shape, x.dtype)
    given = np.ascontiguousarray(grad), np.ascontiguousarray(x), np.array(slopes)
    extension.lightning_attention_backward(*given, dx, block_size)
    return dx


def _takes(x: Array) -> bool:
    return x.dtype in (float32, float64) and x.size > 0
