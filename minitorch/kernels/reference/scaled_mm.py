"""Matrix products of 8-bit floats with a scale for each block, as DeepSeek-V3 has them.

e4m3 has three bits for the fraction and four for the exponent: 256 numbers from -448 to 448, with
2^-9 the smallest above 0. Arrays of them are uint8, their bits. A block's scale makes its largest
number 448; blocks are 1 x 128 of activations, 128 x 128 of weights, so that one large number spoils
its neighbours alone. Source: DeepSeek-V3 2024 (arXiv 2412.19437), sections 3.3.1 and 3.3.2.
"""

from typing import Any

import ml_dtypes
import numpy as np

from minitorch.backend import array_module, float32
from minitorch.errors import ShapeError
from minitorch.kernels.reference.experts import groups_of
from minitorch.kernels.table import register

Array = Any

BLOCK = 128
"""Neighbours along k that share a scale, and of weights also rows."""
LARGEST = 448.0
_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


@register("quantize_blocks", "numpy")
def quantize_blocks(x: Array, *, rows: int = 1) -> tuple[Array, Array]:
    """x ~ q scale: q the nearest e4m3 to x / scale, as uint8; scale = max |x| / 448 of a block.

    x: (m, k); rows, of a block: 1 or 128. Returns q (m, k), scales (⌈m / rows⌉, ⌈k / 128⌉) in
    float32; a block of zeros has the smallest normal number for a scale.
    """
    check_rows(rows)
    m, k = x.shape
    down, across = -(-m // rows), -(-k // BLOCK)
    padded = np.zeros((down * rows, across * BLOCK), np.float32)
    padded[:m, :k] = x
    blocks = padded.reshape(down, rows, across, BLOCK)
    largest = np.fmax.reduce(np.abs(blocks), axis=(1, 3))
    scales = np.maximum(largest / np.float32(LARGEST), np.finfo(np.float32).tiny)
    q = np.clip(blocks / scales[:, None, :, None], -LARGEST, LARGEST)
    return _bits(q).reshape(padded.shape)[:m, :k], scales


def _bits(x: Array) -> Array:
    return x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def check_rows(rows: int) -> None:
    """Raises ShapeError unless a block has that many."""
    if rows not in (1, BLOCK):
        raise ShapeError(f"quantize_blocks: expected blocks of 1 or {BLOCK} rows; got {rows}")


@register("scaled_mm", "numpy")
def scaled_mm(
    a: Array, b: Array, a_scales: Array, b_scales: Array, *, dtype: Any = float32
) -> Array:
    """out[m, n] = Σ over blocks i of a_scales[m, i] b_scales[n / 128, i] Σ_k a[m, k] b[n, k].

    a: (m, k), b: (n, k), the bits of e4m3; a_scales: (m, ⌈k / 128⌉), b_scales: (⌈n / 128⌉,
    ⌈k / 128⌉), or (n, ⌈k / 128⌉) where each row of b has its own; or as many of each, (batch, ...).
    Returns (m, n), or (batch, m, n), in dtype. In PyTorch: scaled_mm with BlockWise1x128 and
    128x128, or both 1x128.
    """
    if a.ndim == 3:
        arrays = zip(a, b, a_scales, b_scales, strict=True)
        return array_module(a).stack([scaled_mm(*one, dtype=dtype) for one in arrays])
    check_shapes(a, b, a_scales, b_scales)
    xp = array_module(a)
    values = xp.asarray(_VALUES, dtype=a_scales.dtype)
    right_scales = b_scales if len(b_scales) == len(b) else b_scales.repeat(BLOCK, 0)[: len(b)]
    out = xp.zeros((len(a), len(b)), a_scales.dtype)
    for i in range(a_scales.shape[1]):
        block = slice(i * BLOCK, (i + 1) * BLOCK)
        product = values[a[:, block]] @ values[b[:, block]].T
        out += a_scales[:, i, None] * right_scales[None, :, i] * product
    return out.astype(dtype)


def check_shapes(a: Array, b: Array, a_scales: Array, b_scales: Array) -> None:
    """Raises ShapeError unless these are operands along k and their scales."""
    blocks = -(-a.shape[1] // BLOCK)
    right = (-(-len(b) // BLOCK), blocks), (len(b), blocks)
    fit = a_scales.shape == (len(a), blocks) and b_scales.shape in right
    if a.shape[1] != b.shape[1] or not fit:
        raise ShapeError(
            f"scaled_mm: expected a (m, k), b (n, k) and scales (m, ⌈k / {BLOCK}⌉), "
            f"(⌈n / {BLOCK}⌉, ⌈k / {BLOCK}⌉) or (n, ⌈k / {BLOCK}⌉); got {a.shape}, {b.shape}, "
            f"{a_scales.shape} and {b_scales.shape}"
        )


@register("grouped_scaled_mm", "numpy")
def grouped_scaled_mm(
    x: Array,
    weight: Array,
    x_scales: Array,
    weight_scales: Array,
    offs: Array,
    *,
    dtype: Any = float32,
) -> Array:
    """Of each group of rows the scaled_mm with its own weight, as a mixture of experts has them.

    x: (rows, k), weight: (groups, n, k), the bits of e4m3; x_scales: (rows, ⌈k / 128⌉),
    weight_scales: (groups, ⌈n / 128⌉, ⌈k / 128⌉); offs: (groups,), where groups end. Returns
    (rows, n) in dtype. The gradient of x is one, too, of its gradient and weights turned.
    """
    check_groups(x, weight, x_scales, weight_scales)
    parts = [
        scaled_mm(x[group], weight[e], x_scales[group], weight_scales[e], dtype=dtype)
        for e, group in enumerate(groups_of(offs))
    ]
    return array_module(x).concatenate(parts)


def check_groups(x: Array, weight: Array, x_scales: Array, weight_scales: Array) -> None:
    """Raises ShapeError unless these are rows and weights along k, and their scales."""
    blocks = -(-x.shape[1] // BLOCK)
    expected = (len(x), blocks), (len(weight), -(-weight.shape[1] // BLOCK), blocks)
    if x.shape[1] != weight.shape[2] or (x_scales.shape, weight_scales.shape) != expected:
        raise ShapeError(
            f"grouped_scaled_mm: expected x (rows, k), weight (groups, n, k) and scales (rows, "
            f"⌈k / {BLOCK}⌉), (groups, ⌈n / {BLOCK}⌉, ⌈k / {BLOCK}⌉); got {x.shape}, "
            f"{weight.shape}, {x_scales.shape} and {weight_scales.shape}"
        )
