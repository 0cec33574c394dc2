"""Dropout: in training, each number is 0 with probability p, and the others grow by 1 / (1 - p).

The expectation stays what it is without dropout, so nothing has to change for evaluation.
Source: Srivastava et al. 2014.
"""

from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.nn.module import Module
from minitorch.random import Generator
from minitorch.tensor import Tensor


class Dropout(Module):
    """Zeroes numbers at random while `training`; does nothing after eval().

    generator: where the random numbers come from; the global one if None.
    """

    def __init__(self, p: float = 0.5, generator: Generator | None = None):
        if not 0 <= p < 1:
            raise ConfigError(f"Dropout: expected p in [0, 1); got {p}")
        self.p, self.generator = p, generator

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training, generator=self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"
