"""The grouped products of a mixture of experts, of 8-bit floats (scaled_mm.py).

Blocks lie along the dimension of the sum: along k, and for the gradient of the weights along the
rows of both operands, where each group begins a block of its own. Everything is rounded anew for
each product, as in scaled_linear.py. Source: DeepSeek-V3 2024 (arXiv 2412.19437), section 3.3.1.
"""

from typing import Any

import numpy as np

from minitorch.kernels.reference.experts import groups_of
from minitorch.kernels.reference.scaled_mm import (
    BLOCK,
    grouped_scaled_mm,
    quantize_blocks,
    scaled_mm,
)
from minitorch.kernels.table import register

Array = Any


@register("scaled_grouped_mm", "numpy")
def scaled_grouped_mm(x: Array, weight: Array, offs: Array) -> Array:
    """`grouped_mm` of operands in 8 bits. x: (rows, k); weight: (groups, k, n); offs: (groups,)."""
    left, left_scales = quantize_blocks(x)
    pairs = [quantize_blocks(one.T, rows=BLOCK) for one in weight]
    right, right_scales = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    return grouped_scaled_mm(left, right, left_scales, right_scales, offs, dtype=x.dtype)


@register("scaled_grouped_outer", "numpy")
def scaled_grouped_outer(x: Array, grad: Array, offs: Array) -> Array:
    """`grouped_outer` of operands in 8 bits. x: (rows, m); grad: (rows, n); offs: (groups,)."""
    (left, left_scales), (right, right_scales) = (quantize_groups(a, offs) for a in (x, grad))
    return grouped_scaled_outer(left, right, left_scales, right_scales, offs, dtype=x.dtype)


@register("quantize_groups", "numpy")
def quantize_groups(x: Array, offs: Array) -> tuple[Array, Array]:
    """quantize_blocks(x_eᵀ) of the rows of each group, side by side, each in whole blocks of 128.

    x: (rows, columns). Returns q (columns, 128 blocks), scales (columns, blocks), for the
    rows // 128 + groups blocks that there may be; zeros fill them up, and those that are too many.
    """
    blocks = len(x) // BLOCK + len(offs)
    padded, at = np.zeros((x.shape[1], blocks * BLOCK), x.dtype), 0
    for group in groups_of(offs):
        padded[:, at : at + group.stop - group.start] = x[group].T
        at += blocks_of(group) * BLOCK
    return quantize_blocks(padded)


def blocks_of(group: slice) -> int:
    """How many blocks a group's rows take."""
    return -(-(group.stop - group.start) // BLOCK)


@register("grouped_scaled_outer", "numpy")
def grouped_scaled_outer(
    x: Array, grad: Array, x_scales: Array, grad_scales: Array, offs: Array, *, dtype: Any
) -> Array:
    """Of each group the scaled_mm of its blocks, which quantize_groups has made: (groups, m, n)."""
    out, at = np.empty((len(offs), len(x), len(grad)), dtype), 0
    for e, group in enumerate(groups_of(offs)):
        blocks = slice(at, at := at + blocks_of(group))
        columns = slice(blocks.start * BLOCK, blocks.stop * BLOCK)
        operands = x[:, columns], grad[:, columns], x_scales[:, blocks], grad_scales[:, blocks]
        out[e] = scaled_mm(*operands, dtype=dtype)
    return out
