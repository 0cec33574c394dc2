"""Products of 8-bit floats with scales on the device (quantize.cu, scaled_mm_wgmma.cu,
experts_wgmma.cu)."""

from typing import Any

from minitorch.backend import array_module, beside, bfloat16, float16, float32, int64, uint8
from minitorch.kernels.cuda.extension import call, capability, contiguous, device_kernel, empty
from minitorch.kernels.cuda.ladder import lines
from minitorch.kernels.reference import scaled_mm as reference
from minitorch.kernels.reference.scaled_mm import BLOCK

_NARROW = (float32, bfloat16, float16)

Array = Any


@device_kernel("quantize_blocks")
def quantize_blocks(x: Array, *, rows: int = 1) -> tuple[Array, Array]:
    """The reference's, x read once. Rows of q begin at multiples of 16 bytes."""
    reference.check_rows(rows)
    x = narrow(x)
    q = _in_lines(x)
    down, across = -(-x.shape[0] // rows), -(-x.shape[1] // BLOCK)
    scales = empty(x, (across, down), float32).T  # a tile's rows have theirs side by side
    if x.size:
        call("quantize_blocks", x, q, scales, rows)
    return q[:, : x.shape[1]], scales


@device_kernel("scaled_mm")
def scaled_mm(
    a: Array, b: Array, a_scales: Array, b_scales: Array, *, dtype: Any = float32
) -> Array:
    """The reference's; on tensor cores where they take 8 bits. A batch is groups of equal size."""
    if a.ndim == 3:
        batch, m, k = a.shape
        ends = beside(array_module(a).arange(1, batch + 1, dtype=int64) * m, a)
        rows, scales = a.reshape(batch * m, k), a_scales.reshape(batch * m, -1)
        out = grouped_scaled_mm(rows, b, scales, b_scales, ends, dtype=dtype)
        return out.reshape(batch, m, b.shape[1])
    reference.check_shapes(a, b, a_scales, b_scales)
    if not takes(a, b, dtype):
        return reference.scaled_mm(a, b, a_scales, b_scales, dtype=dtype)
    a, b = (_aligned(x) for x in (a, b))
    out = empty(a, (len(a), len(b)), dtype)
    scales = (x.astype(float32, copy=False) for x in (a_scales, b_scales))
    call("scaled_mm_wgmma", a, b.T, out, None, None, None, *scales, 1.0, 0, 0)
    return out


@device_kernel("grouped_scaled_mm")
def grouped_scaled_mm(
    x: Array,
    weight: Array,
    x_scales: Array,
    weight_scales: Array,
    offs: Array,
    *,
    dtype: Any = float32,
) -> Array:
    """The reference's; nothing waits to know how many rows a group has."""
    reference.check_groups(x, weight, x_scales, weight_scales)
    if not takes(x, weight, dtype):
        return reference.grouped_scaled_mm(x, weight, x_scales, weight_scales, offs, dtype=dtype)
    x, weight = (_aligned(one) for one in (x, weight))
    out = empty(x, (len(x), weight.shape[1]), dtype)
    ends = contiguous(offs.astype(int64, copy=False))
    left, right = (one.astype(float32, copy=False) for one in (x_scales, weight_scales))
    call("grouped_scaled_wgmma", x, weight, ends, out, left, right)
    return out


def as_scaled(a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Operands (m, k) and (k, n) of a product as the kernel takes them, and their scales."""
    left, left_scales = quantize_blocks(a)
    right, right_scales = quantize_blocks(b.T, rows=BLOCK)
    return left, right.T, left_scales, right_scales


def narrow(x: Array) -> Array:
    """x in a dtype that is rounded from: no wider than float32."""
    return x if x.dtype in _NARROW else x.astype(float32)


def takes(a: Array, b: Array, dtype: Any) -> bool:
    """Whether tensor cores multiply these, on this device, for a result in dtype."""
    return capability(a) // 10 == 9 and dtype in _NARROW and bool(a.size and b.size)


def _aligned(x: Array) -> Array:
    if lines(x):
        return x
    copy = _in_lines(x)[..., : x.shape[-1]]
    copy[...] = x
    return copy


def _in_lines(x: Array) -> Array:
    """Room for as many bytes in rows that begin at multiples of 16, and go on to the next one."""
    *leading, k = x.shape
    return empty(x, (*leading, -(-k // 16) * 16), uint8)
