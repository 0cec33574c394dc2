"""A window that keeps the first tokens in sight, for texts without end: attention sinks.

A softmax has to put its weights somewhere, and trained models put what they do not need on the
first tokens. A window that drops these breaks them; one that keeps the first few and the last w
goes on for ever, in constant memory. Key j is visible to the query at i if

    j <= i  and  (i - j < w  or  j < first)

Distances count within what is kept, so that none is longer than first + w - 1: to the window as
they are, and to a first token as from position min(i, first + w - 1). For texts of up to first + w
tokens it is plain attention. Source: Xiao et al. 2023, "Efficient streaming language models with
attention sinks" (arXiv 2309.17453), section 3.2.

A query has two positions then. Its two forms stand side by side, and a key fills the place of the
one that it is shown, as in dual chunk attention (models/blocks/dual_chunk.py):

    [q_window, q_first] · [k, 0] = q_window · k          [q_window, q_first] · [0, k] = q_first · k
"""

from collections.abc import Sequence

import numpy as np

from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.ops.joining import cat
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.cache import LayerCache
from models.blocks.context import PADDING, Context


class FirstTokens:
    """Tensors of the first tokens of each row, by position: (batch, heads, count, features)."""

    def __init__(self, count: int):
        self.count = count
        self._held: list[np.ndarray] = []

    @property
    def nbytes(self) -> int:
        """The memory it has taken."""
        return sum(held.nbytes for held in self._held)

    def append(self, context: Context, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Take in those of a step; return all. What has not come yet is zeros."""
        if not self._held:
            self._held = [
                np.zeros_like(t.data, shape=(*t.shape[:-2], self.count, t.shape[-1]))
                for t in tensors
            ]
        at = np.broadcast_to(context.query, (len(tensors[0]), tensors[0].shape[-2]))
        rows, columns = np.nonzero((at != PADDING) & (at < self.count))
        for held, tensor in zip(self._held, tensors, strict=True):
            held[rows, :, at[rows, columns]] = tensor.data[rows, :, columns]
        return tuple(Tensor(held) for held in self._held)

    def take(self, rows: np.ndarray) -> None:
        """Keep these rows alone, in this order."""
        self._held = [held[rows] for held in self._held]

    def adopt(self, places: np.ndarray, other: "FirstTokens", rows: np.ndarray) -> None:
        """Hold at `places` what `other` holds of `rows`."""
        for held, source in zip(self._held, other._held, strict=True):
            held[places] = source[rows]


class StreamingCache(LayerCache):
    """The keys and values of a window, and besides those of the first tokens."""

    def __init__(self, window: int, first: int):
        super().__init__(window)
        self.first = FirstTokens(first)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.first.nbytes

    def take(self, rows: np.ndarray) -> None:
        super().take(rows)
        self.first.take(rows)

    def adopt(self, places: np.ndarray, other: LayerCache, rows: np.ndarray) -> None:
        super().adopt(places, other, rows)
        assert isinstance(other, StreamingCache)
        self.first.adopt(places, other.first, rows)


class StreamingAttention(Attention):
    """Attention with rotated positions, to a window and to the `first` tokens of a text."""

    def __init__(
        self, config: AttentionConfig, first: int, dtype: np.dtype, generator: Generator | None
    ):
        if config.rotary is None or config.alibi or config.window is None or first < 1:
            raise ConfigError(
                "first_tokens: expected at least 1, with a window, rotated positions and no linear "
                f"biases; got {first} and window = {config.window}"
            )
        super().__init__(config, dtype, generator)
        self.first, self.window = first, config.window

    def new_cache(self) -> LayerCache:
        return StreamingCache(self.window, self.first)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        rotary, farthest = self.config.rotary, self.first + self.window - 1
        assert rotary is not None
        query, key, value = self.project(x, context)
        key = rotary(key, context)
        at = np.minimum(context.query, farthest)
        query = cat([rotary(query, context), rotary.at(at, query, context, ("to", farthest))], -1)
        if isinstance(cache, StreamingCache):
            near = cache.append(context, key, value)
            early = cache.first.append(context, key, value)
            seen = self._seen_by_position(context)
        else:
            columns = np.flatnonzero(((context.key != PADDING) & (context.key < self.first)).any(0))
            near, early = (key, value), (key[:, :, columns], value[:, :, columns])
            seen = self._seen_by_column(context, columns)
        mask = np.concatenate([context.visible(near[0].shape[2], self.window), seen], -1)
        keys, values = zip(near, early, strict=True)
        return self.join(self._attend_both(query, keys, values, mask))

    def _seen_by_position(self, context: Context) -> np.ndarray:
        """Which of the cache's first tokens are seen and not in the window: (rows, time, first)."""
        return context.query[:, :, None] - np.arange(self.first) >= self.window

    def _seen_by_column(self, context: Context, columns: np.ndarray) -> np.ndarray:
        """The same of columns of the step: (rows, time, columns)."""
        at = context.key[:, None, columns]
        early = (at != PADDING) & (at < self.first)
        seen = early & (context.query[:, :, None] - at >= self.window)
        if context.segments is not None:
            seen &= context.segments[:, :, None] == context.segments[:, None, columns]
        return seen

    def _attend_both(
        self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], mask: np.ndarray
    ) -> Tensor:
        """query: (batch, heads, time, 2 head_dim); keys and values of the window, of the first."""
        config = self.config
        near, early = keys
        zeros = [Tensor(np.zeros(key.shape, key.dtype)).to(key.device) for key in keys]
        placed = [cat([near, zeros[0]], -1), cat([zeros[1], early], -1)]
        return F.scaled_dot_product_attention(
            query,
            cat(placed, 2),
            cat(list(values), 2),
            Tensor(mask[:, None]).to(query.device),
            dropout_p=config.dropout if self.training else 0.0,
            scale=config.scale or config.head_dim**-0.5,
            softcap=config.softcap,
            sinks=self.sinks,
        )
