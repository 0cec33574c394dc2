"""Draws from the distribution that logits describe."""

import numpy as np

from minitorch import random
from minitorch.errors import ConfigError, DtypeError, ShapeError
from minitorch.ops.definition import _kernel
from minitorch.ops.primitive import nondifferentiable
from minitorch.ops.reductions import argmax
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor

_categorical = nondifferentiable(
    "categorical",
    _kernel("categorical"),
    kernel="categorical",
    inputs=("logits",),
    formula=r"\operatorname{arg\,max}_i \; x_i / T - \ln(-\ln u_i)",
    samples=lambda: [
        sample(real(3, 5), temperature=0.8, top_k=0, top_p=1.0, min_p=0.0, seed=1, offset=2),
        sample(real(4, 9), temperature=1.5, top_k=6, top_p=0.8, min_p=0.05, seed=3, offset=4),
    ],
    why="an index is piecewise constant",
)


def categorical(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    generator: random.Generator | None = None,
) -> Tensor:
    """An index drawn from softmax(logits / temperature) along the last dimension: (...) int64.

    logits: (..., classes). Only the top_k largest can be drawn (0: all), of these the fewest that
    have top_p of the probability, and none that is less than min_p times as probable as the
    likeliest; what ties with the least that can be drawn can be drawn too. Temperature 0 gives the
    argmax. The draw is a function of the generator's state (the global one's by default), which
    moves on by one step. Raises ConfigError for a value out of range and for a row with a NaN or
    nothing to draw; on a GPU, where that would wait, the index is then -1.

    Source: Maddison et al. 2014 (Gumbel-max). In JAX: jax.random.categorical; in PyTorch:
    torch.distributions.Categorical(logits=...).sample().
    """
    if not logits.is_floating_point():
        raise DtypeError(f"categorical: expected floating logits; got {logits.dtype}")
    if not logits.ndim or not logits.shape[-1]:
        raise ShapeError(f"categorical: expected logits (..., classes), some; got {logits.shape}")
    for name, value, valid, expected in (
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 or more"),
        ("top_k", top_k, top_k >= 0, "0 (all) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "more than 0, at most 1"),
        ("min_p", min_p, 0 <= min_p <= 1, "from 0 to 1"),
    ):
        if not valid:
            raise ConfigError(f"categorical: expected {name} {expected}; got {value}")
    if temperature == 0:
        return argmax(logits, -1)
    seed, offset = (generator or random.default_generator).advance()
    cut = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    rows = logits.reshape(-1, logits.shape[-1])
    out = apply(_categorical, [rows], {**cut, "seed": seed, "offset": offset})
    if isinstance(out.data, np.ndarray) and (out.data < 0).any():
        raise ConfigError(
            f"categorical: row {int(np.argmin(out.data))} has no class to draw: its logits hold a "
            "NaN, or their maximum is not finite"
        )
    return out.reshape(logits.shape[:-1])
