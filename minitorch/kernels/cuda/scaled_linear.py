"""An affine map and its gradients on the device, of 8-bit floats."""

from typing import Any

from minitorch.kernels.cuda.extension import device_kernel
from minitorch.kernels.cuda.matmul import column_sums
from minitorch.kernels.cuda.scaled_mm import quantize_blocks, scaled_mm
from minitorch.kernels.reference import scaled_linear as reference

Array = Any


@device_kernel("scaled_linear")
def scaled_linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """The reference's."""
    return reference.forward_with(quantize_blocks, scaled_mm, x, weight, bias)


@device_kernel("scaled_linear_backward")
def scaled_linear_backward(
    grad: Array, x: Array, weight: Array, *, needs: tuple[bool, ...]
) -> tuple[Array | None, Array | None, Array | None]:
    """The reference's."""
    given = grad, x, weight, needs
    return reference.backward_with(quantize_blocks, scaled_mm, column_sums, *given)
