"""Every operation on tensors. Importing this package attaches the methods of Tensor.

A primitive's definition holds its forward function, its derivative rule, the structure of its
Jacobian, its formula, and the samples on which it is checked. `registry` lists them all. One of
your own is made in the same way: a call of `Elementwise`, `Linear`, `Bilinear`, `General` or
`Fused`, whichever its Jacobian is (ops/primitive.py says what each wants; `Nondifferentiable` where
there is none).
"""

from minitorch.ops import (
    arithmetic,
    attention,
    comparison,
    conversion,
    convolution,
    creation,
    decoding,
    elementwise,
    experts,
    feed_forward,
    fused,
    general,
    indexing,
    joining,
    latent_attention,
    layout,
    lightning_attention,
    losses,
    masking,
    moe_feed_forward,
    paged_attention,
    product_keys,
    products,
    reductions,
    rotary_attention,
    routing,
    sampling,
    unit_experts,
)
from minitorch.ops.definition import Primitive, Sample, registry
from minitorch.ops.primitive import (
    Bilinear,
    Elementwise,
    Fused,
    General,
    Linear,
    Nondifferentiable,
)

__all__ = [
    "Bilinear",
    "Elementwise",
    "Fused",
    "General",
    "Linear",
    "Nondifferentiable",
    "Primitive",
    "Sample",
    "arithmetic",
    "attention",
    "comparison",
    "conversion",
    "convolution",
    "creation",
    "decoding",
    "elementwise",
    "experts",
    "feed_forward",
    "fused",
    "general",
    "indexing",
    "joining",
    "latent_attention",
    "layout",
    "lightning_attention",
    "losses",
    "masking",
    "moe_feed_forward",
    "paged_attention",
    "product_keys",
    "products",
    "reductions",
    "registry",
    "rotary_attention",
    "routing",
    "sampling",
    "unit_experts",
]
