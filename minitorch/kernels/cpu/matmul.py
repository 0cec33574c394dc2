"""Matrix products (csrc/cpu/kernels/matmul.h): any strides, batches, what follows them fused.

bfloat16 is read and written as it is; products are added up in float32.
"""

from math import prod

import numpy as np

from minitorch.backend import bfloat16, compute_dtype
from minitorch.kernels.cpu.activations import gelu
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import matmul as reference
from minitorch.kernels.table import register

_MOST_DIMS = 8
ACTIVATIONS = {None: 0.0, "relu": 1.0, "silu": 2.0, "gelu_tanh": 3.0}  # enum Activation

Array = np.ndarray


@register("matmul", "cpu", half=(bfloat16,))
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
    """The reference's. out and pre, if given, have stride 1 in their last dimension.

    out may also be float32 where a and b are bfloat16.
    """
    if (
        alpha == 1
        and not accumulate
        and bias is None
        and activation is None
        and residual is None
        and pre is None
    ):
        done = extension.matmul_as_it_is(a, b, out)
        if done is not None:
            return done
    dtype = a.dtype
    if dtype not in FLOATS or b.dtype != dtype or a.ndim > _MOST_DIMS or b.ndim > _MOST_DIMS:
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
    if a.ndim != 2 or b.ndim != 2:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a = np.broadcast_to(a, batch + a.shape[-2:])
        b = np.broadcast_to(b, batch + b.shape[-2:])
    shape = (*a.shape[:-1], b.shape[-1])
    if out is None:
        out = np.empty(shape, dtype)
        accumulate = False
    elif out.shape != shape:
        raise ValueError(f"matmul: {a.shape} and {b.shape} make {shape}; out has {out.shape}")
    elif not out.flags.writeable:
        raise ValueError("matmul: expected an out to write into; it is read-only; pass a copy")
    if activation is not None or pre is not None:
        if activation == "gelu":
            before = matmul(a, b, out=pre, alpha=alpha, bias=bias)
            result = gelu(before)
            for term in (residual, out if accumulate else None):
                if term is not None:
                    result += term
            out[...] = result
            return out
        if activation not in ACTIVATIONS:
            raise ValueError(f"matmul: expected {reference.ACTIVATIONS}; got {activation!r}")
        if pre is not None and (pre.shape != shape or pre.dtype != out.dtype):
            raise ValueError(
                f"matmul: pre has to be {shape} in {out.dtype}; it is {pre.shape} in {pre.dtype}"
            )
        if accumulate:  # the kernel adds what was in out before the activation
            residual = out.copy() if residual is None else out + residual
            accumulate = False
    if bias is not None:
        bias = np.ascontiguousarray(np.broadcast_to(bias, shape[-1:]), out.dtype)
    if residual is not None:
        full = residual if residual.shape == shape else np.broadcast_to(residual, shape)
        residual = np.ascontiguousarray(full, out.dtype)
    extension.matmul(
        a, b, out, bias, residual, None, pre, alpha, accumulate, ACTIVATIONS[activation]
    )
    return out


def write_product(
    a: Array,
    b: Array,
    out: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    row_sums: Array | None = None,
    accumulate: bool = False,
) -> None:
    """out = a b + bias + residual, or what was in out and that; row_sums receives those of a."""
    if residual is not None:
        residual = residual.reshape(out.shape)
    extension.matmul(a, b, out, bias, residual, row_sums, None, 1.0, accumulate, 0.0)


def weight_gradient(
    grad: Array,
    x: Array | None,
    weight: Array | None,
    bias: Array | None,
    *,
    accumulate: bool = False,
) -> None:
    """weight = gradᵀ x, or what was in it and that; bias = Σ grad; either may be None, not wanted.

    grad: (rows, out); x: (rows, in), or None where weight is.
    """
    if weight is not None:
        assert x is not None
        write_product(grad.T, x, weight, row_sums=bias, accumulate=accumulate)
    elif bias is not None:
        write_product(np.ones((1, len(grad)), grad.dtype), grad, bias[None])


@register("linear", "cpu", half=(bfloat16,))
def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """The reference's, the bias added as the product is written."""
    done = extension.linear_as_it_is(x, weight, bias)
    if done is not None:
        return done
    if x.dtype not in FLOATS:
        return reference.linear(x, weight, bias)
    rows = x.reshape(prod(x.shape[:-1]), x.shape[-1])
    out = np.empty((rows.shape[0], weight.shape[0]), x.dtype)
    write_product(rows, weight.T, out, bias=None if bias is None else np.ascontiguousarray(bias))
    return out.reshape(*x.shape[:-1], weight.shape[0])


@register("linear_backward", "cpu", half=(bfloat16,))
def linear_backward(
    grad: Array,
    x: Array,
    weight: Array,
    *,
    needs: tuple[bool, ...],
    residual: Array | None = None,
    wide: tuple[bool, ...] = (False, False, False),
) -> tuple[Array | None, Array | None, Array | None]:
    """The reference's: two products; the sums of grad's columns come with the second, if needed."""
    done = extension.linear_backward_as_it_is(grad, x, weight, residual, needs, wide)
    if done is not None:
        return done
    if x.dtype not in FLOATS:
        return reference.linear_backward(grad, x, weight, needs=needs, residual=residual)
    features, inner = weight.shape
    grad_rows, x_rows = grad.reshape(-1, features), x.reshape(-1, inner)
    accumulator = compute_dtype(x.dtype)
    dtypes = [accumulator if may_be else x.dtype for may_be in wide]
    dx = None
    if needs[0]:
        dx = np.empty(x.shape, dtypes[0])
        rest = None if residual is None else np.ascontiguousarray(residual, dx.dtype)
        write_product(grad_rows, weight, dx.reshape(-1, inner), residual=rest)
    dweight = np.empty(weight.shape, dtypes[1]) if needs[1] else None
    sums = np.zeros(features, accumulator) if needs[2] else None
    weight_gradient(grad_rows, x_rows, dweight, sums)
    return dx, dweight, None if sums is None else sums.astype(dtypes[2], copy=False)
