"""The gated product on the device (csrc/cuda/matmul_mma.cu, matmul_wgmma.cu): silu(x gateᵀ) (x upᵀ)
by one kernel on tensor cores, where neither product is ever whole unless it is to be kept."""

from typing import Any

from minitorch.kernels.cuda.activations import swiglu, swiglu_backward
from minitorch.kernels.cuda.extension import FLOATS, call, device_kernel, empty
from minitorch.kernels.cuda.ladder import pick_gated
from minitorch.kernels.cuda.matmul import linear, linear_backward
from minitorch.kernels.reference import linear_swiglu as reference
from minitorch.kernels.reference.linear_swiglu import backward_with

Array = Any


@device_kernel("linear_swiglu")
def linear_swiglu(
    x: Array, gate: Array, up: Array, *, keep: bool = True
) -> tuple[Array, Array | None, Array | None]:
    """The reference's; without tensor cores two products and `swiglu`."""
    shape = *x.shape[:-1], len(gate)
    if x.dtype not in FLOATS or not x.size or not gate.size:
        return reference.linear_swiglu(x, gate, up, keep=keep)
    rows = x.reshape(-1, x.shape[-1])
    out = empty(x, (len(rows), len(gate)))
    picked = pick_gated(rows, gate.T, up.T, out)
    if picked is None:
        both: Any = linear(x, gate, None), linear(x, up, None)
        return swiglu(*both), *(both if keep else (None, None))
    both = empty(x, (2, *shape)) if keep else None
    kernel, chosen = picked
    call(kernel, rows, gate.T, out, None, None, None, up.T, both, 1.0, False, 0, *chosen)
    return out.reshape(shape), *((None, None) if both is None else (both[0], both[1]))


@device_kernel("linear_swiglu_backward")
def linear_swiglu_backward(
    grad: Array,
    x: Array,
    gate: Array,
    up: Array,
    gates: Array,
    ups: Array,
    *,
    needs: tuple[bool, ...],
    wide: tuple[bool, ...] = (False, False, False),
) -> tuple[Array | None, ...]:
    """The reference's."""
    if x.dtype not in FLOATS or not x.size or not gate.size:
        return reference.linear_swiglu_backward(grad, x, gate, up, gates, ups, needs=needs)
    return backward_with(
        linear_backward, swiglu_backward, grad, x, gate, up, gates, ups, needs, wide
    )
