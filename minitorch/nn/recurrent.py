"""Recurrent cells: one step of a network whose state is fed back to it.

    RNN   h' = tanh(W_ih x + b_ih + W_hh h + b_hh)                               Elman 1990
    GRU   r = σ(W_ir x + b_ir + W_hr h + b_hr)                                   Cho et al. 2014
          z = σ(W_iz x + b_iz + W_hz h + b_hz)
          n = tanh(W_in x + b_in + r (W_hn h + b_hn))
          h' = (1 - z) n + z h

In the GRU of PyTorch and cuDNN, which this is, r multiplies W_hn h after the product; in the
paper it multiplies h before it.
"""

import math

import numpy as np

from minitorch.backend import DEFAULT_FLOAT, as_dtype
from minitorch.nn import functional as F
from minitorch.nn import init
from minitorch.nn.module import Module, Parameter
from minitorch.random import Generator
from minitorch.tensor import Tensor


class RNNCell(Module):
    """x: (batch, input_size), h: (batch, hidden_size) -> the next h.

    weight_ih: (gates * hidden_size, input_size), weight_hh: (gates * hidden_size, hidden_size), and
    their biases; all start uniform over ±1 / sqrt(hidden_size), as in PyTorch.
    """

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        dtype, rows = as_dtype(dtype), self.gates * hidden_size
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih = Parameter(init.empty((rows, input_size), dtype))
        self.weight_hh = Parameter(init.empty((rows, hidden_size), dtype))
        self.bias_ih = Parameter(init.empty((rows,), dtype))
        self.bias_hh = Parameter(init.empty((rows,), dtype))
        bound = 1 / math.sqrt(hidden_size)
        for param in self.parameters():
            init.uniform_(param, -bound, bound, generator)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return F.tanh(self._input(x) + self._hidden(h))

    def _input(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_ih, self.bias_ih)

    def _hidden(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight_hh, self.bias_hh)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}"


class GRUCell(RNNCell):
    """As RNNCell; the rows of its weights are those of r, z and n, in this order."""

    gates = 3

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x_r, x_z, x_n = self._input(x).chunk(3, dim=-1)
        h_r, h_z, h_n = self._hidden(h).chunk(3, dim=-1)
        reset, update = F.sigmoid(x_r + h_r), F.sigmoid(x_z + h_z)
        new = F.tanh(x_n + reset * h_n)
        return new + update * (h - new)
