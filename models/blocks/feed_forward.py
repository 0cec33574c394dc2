"""The feed-forward layer: two matrices with an activation between, or three with a gate.

    dense   W_2 f(W_1 x + b_1) + b_2
    gated   W_down (f(W_gate x) ⊙ (W_up x))       SwiGLU with silu, GeGLU with gelu

A gated layer has half as many parameters again for the same hidden width, so its width is usually
two thirds of a dense one's. Source: Shazeer 2020, "GLU Variants Improve Transformer".
"""

import numpy as np

from minitorch import nn
from minitorch.backend import DEFAULT_FLOAT
from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.context import Context

GATES = {
    "silu": F.swiglu,
    "gelu": lambda gate, up: F.gelu(gate) * up,
    "gelu_tanh": lambda gate, up: F.gelu(gate, "tanh") * up,
    "relu": lambda gate, up: F.relu(gate) * up,
}


class FeedForward(nn.Module):
    """Dense, at every position by itself. activation: "gelu", "gelu_tanh", "silu" or "relu"."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "gelu_tanh",
        bias: bool = True,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        self.activation = _known(activation)
        self.up_proj = nn.Linear(width, hidden, bias, dtype, generator)
        self.down_proj = nn.Linear(hidden, width, bias, dtype, generator)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        up, down = self.up_proj, self.down_proj
        return F.mlp(x, up.weight, down.weight, up.bias, down.bias, activation=self.activation)


class GatedFeedForward(nn.Module):
    """Gated, at every position by itself. activation: "silu", "gelu", "gelu_tanh" or "relu"."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "silu",
        bias: bool = False,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        self.activation = _known(activation)
        self.gate_proj = nn.Linear(width, hidden, bias, dtype, generator)
        self.up_proj = nn.Linear(width, hidden, bias, dtype, generator)
        self.down_proj = nn.Linear(hidden, width, bias, dtype, generator)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        return self.down_proj(GATES[self.activation](self.gate_proj(x), self.up_proj(x)))


def _known(activation: str) -> str:
    if activation not in GATES:
        raise ConfigError(f"activation: expected one of {', '.join(GATES)}; got {activation!r}")
    return activation
