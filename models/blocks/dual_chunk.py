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

So that the scores of all pairs need not be in memory, the queries of a chunk stand side by side in
their three forms, and each key fills the place of the form that it is shown, the others with zeros:

    [q_own, q_before, q_earlier] · [0, k, 0] = q_before · k

which is one attention with three times as many features: flash attention computes it block by
block, and its gradients. The authors merge three attentions by their log-sum-exps instead, which is
cheaper by the products with zeros, and the same. Rows with padding, and texts packed into one row,
are taken out and go through it one by one.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.ops.joining import cat
from minitorch.ops.masking import where
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.cache import LayerCache
from models.blocks.context import PADDING, Context


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

    def of_query(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Where a query stands for its own chunk, for the one before, and for all earlier ones."""
        own = positions % self.size
        return {
            "in chunk": own,
            "before": np.minimum(own + self.size, self.trained - 1),
            "earlier": np.full_like(own, self.trained - 1),
        }


class DualChunkAttention(Attention):
    """Attention with rotated positions, by chunks."""

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
        self.chunks, self.scale = chunks, config.scale or config.head_dim**-0.5

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        rotary, size = self.config.rotary, self.chunks.size
        assert rotary is not None
        query, key, value = self.project(x, context)
        key = rotary.at(context.query % size, key, context, (self.chunks, "in chunk"))
        if cache is not None:
            key, value = cache.append(context, key, value)
        queries = [
            rotary.at(positions, query, context, (self.chunks, name))
            for name, positions in self.chunks.of_query(context.query).items()
        ]
        return self.join(self.blockwise(queries, key, value, context))

    def blockwise(
        self, queries: list[Tensor], key: Tensor, value: Tensor, context: Context
    ) -> Tensor:
        """queries: in three forms, (batch, heads, time, head_dim) each, which it returns."""
        if queries[0].shape[2] == 1:
            return self.by_pairs(queries, key, value, context)
        together = cat(queries, -1)
        if context.padded:
            return self.by_texts(together, key, value, context)
        first = int(context.key[0, -key.shape[2]])
        return self.by_chunks(together, key, value, context.query[0], first)

    def by_texts(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        """by_chunks for each text of a batch with padding, which gives zeros.

        query: (batch, heads, time, 3 head_dim), in three forms. Returns (batch, heads, time,
        head_dim).
        """
        batch, heads, time, _ = query.shape
        places, found, count = np.full((batch, time), -1), [], 0
        for row, own, seen in _texts(context, batch, key.shape[2]):
            at = context.query[row % len(context.query), own]
            first = int(context.key[row % len(context.key), -key.shape[2] :][seen][0])
            q, k, v = (
                part[row : row + 1][:, :, columns]
                for part, columns in ((query, own), (key, seen), (value, seen))
            )
            found.append(self.by_chunks(q, k, v, at, first)[0])
            places[row, own] = np.arange(count, count + len(own))
            count += len(own)
        zeros = Tensor(np.zeros((heads, 1, value.shape[-1]), value.dtype)).to(value.device)
        return cat([*found, zeros], 1)[:, places].transpose(0, 1)

    def by_chunks(
        self, together: Tensor, key: Tensor, value: Tensor, at: np.ndarray, first_key: int
    ) -> Tensor:
        """A chunk of queries at a time: (batch, heads, time, head_dim). Without padding.

        together: (batch, heads, time, 3 head_dim), queries in three forms; at: their positions,
        (time,), and first_key that of the first key, from which on there are all of them.
        """
        size, found = self.chunks.size, []
        for chunk in range(at[0] // size, at[-1] // size + 1):
            first, last = max(chunk * size, at[0]), min((chunk + 1) * size, at[-1] + 1)
            starts = [0, (chunk - 1) * size, chunk * size, last]
            starts = [max(start - first_key, 0) for start in starts]
            parts = [key[:, :, i:j] for i, j in itertools.pairwise(starts)]
            found.append(
                self.of_chunk(
                    together[:, :, first - at[0] : last - at[0]],
                    cat([in_place(part, i) for part, i in zip(parts, (2, 1, 0))], 2),
                    value[:, :, : starts[-1]],
                )
            )
        return cat(found, 2)

    def of_chunk(self, together: Tensor, keys: Tensor, value: Tensor) -> Tensor:
        """Queries of one chunk, in three forms, and all keys up to the last of them, in place."""
        return F.scaled_dot_product_attention(
            together,
            keys,
            value,
            dropout_p=self.config.dropout if self.training else 0.0,
            is_causal=True,
            scale=self.scale,
            window_size=self.config.window_size,
            align="lower_right",
        )

    def by_pairs(
        self, queries: list[Tensor], key: Tensor, value: Tensor, context: Context
    ) -> Tensor:
        """The same with the scores of all pairs in memory, which for one query each are few."""
        groups, columns = self.config.num_heads // self.config.num_kv_heads, key.shape[2]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        own, before, earlier = (query @ key.mT for query in queries)
        between = self._chunks_between(context, columns)
        scores = where(between == 0, own, where(between == 1, before, earlier))
        hidden = Tensor(~context.visible(columns, self.config.window)[:, None]).to(context.device)
        scores = scores * self.scale
        blind = hidden.all(-1, keepdim=True)  # a query of padding sees nothing, and gives zeros
        probs = scores.masked_fill(hidden & ~blind, float("-inf")).softmax(-1)
        probs = F.dropout(probs.masked_fill(blind, 0.0), self.config.dropout, self.training)
        return probs @ value

    def _chunks_between(self, context: Context, columns: int) -> Tensor:
        """How many chunks a query is after a key: (1 or batch, 1, time, columns)."""

        def make() -> Tensor:
            query, key = (x // self.chunks.size for x in (context.query, context.key[:, -columns:]))
            return Tensor((query[:, :, None] - key[:, None])[:, None]).to(context.device)

        return context.once(("chunks", self.chunks, columns), make)


def _texts(
    context: Context, batch: int, columns: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The row of each text, and the columns of its queries, and of its keys among the last ones."""
    shape = batch, len(context.query[0])
    query = np.broadcast_to(context.query, shape) != PADDING
    key = np.broadcast_to(context.key[:, -columns:], (batch, columns)) != PADDING
    for row in range(batch):
        if context.segments is None:
            texts = [(query[row], key[row])]
        else:
            segment = context.segments[row]
            texts = [(segment == i, segment == i) for i in np.unique(segment[query[row]])]
        for own, seen in texts:
            if own.any():
                yield row, np.flatnonzero(own), np.flatnonzero(seen)


def in_place(key: Tensor, place: int) -> Tensor:
    """Keys with zeros before and after them: (..., head_dim) -> (..., 3 head_dim)."""
    zeros = Tensor(np.zeros(key.shape, key.dtype)).to(key.device)
    return cat([key if i == place else zeros for i in range(3)], -1)
