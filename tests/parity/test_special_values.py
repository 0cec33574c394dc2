"""Elementwise functions and their gradients against PyTorch, where numbers end.

At values that overflow, underflow or are no numbers, with a list of what differs on purpose.
"""

import numpy as np
import pytest

import minitorch as mt
from minitorch.ops import registry
from minitorch.ops.promotion import promote
from minitorch.tape import apply
from tests.parity.peers import PEERS, array

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")

SPECIAL = {
    "float64": [
        np.nan, np.inf, 0.0, 5e-324, 1e-310, 1e-300, 1e-160, 1e-20, 0.3, 0.5, 1.0, 2.0, 3.0, 40.0,
        750.0, 1e160, 1e308,
    ],
    "float32": [
        np.nan, np.inf, 0.0, 1e-45, 1e-40, 1e-37, 1e-20, 1e-10, 0.3, 0.5, 1.0, 2.0, 3.0, 40.0,
        100.0, 1e20, 3e38,
    ],
}  # fmt: skip
"""What overflows, underflows, rounds to nothing or is no number; used with both signs."""

POINTWISE = [
    primitive
    for name, primitive in registry.items()
    if primitive.module.startswith("minitorch.")
    and (
        primitive.structure == "elementwise"
        or name in ("add", "sub", "neg", "mul", "gelu", "silu", "floor_divide")
        or name in ("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite")
    )
]


def subnormal(x):
    return (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny)


KEPT = {
    "abs": lambda x: np.isnan(x),  # its gradient is NaN, in torch 0: a NaN stays one, everywhere
    "sign": lambda x: np.isnan(x),  # likewise, as in NumPy
    "log1p": subnormal,  # torch rounds these to 0
    # torch's 1 + erf(x / sqrt(2)) cancels in float32, and its product with x overflows.
    "gelu": lambda x: (x < -2) | (x > np.finfo(x.dtype).max / 2),
    # torch takes 1 / (a^2 + b^2) first, which overflows before the quotient does.
    "atan2": lambda a, b: subnormal(a * a + b * b),
    # torch's quotient overflows where the remainder is small and known exactly.
    "remainder": lambda a, b: np.isinf(a / b) & np.isfinite(a),
}
"""Where this library differs on purpose."""


@pytest.mark.parametrize("dtype", SPECIAL)
@pytest.mark.parametrize("primitive", POINTWISE, ids=lambda primitive: primitive.name)
def test_special_values(primitive, dtype):
    values = np.array(SPECIAL[dtype], dtype)
    values = np.concatenate([values, -values])
    points = [x.ravel() for x in np.meshgrid(*[values] * len(primitive.inputs))]
    metas = {repr(sample.meta): sample.meta for sample in primitive.samples()}
    for meta in metas.values():
        agree_at_special_values(primitive, points, meta, dtype)


@pytest.mark.parametrize("exponent", [-2, -1, 0, 1, 2, 3, -0.5, 0.0, 0.5, 1.5])
def test_special_values_to_a_number(exponent):
    values = np.array(SPECIAL["float64"])
    values = np.concatenate([values, -values])
    if abs(exponent) == 0.5:  # torch takes a square root, which at -0 and -inf is not C's pow
        values = values[(values != -np.inf) & ~((values == 0) & np.signbit(values))]
    agree_at_special_values(registry["pow"], [values], {}, "float64", exponent)


def agree_at_special_values(primitive, points, meta, dtype, *numbers):
    mine = [mt.tensor(x, requires_grad=True) for x in points]
    peers = [torch.tensor(x, requires_grad=True) for x in points]
    out = apply(primitive, promote([*mine, *numbers], primitive.floating), meta)
    expected = PEERS[primitive.name](*peers, *numbers, **meta)
    pairs = [(out, expected)]
    if primitive.differentiable and expected.requires_grad:
        v = np.ones(out.shape, dtype)
        gradients = mt.autograd.grad(out, mine, mt.tensor(v))
        wanted = torch.autograd.grad(expected, peers, torch.tensor(v))
        pairs += zip(gradients, wanted, strict=True)
    compared = np.ones(out.shape, bool)
    with np.errstate(all="ignore"):
        if primitive.name in KEPT:
            compared = ~KEPT[primitive.name](*points)
    tiny = np.finfo(dtype).tiny
    for one, other in pairs:
        np.testing.assert_allclose(
            array(one)[compared], array(other)[compared], rtol=1e2 * np.finfo(dtype).eps, atol=tiny
        )
