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
from minitorch.ops.feed_forward import ACTIVATIONS
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.context import Context


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
        return dense(x, self.up_proj, self.down_proj, self.activation)


def dense(x: Tensor, up: nn.Module, down: nn.Module, activation: str) -> Tensor:
    """down(f(up(x))): one operation where both are plain Linear layers, without adapters."""
    if type(up) is type(down) is nn.Linear:
        return F.mlp(x, up.weight, down.weight, up.bias, down.bias, activation=activation)
    return down(ACTIVATIONS[activation](up(x)))


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
        weights = self.swiglu_weights()
        if weights is not None:
            return self.down_proj(F.linear_swiglu(x, *weights[:2]))
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.activation == "silu":
            return self.down_proj(F.swiglu(gate, up))
        return self.down_proj(ACTIVATIONS[self.activation](gate) * up)

    def swiglu_weights(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Of gate, up and down; None where there is more: another activation, biases, adapters."""
        layers = self.gate_proj, self.up_proj, self.down_proj
        if self.activation != "silu" or any(
            type(layer) is not nn.Linear or layer.bias is not None for layer in layers
        ):
            return None
        return layers[0].weight, layers[1].weight, layers[2].weight


def _known(activation: str) -> str:
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(f"activation: expected one of {known}; got {activation!r}")
    return activation
