"""Causal self-attention: every position reads from itself and those before it.

    q, k, v = x W_qkv + b          split into heads of n_embd / n_head numbers each
    y = softmax(q kᵀ / sqrt(head_dim), future masked) v        per head
    out = concat(heads) W_o + b

Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2. The names c_attn and c_proj are those
of GPT-2.
"""

from typing import Any

import numpy as np

from minitorch import modes
from minitorch.backend import DEFAULT_FLOAT
from minitorch.errors import ConfigError, GraphError, ShapeError
from minitorch.kernels.reference.attention import join_heads, unpack_qkv
from minitorch.nn import functional as F
from minitorch.nn.dropout import Dropout
from minitorch.nn.linear import Linear
from minitorch.nn.module import Module
from minitorch.random import Generator
from minitorch.tensor import Tensor, wrap


class KVCache:
    """The keys and values of the positions that one attention layer has seen, for decoding.

    With it the layer computes new positions alone. capacity: how many positions it may hold; the
    memory is taken at the first use.
    """

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self._keys = self._values = np.empty(0)

    @property
    def nbytes(self) -> int:
        """The memory it has taken."""
        return self._keys.nbytes + self._values.nbytes

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in (batch, heads, time, head_dim) each; return those of all positions so far.

        Raises ShapeError past the capacity and for another batch, GraphError where gradients are
        recorded: they would not reach the positions stored before.
        """
        self.check(key, value)
        start = self.length
        keys, values = self.extend(key.shape, key.data)
        keys.data[:, :, start:], values.data[:, :, start:] = key.data, value.data
        return keys, values

    def extend(self, shape: tuple[int, ...], like: Any) -> tuple[Tensor, Tensor]:
        """Make room for (batch, heads, time, head_dim) more, which the caller writes.

        like: an array of the dtype and device. Returns what `append` does, the last rows of which
        are the new ones.
        """
        if self.length == 0:
            whole = (*shape[:2], self.capacity, shape[3])
            self._keys, self._values = (np.empty_like(like, shape=whole) for _ in range(2))
        start, end = self.length, self.length + shape[2]
        if end > self.capacity or shape[:2] != self._keys.shape[:2]:
            raise ShapeError(
                f"KVCache: expected {self._keys.shape[:2]} batch and heads, and no more than "
                f"{self.capacity} positions; got {shape} after {start} positions"
            )
        self.length = end
        return wrap(self._keys[:, :, :end]), wrap(self._values[:, :, :end])

    def take(self, rows: np.ndarray) -> None:
        """Keep these rows of the batch alone, in this order."""
        self._keys, self._values = self._keys[rows], self._values[rows]

    def adopt(self, places: np.ndarray, other: "KVCache", rows: np.ndarray) -> None:
        """Hold at `places` what `other` holds of `rows`, its last position in the last one here."""
        if other.length > self.length:
            self._shift(other.length - self.length)
        at = slice(self.length - other.length, self.length)
        self._keys[places, :, at] = other._keys[rows, :, : other.length]
        self._values[places, :, at] = other._values[rows, :, : other.length]

    def keep_last(self, positions: int) -> None:
        """Forget what is further back."""
        if positions < self.length:
            self._shift(positions - self.length)

    def _shift(self, by: int) -> None:
        """Move what is held; zeros come before it where that is to the right."""
        for held in (self._keys, self._values):
            kept = held[:, :, max(-by, 0) : self.length].copy()
            held[:, :, : max(by, 0)] = 0
            held[:, :, max(by, 0) : self.length + by] = kept
        self.length += by

    def check(self, *tensors: Tensor) -> None:
        """Raises GraphError where gradients of one of them are recorded."""
        if modes.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise GraphError("KVCache: expected no_grad(); the cache keeps no tape")


class CausalSelfAttention(Module):
    """Multi-head self-attention over x: (batch, time, n_embd) -> the same shape.

    dropout: of the attention probabilities and of the output, in training.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        bias: bool = True,
        dropout: float = 0.0,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        if n_head < 1 or n_embd % n_head:
            raise ConfigError(
                f"CausalSelfAttention: expected n_head to divide n_embd; got {n_head} and {n_embd}"
            )
        self.n_head = n_head
        self.c_attn = Linear(n_embd, 3 * n_embd, bias, dtype, generator)
        self.c_proj = Linear(n_embd, n_embd, bias, dtype, generator)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, cache: KVCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """With a cache, x are the positions that follow those in it, and are added to it.

        mask: (batch, 1, time, positions) bool, what each one reads from; None: itself and those
        before it.
        """
        qkv = self.c_attn(x)
        dropout = self.dropout.p if self.training else 0.0
        if cache is not None:
            y = self._attend_cached(qkv, cache, dropout, mask)
        elif dropout == 0 and mask is None:
            y = F.attention_qkvpacked(qkv, self.n_head, is_causal=True)
        else:
            batch, time, n_embd = x.shape
            heads = qkv.reshape(batch, time, 3, self.n_head, n_embd // self.n_head)
            query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(
                query, key, value, mask, dropout_p=dropout, is_causal=mask is None
            )
            y = y.transpose(1, 2).reshape(batch, time, n_embd)
        return self.dropout(self.c_proj(y))

    def _attend_cached(
        self, qkv: Tensor, cache: KVCache, dropout: float, mask: Tensor | None
    ) -> Tensor:
        """There is no tape, so that what only moves data can do without operations of the engine:
        a token takes so little time that each of them counts."""
        cache.check(qkv)
        query, key, value = map(wrap, unpack_qkv(qkv.data, self.n_head, self.n_head))
        key, value = cache.append(key, value)
        y = F.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=mask is None, align="lower_right"
        )
        return wrap(join_heads(y.data))

    def extra_repr(self) -> str:
        return f"n_head={self.n_head}"
