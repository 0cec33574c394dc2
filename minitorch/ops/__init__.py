"""Every operation on tensors. Importing this package attaches the methods of Tensor.

A primitive's definition holds its forward function, its derivative rule, the structure of its
Jacobian, its formula, and the samples on which it is checked. `registry` lists them all.
"""

from minitorch.ops import (
    convolution,
    creation,
    elementwise,
    fused,
    general,
    indexing,
    layout,
    losses,
    products,
    reductions,
)
from minitorch.ops.primitive import Primitive, Sample, registry

__all__ = [
    "Primitive",
    "Sample",
    "convolution",
    "creation",
    "elementwise",
    "fused",
    "general",
    "indexing",
    "layout",
    "losses",
    "products",
    "reductions",
    "registry",
]
