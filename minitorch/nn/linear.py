"""Linear: y = x Wᵀ + b."""

import math

import numpy as np

from minitorch import modes
from minitorch.backend import DEFAULT_FLOAT
from minitorch.nn import functional as F
from minitorch.nn import init
from minitorch.nn.module import Module, Parameter
from minitorch.random import Generator
from minitorch.tensor import Tensor


class Linear(Module):
    """An affine map of the last dimension: (..., in_features) -> (..., out_features).

    weight: (out_features, in_features); bias: (out_features,) or None. Both start uniform over
    ±1 / sqrt(in_features), as in PyTorch.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(init.empty((out_features, in_features), dtype))
        self.bias = Parameter(init.empty((out_features,), dtype)) if bias else None
        bound = 1 / math.sqrt(max(in_features, 1))
        for param in self.parameters():
            init.uniform_(param, -bound, bound, generator)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias, scaled=modes.thread.mode.scaled)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
