"""Sparse prefill: in a long prompt most of the attention lies on a few columns and diagonals.

Which ones is seen from the last queries alone. With A their probabilities over all keys,

    vertical score of key j          the sum of A over its column
    slash score of distance d        the sum of A over the diagonal query - key = d

the `columns` greatest of the first and the `diagonals` greatest of the second are kept, besides the
first keys, on which attention rests that has nowhere to go, and the nearest. The softmax is over
what is kept. With all of them kept it is dense attention. A prompt that comes in pieces, through a
cache, has an estimate for each piece, from its own last queries. Sources: Jiang et al. 2024,
"MInference", arXiv 2407.02490, section 3 and algorithm 2; by pieces, Qwen team 2025, "Qwen2.5-1M",
2501.15383. With dual chunk attention: models/blocks/sparse_chunks.py.
"""

from dataclasses import dataclass

import numpy as np

from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.context import Context


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of the attention is kept. last: the queries that the estimate is made from.

    So many queries or fewer are not estimated for: all their scores are known by then, and kept.
    """

    columns: int
    diagonals: int
    last: int = 64
    sinks: int = 4
    nearest: int = 64

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            least = 1 if name == "last" else 0
            if not isinstance(count, int) or count < least:
                raise ConfigError(
                    f"sparse prefill: expected {name} to be an integer of at least {least}; "
                    f"got {count!r}"
                )


def kept(
    query: np.ndarray, key: np.ndarray, budget: Budget, scale: float, window: int | None = None
) -> np.ndarray:
    """Which keys each query sees: (batch, heads, queries, keys) bool, nothing after the query.

    query, key: (batch, heads, queries or keys, head_dim), turned to their positions already; the
    last query stands at the last key. window: how many keys back a query sees, its own included.
    """
    time, columns = query.shape[2], key.shape[2]
    distance = np.arange(columns - time, columns)[:, None] - np.arange(columns)
    visible = (distance >= 0) & (distance < (window or columns))
    last = slice(-min(budget.last, time), None)
    scores = np.where(visible[last], scale * (query[:, :, last] @ key.swapaxes(2, 3)), -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    by_distance = np.zeros_like(probs[:, :, 0])
    for row, i in enumerate(range(columns - probs.shape[2], columns)):
        by_distance[..., : i + 1] += probs[:, :, row, i::-1]
    column = _greatest(probs.sum(2), budget.columns)
    slash = _greatest(by_distance, budget.diagonals)
    column[..., : budget.sinks] = True
    slash[..., : budget.nearest] = True
    return (column[:, :, None] | slash[..., np.maximum(distance, 0)]) & visible


def _greatest(scores: np.ndarray, count: int) -> np.ndarray:
    """Which entries of the last dimension are the `count` greatest: bool, of the same shape."""
    chosen = np.zeros(scores.shape, bool)
    order = np.argsort(-scores, -1, kind="stable")[..., :count]
    np.put_along_axis(chosen, order, True, -1)
    return chosen


class VerticalSlashAttention(Attention):
    """Attention that reads a prompt sparsely; all that follows, and any training, is dense."""

    def __init__(
        self,
        config: AttentionConfig,
        budget: Budget,
        dtype: np.dtype,
        generator: Generator | None,
    ):
        super().__init__(config, dtype, generator)
        self.budget = budget

    def attend(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        config = self.config
        if self.training or query.shape[2] <= self.budget.last or context.padded:
            return super().attend(query, key, value, context)
        scale = config.scale or config.head_dim**-0.5
        keys = key.repeat_interleave(config.num_heads // config.num_kv_heads, 1)
        seen = kept(
            query.detach().numpy(), keys.detach().numpy(), self.budget, scale, config.window
        )
        mask = Tensor(seen).to(context.device)
        return F.scaled_dot_product_attention(
            query, key, value, mask, scale=scale, softcap=config.softcap, sinks=self.sinks
        )
