"""The grouped products of a mixture of experts, of 8-bit floats, on the device (quantize.cu,
experts_wgmma.cu)."""

from typing import Any

from minitorch.backend import float32, int64, uint8
from minitorch.kernels.cuda.extension import call, contiguous, device_kernel, empty
from minitorch.kernels.cuda.scaled_mm import (
    grouped_scaled_mm,
    narrow,
    quantize_blocks,
    takes,
)
from minitorch.kernels.reference import scaled_experts as reference
from minitorch.kernels.reference.scaled_mm import BLOCK

Array = Any


@device_kernel("scaled_grouped_mm")
def scaled_grouped_mm(x: Array, weight: Array, offs: Array) -> Array:
    """The reference's."""
    left, left_scales = quantize_blocks(x)
    right, right_scales = _quantize_each(weight.swapaxes(1, 2))
    return grouped_scaled_mm(left, right, left_scales, right_scales, offs, dtype=x.dtype)


@device_kernel("scaled_grouped_outer")
def scaled_grouped_outer(x: Array, grad: Array, offs: Array) -> Array:
    """The reference's."""
    (left, left_scales), (right, right_scales) = (quantize_groups(a, offs) for a in (x, grad))
    return grouped_scaled_outer(left, right, left_scales, right_scales, offs, dtype=x.dtype)


@device_kernel("quantize_groups")
def quantize_groups(x: Array, offs: Array) -> tuple[Array, Array]:
    """The reference's; nothing waits to know how many rows a group has."""
    blocks, columns = len(x) // BLOCK + len(offs), x.shape[1]
    q = empty(x, (columns, blocks * BLOCK), uint8)
    scales = empty(x, (blocks, columns), float32).T  # a tile's columns have theirs side by side
    if q.size:
        call("quantize_groups", contiguous(narrow(x)), _ends(offs), q, scales)
    return q, scales


@device_kernel("grouped_scaled_outer")
def grouped_scaled_outer(
    x: Array, grad: Array, x_scales: Array, grad_scales: Array, offs: Array, *, dtype: Any
) -> Array:
    """The reference's; nothing waits to know how many rows a group has."""
    if not takes(x, grad, dtype):
        operands = x, grad, x_scales, grad_scales
        return reference.grouped_scaled_outer(*operands, offs, dtype=dtype)
    out = empty(x, (len(offs), len(x), len(grad)), dtype)
    x, grad = contiguous(x), contiguous(grad)
    call("grouped_scaled_outer_wgmma", x, grad, _ends(offs), out, x_scales, grad_scales)
    return out


def _quantize_each(weight: Array) -> tuple[Array, Array]:
    """quantize_blocks of each of (groups, n, k), with blocks of 128 x 128."""
    weight = narrow(weight)
    groups, n, k = weight.shape
    q = empty(weight, (groups, n, -(-k // 16) * 16), uint8)
    scales = empty(weight, (groups, -(-n // BLOCK), -(-k // BLOCK)), float32)
    for e in range(groups if weight.size else 0):
        call("quantize_blocks", weight[e], q[e], scales[e], BLOCK)
    return q[..., :k], scales


def _ends(offs: Array) -> Array:
    return contiguous(offs.astype(int64, copy=False))
