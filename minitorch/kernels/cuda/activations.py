"""Activations and elementary functions on the device (csrc/cuda/activations.cu)."""

from typing import Any

from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty
from minitorch.kernels.reference import activations as reference

Array = Any


def _elementary(name: str) -> None:
    """Enter exp, log, tanh, sigmoid or erf."""

    @device_kernel(name)
    def function(x: Array) -> Array:
        return _forward(name, x) if _takes(x) else reference.ELEMENTARY[name](x)


for _name in reference.ELEMENTARY:
    _elementary(_name)


@device_kernel("silu")
def silu(x: Array) -> Array:
    """The reference's."""
    return _forward("silu", x) if _takes(x) else reference.silu(x)


@device_kernel("silu_backward")
def silu_backward(grad: Array, x: Array) -> Array:
    """The reference's."""
    if not _takes(grad, x):
        return reference.silu_backward(grad, x)
    return _backward("silu_backward", grad, x)


@device_kernel("gelu")
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """The reference's."""
    if not _takes(x):
        return reference.gelu(x, approximate=approximate)
    return _forward("gelu_tanh" if approximate == "tanh" else "gelu", x)


@device_kernel("gelu_backward")
def gelu_backward(grad: Array, x: Array, *, approximate: str = "none") -> Array:
    """The reference's."""
    if not _takes(grad, x):
        return reference.gelu_backward(grad, x, approximate=approximate)
    return _backward("gelu_tanh_backward" if approximate == "tanh" else "gelu_backward", grad, x)


@device_kernel("swiglu")
def swiglu(gate: Array, up: Array) -> Array:
    """The reference's; of the halves of one array without a copy."""
    if not _takes(gate, up) or not gate.ndim:
        return reference.swiglu(gate, up)
    out = empty(gate)
    call("swiglu", _rows(gate), _rows(up), _rows(out))
    return out


@device_kernel("swiglu_backward")
def swiglu_backward(
    grad: Array, gate: Array, up: Array, *, out: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """The reference's; gradients that cannot be written in rows are copied to where they go."""
    if not _takes(grad, gate, up, *(out or ())) or not gate.ndim:
        return reference.swiglu_backward(grad, gate, up, out=out)
    wanted = out or (empty(gate), empty(gate))
    into = [x if _in_rows(x) else empty(x) for x in wanted]
    call("swiglu_backward", _rows(grad), _rows(gate), _rows(up), *map(_rows, into))
    for x, written in zip(wanted, into, strict=True):
        if x is not written:
            x[...] = written
    return wanted


def _takes(*arrays: Array) -> bool:
    """Whether these are arrays of one shape and dtype, and one that there is code for."""
    first = arrays[0]
    return (
        first.dtype in FLOATS
        and first.size > 0
        and all(x.shape == first.shape and x.dtype == first.dtype for x in arrays)
    )


def _in_rows(x: Array) -> bool:
    """Whether x is (rows, columns) without a copy: rows contiguous, at equal distances."""
    expected = x.strides[-2] if x.ndim > 1 else 0
    for i in range(x.ndim - 2, -1, -1):
        if x.shape[i] > 1 and x.strides[i] != expected:
            return False
        expected = x.strides[i] * x.shape[i]
    return x.shape[-1] == 1 or x.strides[-1] == x.itemsize


def _rows(x: Array) -> Array:
    """x as (rows, columns), each row contiguous; a view where strides allow."""
    return (x if _in_rows(x) else contiguous(x)).reshape(-1, x.shape[-1])


def _forward(kernel: str, x: Array) -> Array:
    x = contiguous(x)
    out = empty(x)
    call(kernel, x, out)
    return out


def _backward(kernel: str, grad: Array, x: Array) -> Array:
    grad, x = contiguous(grad), contiguous(x)
    out = empty(x)
    call(kernel, grad, x, out)
    return out
