"""Embedding: a table of vectors, looked up by index; and one whose gradient has few rows.

A step of training looks up few rows of a large table, and the gradient of all others is 0.
`Embedding` writes these zeros and an optimizer goes through them; in `RowEmbedding` what was looked
up is what is differentiated, so that a step costs as much as it has rows, however large the table.
"""

import numpy as np

from minitorch import modes
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


class RowGradient(Tensor):
    """The gradient of some rows of a table, the others being 0: (len(rows), features).

    rows: which they are, int64, in ascending order, each once. Clipping scales it like any other;
    `Optimizer.step` then reads and writes these rows alone. In PyTorch: a sparse COO tensor.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: np.ndarray, data: np.ndarray):
        super().__init__(data)
        self.rows = rows


class RowEmbedding(Embedding):
    """An Embedding whose weight gets a `RowGradient`.

    The rows that a call looks up become a leaf of the tape, and their gradient is handed on to
    weight.grad at the end of the sweep, where several calls add up. Only `backward` does so:
    `grad`, the forward sweep and second derivatives see no weight. It must not be used in other
    operations.
    In PyTorch: Embedding(sparse=True).
    """

    def forward(self, indices: Tensor) -> Tensor:
        if not self.learns():
            return super().forward(indices)
        rows, places = np.unique(indices.data, return_inverse=True)
        return F.embedding(Tensor(places.reshape(indices.shape)), self.leaf(rows))

    def learns(self) -> bool:
        """Whether what is looked up now will have a gradient."""
        return modes.is_grad_enabled() and self.weight.requires_grad

    def leaf(self, rows: np.ndarray) -> Tensor:
        """These rows, a leaf of the tape if they learn: (len(rows), features).

        rows: as those of a RowGradient.
        """
        found = F.embedding(Tensor(rows), self.weight.detach())
        return _Leaf(found.data, self.weight, rows) if self.learns() else found


class _Leaf(Tensor):
    """Rows of a table, whose gradient is the table's: it keeps none of its own."""

    __slots__ = ("rows", "weight")

    def __init__(self, data: np.ndarray, weight: Parameter, rows: np.ndarray):
        super().__init__(data, requires_grad=True)
        self.weight, self.rows = weight, rows

    @property
    def grad(self) -> None:
        """Handed on."""

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            _add_rows(self.weight, self.rows, value.data)


def _add_rows(weight: Parameter, rows: np.ndarray, grad: np.ndarray) -> None:
    """weight.grad += grad in these rows."""
    held = weight.grad
    if held is None:
        weight.grad = RowGradient(rows, grad)
        return
    assert isinstance(held, RowGradient)
    both, places = np.unique(np.concatenate([held.rows, rows]), return_inverse=True)
    total = np.zeros_like(grad, shape=(len(both), *grad.shape[1:]))
    total[places[: len(held.rows)]] += held.data
    total[places[len(held.rows) :]] += grad
    weight.grad = RowGradient(both, total)
