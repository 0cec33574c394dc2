"""Attention with a head of keys and values for every head of queries, for some of them, or for all.

    q, k, v = x W_q, x W_k, x W_v              heads, kv_heads and kv_heads of head_dim each
    q, k    = turned by their positions        after their norms, where they have one
    y       = softmax(scale q kᵀ + bias, what is out of sight masked) v
    out     = concat(heads) W_o

Head h of the queries reads from head h // (heads / kv_heads) of the keys: multi-head attention for
kv_heads = heads, grouped for fewer, multi-query for one; the cache shrinks by the same factor.
Sources: Vaswani et al. 2017; multi-query, Shazeer 2019 (arXiv 1911.02150); grouped, Ainslie et al.
2023 (2305.13245); norms of queries and keys, Henry et al. 2020 (2010.04245); sinks, Xiao et al.
2023 (2309.17453), as learnt logits, openai/gpt-oss.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minitorch import nn
from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.cache import LayerCache
from models.blocks.context import Context, starts
from models.blocks.positions import Rotary, alibi_slopes, log_scaling


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The sizes of an attention layer, and which of the variants it has.

    qkv_bias, out_bias: whether projections have biases. rotary: None for no rotation. qk_norm: the
    eps of an RMSNorm of every head of queries and keys, or None. window: how many positions back a
    token sees, itself included. sinks: a learnt logit for each head that takes part in the softmax
    without a value. alibi: linear biases. trained_length: beyond it queries grow with the logarithm
    of their position; None: they do not. softcap: c, for scores c tanh(s / c); 0: none. dropout: of
    the probabilities, in training.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    rotary: Rotary | None = None
    qk_norm: float | None = None
    window: int | None = None
    sinks: bool = False
    alibi: bool = False
    trained_length: int | None = None
    softcap: float = 0.0
    scale: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_key_value_heads: expected a divisor of num_attention_heads = "
                f"{self.num_heads}; got {self.num_kv_heads}"
            )
        if self.window is not None and self.window < 1:
            raise ConfigError(f"sliding_window: expected at least 1, or none; got {self.window}")

    @property
    def window_size(self) -> tuple[int, int]:
        """How many positions before and after its own a token sees; -1: all."""
        return (-1 if self.window is None else self.window - 1, -1)


class Attention(nn.Module):
    """Causal self-attention: (batch, time, hidden_size) -> the same."""

    def __init__(self, config: AttentionConfig, dtype: np.dtype, generator: Generator | None):
        self.config = config
        width, head_dim = config.hidden_size, config.head_dim
        q_width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim
        self.q_proj = nn.Linear(width, q_width, config.qkv_bias, dtype, generator)
        self.k_proj = nn.Linear(width, kv_width, config.qkv_bias, dtype, generator)
        self.v_proj = nn.Linear(width, kv_width, config.qkv_bias, dtype, generator)
        self.o_proj = nn.Linear(q_width, width, config.out_bias, dtype, generator)
        if config.qk_norm is not None:
            self.q_norm = nn.RMSNorm(head_dim, eps=config.qk_norm, dtype=dtype)
            self.k_norm = nn.RMSNorm(head_dim, eps=config.qk_norm, dtype=dtype)
        self.sinks = nn.Parameter(np.zeros(config.num_heads, dtype)) if config.sinks else None

    def new_cache(self) -> LayerCache:
        """Empty, for forward()."""
        return LayerCache(self.config.window)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        """With a cache, x are the columns that follow those in it, and are added to it."""
        if cache is None and (rotary := self._turned_alone(context)) is not None:
            return self.o_proj(self._at_once(x, context, rotary))
        query, key, value = self.project(x, context)
        if self.config.rotary is not None:
            query, key = self.config.rotary(query, context), self.config.rotary(key, context)
        if cache is not None:
            key, value = cache.append(context, key, value)
        return self.join(self.attend(query, key, value, context))

    def _turned_alone(self, context: Context) -> Rotary | None:
        """The rotation, where between the projections there is nothing but it and the softmax."""
        config = self.config
        more = config.qk_norm is not None or config.sinks or config.alibi
        if more or self._beyond(context) or context.padded or (self.training and config.dropout):
            return None
        return config.rotary if type(self).attend is Attention.attend else None

    def _at_once(self, x: Tensor, context: Context, rotary: Rotary) -> Tensor:
        """What the heads found, put together, in one operation; nothing is cached."""
        config, layers = self.config, (self.q_proj, self.k_proj, self.v_proj)
        heads = config.num_heads, config.num_kv_heads
        options: dict[str, Any] = {
            "interleaved": rotary.interleaved,
            "scale": config.scale,
            "window_size": config.window_size,
            "softcap": config.softcap,
        }
        if all(type(layer) is nn.Linear for layer in layers):
            q, k, v = ((layer.weight, layer.bias) for layer in layers)
            cos, sin = rotary.step(x.dtype, context)
            return F.rotary_self_attention(x, q, k, v, cos, sin, *heads, **options)
        query, key, value = (layer(x) for layer in layers)
        cos, sin = rotary.step(query.dtype, context)
        return F.rotary_attention(query, key, value, cos, sin, *heads, **options)

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, not yet turned: (batch, heads or kv_heads, time, head_dim)."""
        batch, time, _ = x.shape
        one = time == 1  # in memory its heads lie as they are wanted
        shape = (batch, -1, 1) if one else (batch, time, -1)
        query, key, value = (
            project(x).reshape(*shape, self.config.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.qk_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if not one:
            query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
        if self._beyond(context):
            query = query * self._log_scaling(context, query.dtype)
        return query, key, value

    def join(self, heads: Tensor) -> Tensor:
        """What the heads found, put together: (batch, time, hidden_size)."""
        batch, _, time, _ = heads.shape
        by_time = heads if time == 1 else heads.transpose(1, 2)
        return self.o_proj(by_time.reshape(batch, time, -1))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        """Softmax and mixture: (batch, heads, time, head_dim). By columns where none is padded."""
        config = self.config
        if context.segments is not None and not (config.alibi or config.dropout):
            return self._attend_packed(query, key, value, context)
        by_column = not (context.padded or config.alibi)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            None if by_column else self._mask(context, key.shape[2], query.dtype),
            dropout_p=config.dropout if self.training else 0.0,
            is_causal=by_column,
            scale=config.scale,
            window_size=config.window_size if by_column else (-1, -1),
            softcap=config.softcap,
            sinks=self.sinks,
            align="lower_right",
        )

    def _attend_packed(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        """The same, text by text: nothing is computed between the texts of a row."""
        segments, config = context.segments, self.config
        assert segments is not None
        cu_seq = context.once("starts", lambda: Tensor(starts(segments)).to(context.device))
        query, key, value = (
            heads.transpose(1, 2).reshape(segments.size, -1, heads.shape[-1])
            for heads in (query, key, value)
        )
        out = F.varlen_attn(
            query,
            key,
            value,
            cu_seq,
            is_causal=True,
            scale=config.scale,
            window_size=config.window_size,
            softcap=config.softcap,
            sinks=self.sinks,
        )
        batch, time = segments.shape
        return out.reshape(batch, time, -1, value.shape[-1]).transpose(1, 2)

    def _mask(self, context: Context, columns: int, dtype: np.dtype) -> Tensor:
        """What is visible, or the linear biases of it: (1 or batch, 1 or heads, time, columns)."""
        config = self.config

        def make() -> Tensor:
            seen = context.visible(columns, config.window)[:, None]
            if config.alibi:
                slopes = alibi_slopes(config.num_heads)[:, None, None]
                bias = -slopes * context.distance(columns)[:, None]
                seen = np.where(seen, bias, -np.inf).astype(dtype)
            return Tensor(seen).to(context.device)

        return context.once(("mask", columns, config.window, config.alibi, dtype), make)

    def _beyond(self, context: Context) -> bool:
        """Whether some token is beyond the trained length: up to it queries are as they are."""
        trained = self.config.trained_length
        if trained is None:
            return False
        return context.once(("beyond", trained), lambda: bool((context.query >= trained).any()))

    def _log_scaling(self, context: Context, dtype: np.dtype) -> Tensor:
        trained = self.config.trained_length
        assert trained is not None
        scale = log_scaling(context.query, trained)[:, None, :, None]
        return Tensor(scale.astype(dtype)).to(context.device)

    def extra_repr(self) -> str:
        config = self.config
        return f"{config.num_heads} heads, {config.num_kv_heads} of keys, {config.head_dim} each"
