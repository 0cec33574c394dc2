"""Sparse prefill with dual chunk attention: columns and diagonals, chosen chunk by chunk.

What the queries of a chunk see is chosen as in models/blocks/vertical_slash.py, from the last of
them, and by the scores that they are going to have: those of the positions that a query shows to
its own chunk, to the one before, and to all earlier ones. With the full budget it is dual chunk
attention, and within one chunk plain sparse prefill. A prompt may come in pieces, through a cache:
the part of a piece that lies in one chunk has an estimate of its own. So has each text of a batch
with padding.

Along a diagonal these positions jump. A query farther than w into its chunk shows c - 1 to every
key of the chunks before, and what was a diagonal is a column there. The authors of Qwen2.5-1M
therefore estimate with positions that go on, i mod s + s and, to earlier chunks, i mod s + c, while
attention itself keeps to its own. In the small models of models/experiments/sparse_chunks.py these
choices hold less of the probability, so that they are not made here.

Source: Qwen team 2025, "Qwen2.5-1M technical report", arXiv 2501.15383, section 5.2.
"""

import numpy as np

from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.attention import AttentionConfig
from models.blocks.dual_chunk import Chunks, DualChunkAttention
from models.blocks.vertical_slash import Budget, kept


class SparseDualChunkAttention(DualChunkAttention):
    """Attention by chunks that reads a prompt sparsely; decoding, and any training, is dense."""

    def __init__(
        self,
        config: AttentionConfig,
        chunks: Chunks,
        budget: Budget,
        dtype: np.dtype,
        generator: Generator | None,
    ):
        super().__init__(config, chunks, dtype, generator)
        self.budget = budget

    def of_chunk(self, together: Tensor, keys: Tensor, value: Tensor) -> Tensor:
        if self.training or together.shape[2] <= self.budget.last:
            return super().of_chunk(together, keys, value)
        groups = self.config.num_heads // self.config.num_kv_heads
        every = keys.detach().repeat_interleave(groups, 1)
        mask = Tensor(self.choice(together.detach().numpy(), every.numpy())).to(together.device)
        return F.scaled_dot_product_attention(together, keys, value, mask, scale=self.scale)

    def choice(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """What each query sees: (batch, heads, queries, keys) bool.

        query, key: (batch, heads, queries or keys, 3 head_dim), in three forms, and in place.
        """
        return kept(query, key, self.budget, self.scale, self.config.window)
