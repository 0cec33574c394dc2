"""Every operation on tensors. Importing this package attaches the methods of Tensor.

A primitive's definition holds its forward function, its derivative rule, the structure of its
Jacobian, its formula, and the samples on which it is checked. `registry` lists them all.
"""

from minitorch.ops import (
    arithmetic,
    comparison,
    conversion,
    convolution,
    creation,
    elementwise,
    fused,
    general,
    indexing,
    joining,
    layout,
    losses,
    masking,
    products,
    reductions,
)
from minitorch.ops.primitive import Primitive, Sample, registry

__all__ = [
    "Primitive",
    "Sample",
    "arithmetic",
    "comparison",
    "conversion",
    "convolution",
    "creation",
    "elementwise",
    "fused",
    "general",
    "indexing",
    "joining",
    "layout",
    "losses",
    "masking",
    "products",
    "reductions",
    "registry",
]
