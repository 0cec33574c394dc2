"""Embedding: a table of vectors, looked up by index."""

import numpy as np

from minitorch.backend import DEFAULT_FLOAT
from minitorch.nn import functional as F
from minitorch.nn import init
from minitorch.nn.module import Module, Parameter
from minitorch.random import Generator
from minitorch.tensor import Tensor


class Embedding(Module):
    """indices (...) of integers in [0, num_embeddings) -> (..., embedding_dim).

    It is a Linear without bias applied to one-hot vectors, without making them: the forward pass
    gathers rows, the backward pass adds gradients to them. weight: (num_embeddings,
    embedding_dim), which starts as standard normal.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = Parameter(init.empty((num_embeddings, embedding_dim), dtype))
        init.normal_(self.weight, generator=generator)

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
