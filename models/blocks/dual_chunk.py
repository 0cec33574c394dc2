"""Dual chunk attention: a text longer than those trained on, with no distance longer than theirs.

The text is cut into chunks of s = c - w tokens, c being the length trained on and w a local window.
A key's position is its place in its chunk. A query has three, and which one it shows to a key
follows from how many chunks lie between:

    key                        j mod s
    query, to its own chunk    i mod s                            distances as they are
    to the chunk before        min(i mod s + s, c - 1)            as they are up to w, at least
    to those before            c - 1                              far, but no farther than known

The scores of all keys go into one softmax. Keys are turned once, so they can be cached. For texts
of up to s tokens it is plain attention. Source: An et al. 2024 (arXiv 2402.17463), section 3; their
code clamps at c where the paper, and this, has c - 1.
"""

from dataclasses import dataclass

import numpy as np

from minitorch.errors import ConfigError
from minitorch.ops.masking import where
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.cache import LayerCache
from models.blocks.context import Context


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """trained: c, the length trained on. local: w, up to which distances between chunks hold."""

    trained: int
    local: int

    def __post_init__(self) -> None:
        if not 0 < self.local < self.trained:
            raise ConfigError(
                f"dual chunk attention: expected 0 < local < trained; got {self.local} and "
                f"{self.trained}"
            )

    @property
    def size(self) -> int:
        """s, the tokens of a chunk."""
        return self.trained - self.local

    def of_query(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where a query stands for its own chunk, for the one before, and for all earlier ones."""
        own = positions % self.size
        before = np.minimum(own + self.size, self.trained - 1)
        return own, before, np.full_like(own, self.trained - 1)


class DualChunkAttention(Attention):
    """Attention with rotated positions, by chunks. It holds the scores of all pairs in memory."""

    def __init__(
        self,
        config: AttentionConfig,
        chunks: Chunks,
        dtype: np.dtype,
        generator: Generator | None,
    ):
        if config.rotary is None or config.alibi or config.sinks or config.softcap:
            raise ConfigError(
                "dual chunk attention: expected rotated positions, and neither linear biases, "
                "sinks nor a soft cap"
            )
        super().__init__(config, dtype, generator)
        self.chunks = chunks

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        rotary, chunks = self.config.rotary, self.chunks
        assert rotary is not None
        query, key, value = self.project(x, context)
        key = rotary.at(context.query % chunks.size, key, context)
        if cache is not None:
            key, value = cache.append(context, key, value)
        groups = self.config.num_heads // self.config.num_kv_heads
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        own, before, earlier = (
            rotary.at(positions, query, context) @ key.mT
            for positions in chunks.of_query(context.query)
        )
        columns = key.shape[2]
        between = self._chunks_between(context, columns)
        scores = where(between == 0, own, where(between == 1, before, earlier))
        hidden = Tensor(~context.visible(columns, self.config.window)[:, None]).to(context.device)
        scores = scores * (self.config.scale or self.config.head_dim**-0.5)
        blind = hidden.all(-1, keepdim=True)  # a query of padding sees nothing, and gives zeros
        probs = scores.masked_fill(hidden & ~blind, float("-inf")).softmax(-1)
        return self.join(probs.masked_fill(blind, 0.0) @ value)

    def _chunks_between(self, context: Context, columns: int) -> Tensor:
        """How many chunks a query is after a key: (1 or batch, 1, time, columns)."""

        def make() -> Tensor:
            query, key = (x // self.chunks.size for x in (context.query, context.key[:, -columns:]))
            return Tensor((query[:, :, None] - key[:, None])[:, None]).to(context.device)

        return context.once(("chunks", self.chunks, columns), make)
