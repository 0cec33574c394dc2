"""Matrix products on the device (csrc/cuda/matmul.cu, matmul_mma.cu, matmul_wgmma.cu,
scaled_mm_wgmma.cu): any strides, batches, what follows fused.

16-bit floats are read and written as they are; products are added up in float32.
"""

from typing import Any

import numpy as np

from minitorch.backend import array_module, beside, compute_dtype, float32, float64
from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty
from minitorch.kernels.cuda.ladder import parts, pick
from minitorch.kernels.cuda.scaled_mm import as_scaled
from minitorch.kernels.reference import matmul as reference

_MOST_DIMS = 8
_ACTIVATIONS = {None: 0, "relu": 1, "silu": 2, "gelu": 3, "gelu_tanh": 4}  # enum Activation
_ROWS_PER_PIECE = 512

Array = Any


@device_kernel("matmul")
def matmul(
    a: Array,
    b: Array,
    *,
    out: Array | None = None,
    alpha: float = 1.0,
    accumulate: bool = False,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    pre: Array | None = None,
) -> Array:
    """The reference's. out may also be float32 where a and b have 16 bits."""
    dtype = a.dtype
    if dtype not in FLOATS or b.dtype != dtype or max(a.ndim, b.ndim) > _MOST_DIMS:
        return reference.matmul(
            a,
            b,
            out=out,
            alpha=alpha,
            accumulate=accumulate,
            bias=bias,
            activation=activation,
            residual=residual,
            pre=pre,
        )
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: expected (..., m, k) and (..., k, n); got {a.shape}, {b.shape}")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"matmul: expected one of {reference.ACTIVATIONS}; got {activation!r}")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (_broadcast(x, batch + x.shape[-2:]) for x in (a, b))
    shape = (*batch, a.shape[-2], b.shape[-1])
    if out is None:
        out, accumulate = empty(a, shape), False
    for name, x in (("out", out), ("pre", pre)):
        if x is not None and (x.shape != shape or x.dtype not in (out.dtype, dtype, float32)):
            raise ValueError(f"matmul: {name} has to be {shape}; it is {x.shape} in {x.dtype}")
    if out.dtype not in (dtype, float32) or (dtype == float64 and out.dtype != dtype):
        raise ValueError(f"matmul: out has to be in {dtype} or float32; it is in {out.dtype}")
    if pre is not None and pre.dtype != out.dtype:
        raise ValueError(f"matmul: pre has to be in {out.dtype}, as out; it is in {pre.dtype}")
    if bias is not None:
        bias = contiguous(_broadcast(bias.astype(out.dtype, copy=False), shape[-1:]))
    if residual is not None:
        residual = _broadcast(residual.astype(out.dtype, copy=False), shape)
    if out.size:
        after = bias, residual, pre
        numbers = alpha, accumulate, _ACTIVATIONS[activation]
        count = parts(a, b, out)
        if count > 1:
            call("finish_parts", _parts(a, b, count), out, *after, *numbers)
        else:
            _multiply(a, b, out, after, numbers)
    return out


def _multiply(
    a: Array, b: Array, out: Array, after: tuple[Array | None, ...], numbers: tuple[float, ...]
) -> None:
    kernel, chosen = pick(a, b, out)
    scales: list[Array] = []
    if kernel == "scaled_mm_wgmma":
        a, b, *scales = as_scaled(a, b)
    call(kernel, a, b, out, *after, *scales, *numbers, *chosen)


def _parts(a: Array, b: Array, count: int) -> Array:
    """The product, split along k: that of each part, in float32."""
    (m, k), n = a.shape, b.shape[1]
    out = empty(a, (count, m, n), float32)
    left = a.reshape(m, count, k // count).transpose(1, 0, 2)
    _multiply(left, b.reshape(count, k // count, n), out, (None, None, None), (1.0, False, 0))
    return out


@device_kernel("linear")
def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """The reference's, the bias added as the product is written."""
    if x.dtype not in FLOATS:
        return reference.linear(x, weight, bias)
    out = matmul(_rows(x), weight.T, bias=bias)
    return out.reshape(*x.shape[:-1], weight.shape[0])


@device_kernel("linear_backward")
def linear_backward(
    grad: Array,
    x: Array,
    weight: Array,
    *,
    needs: tuple[bool, ...],
    residual: Array | None = None,
    wide: tuple[bool, ...] = (False, False, False),
) -> tuple[Array | None, Array | None, Array | None]:
    """The reference's: two products and the sums of grad's columns; none of them wide."""
    if x.dtype not in FLOATS:
        return reference.linear_backward(grad, x, weight, needs=needs, residual=residual)
    grad_rows, x_rows = _rows(grad), _rows(x)
    rest = None if residual is None else _rows(residual)
    return (
        matmul(grad_rows, weight, residual=rest).reshape(x.shape) if needs[0] else None,
        matmul(grad_rows.T, x_rows) if needs[1] else None,
        column_sums(grad_rows) if needs[2] else None,
    )


def column_sums(x: Array) -> Array:
    """Σ x over the rows, in pieces and then over these: one order, whatever the device does."""
    rows, columns = x.shape
    out, pieces = empty(x, (columns,)), min(-(-rows // _ROWS_PER_PIECE), 65535)
    if not x.size:
        out[...] = 0
        return out
    space = empty(x, (pieces, columns), compute_dtype(x.dtype))
    call("column_sums", x, out, space)
    return out


def _rows(x: Array) -> Array:
    """(..., n) as (rows, n)."""
    return x.reshape(x.size // x.shape[-1] if x.shape[-1] else 0, x.shape[-1])


def _broadcast(x: Array, shape: tuple[int, ...]) -> Array:
    return x if x.shape == shape else beside(array_module(x).broadcast_to(x, shape), x)
