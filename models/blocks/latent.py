r"""Multi-head latent attention: the keys and values of all heads come from one vector per token.

    c   = norm(W_a x)                             the latent, kv_lora_rank numbers: what is cached,
    k^R = rotated(W_r x)                          and one rotated key for all heads
    k^C_h, v_h = W_b c                            head by head
    q^C_h, q^R_h = W_q x   or   W_qb norm(W_qa x);  q^R rotated
    y   = softmax(scale (q^C_h · k^C_h + q^R_h · k^R)) v_h;   out = concat(y) W_o

The cache has kv_lora_rank + qk_rope_head_dim numbers for a token where multi-head attention has 2
heads · head_dim. And keys and values need not be made from it: with W_b = (W_K; W_V) head by head,

    q · (W_K c) = (W_Kᵀ q) · c        and        Σ p W_V c = W_V Σ p c

so that decoding is multi-query attention to the latents themselves ("absorbed": W_K goes into the
query, W_V into the output). A rotation between W_K and c would depend on the distance and could not
be absorbed; so positions have a part of the key of their own, which is not compressed.

Source: DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434), section 2.1 and appendix C. Parameters
have Hugging Face's names. The scale is (qk_nope_head_dim + qk_rope_head_dim)^-½ and grows with
YaRN's temperature: see `softmax_scale`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitorch import nn
from minitorch.nn import functional as F
from minitorch.ops.joining import cat
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.cache import LayerCache
from models.blocks.context import Context
from models.blocks.positions import Rotary, yarn_temperature

LATENT_EPS = 1e-6
"""Of the norms of latents, whatever that of the model's other norms."""


def softmax_scale(head_dim: int, scaling: Mapping[str, Any] | None) -> float:
    """head_dim^-½, times the square of YaRN's temperature where mscale_all_dim asks for it.

    DeepSeek moved the temperature from the rotated part of queries and keys, where YaRN has it, to
    the whole of them: cos and sin then have the factor temperature(mscale) /
    temperature(mscale_all_dim), usually 1. To apply both in full makes the logits too large.
    """
    settings = scaling or {}
    temperature = 1.0
    if settings.get("mscale_all_dim"):
        temperature = yarn_temperature(settings["factor"], settings["mscale_all_dim"])
    return head_dim**-0.5 * temperature**2


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """The sizes of a latent attention layer. q_lora_rank: of the queries' latent, None without.

    rotary: of the qk_rope_head_dim features of queries and key that have positions. bias: whether
    the projections to latents and the output have biases. dropout: of probabilities, in training.
    """

    hidden_size: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rotary: Rotary
    scale: float
    bias: bool = False
    dropout: float = 0.0


class LatentAttention(nn.Module):
    """Causal self-attention: (batch, time, hidden_size) -> the same."""

    def __init__(self, config: LatentConfig, dtype: np.dtype, generator: Generator | None):
        self.config = config
        width, heads, rank = config.hidden_size, config.num_heads, config.kv_lora_rank
        q_width = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
        kv_width = heads * (config.qk_nope_head_dim + config.v_head_dim)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(width, q_width, False, dtype, generator)
        else:
            self.q_a_proj = nn.Linear(width, config.q_lora_rank, config.bias, dtype, generator)
            self.q_a_layernorm = nn.RMSNorm(config.q_lora_rank, eps=LATENT_EPS, dtype=dtype)
            self.q_b_proj = nn.Linear(config.q_lora_rank, q_width, False, dtype, generator)
        self.kv_a_proj_with_mqa = nn.Linear(
            width, rank + config.qk_rope_head_dim, config.bias, dtype, generator
        )
        self.kv_a_layernorm = nn.RMSNorm(rank, eps=LATENT_EPS, dtype=dtype)
        self.kv_b_proj = nn.Linear(rank, kv_width, False, dtype, generator)
        self.o_proj = nn.Linear(heads * config.v_head_dim, width, config.bias, dtype, generator)

    def new_cache(self) -> LayerCache:
        """Empty, for forward(): (batch, 1, time, kv_lora_rank + qk_rope_head_dim)."""
        return LayerCache()

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        """With a cache, x are the columns that follow those in it, and are added to it."""
        if cache is None and not (context.padded or (self.training and self.config.dropout)):
            return self.o_proj(self._at_once(x, context))
        batch, time, _ = x.shape
        query, latents = self._queries(x, context), self._latents(x, context)
        decoding = False
        if cache is not None:
            decoding = cache.columns > 0
            (latents,) = cache.append(context, latents)
        attend = self.absorbed if decoding else self.naive
        y = attend(query, latents, context)
        return self.o_proj(y.transpose(1, 2).reshape(batch, time, -1))

    def _at_once(self, x: Tensor, context: Context) -> Tensor:
        """Keys and values made for every head, all in one operation; nothing is cached."""
        config = self.config
        if self._plain():
            to_query: Any = (
                self.q_proj.weight
                if config.q_lora_rank is None
                else (self.q_a_proj.weight, self.q_a_layernorm.weight, self.q_b_proj.weight)
            )
            into = self.kv_a_proj_with_mqa.weight
            return F.latent_self_attention(
                x,
                to_query,
                (into, self.kv_a_layernorm.weight, self.kv_b_proj.weight),
                *config.rotary.step(x.dtype, context),
                config.num_heads,
                scale=config.scale,
                interleaved=config.rotary.interleaved,
                eps=LATENT_EPS,
            )
        latent, key = self._compressed(x)
        return F.latent_attention(
            self._projected(x),
            self.kv_b_proj(self.kv_a_layernorm(latent)),
            key,
            *config.rotary.step(x.dtype, context),
            config.num_heads,
            scale=config.scale,
            interleaved=config.rotary.interleaved,
        )

    def _plain(self) -> bool:
        """Whether the projections are products alone, without biases or adapters."""
        before = (
            [self.q_proj] if self.config.q_lora_rank is None else [self.q_a_proj, self.q_b_proj]
        )
        layers = *before, self.kv_a_proj_with_mqa, self.kv_b_proj
        return not self.config.bias and all(type(layer) is nn.Linear for layer in layers)

    def _projected(self, x: Tensor) -> Tensor:
        """Queries, not yet turned: (batch, time, heads (qk_nope_head_dim + qk_rope_head_dim))."""
        if self.config.q_lora_rank is None:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    def _compressed(self, x: Tensor) -> tuple[Tensor, ...]:
        """The latent, not yet normalised, and the key, not yet turned: (batch, time, ...)."""
        sizes = [self.config.kv_lora_rank, self.config.qk_rope_head_dim]
        return self.kv_a_proj_with_mqa(x).split(sizes, -1)

    def _queries(self, x: Tensor, context: Context) -> Tensor:
        """(batch, heads, time, qk_nope_head_dim + qk_rope_head_dim)."""
        config = self.config
        query = self._projected(x).reshape(*x.shape[:2], config.num_heads, -1).transpose(1, 2)
        plain, turned = query.split([config.qk_nope_head_dim, config.qk_rope_head_dim], -1)
        return cat([plain, config.rotary(turned, context)], -1)

    def _latents(self, x: Tensor, context: Context) -> Tensor:
        """What is cached, latent and rotated key: (batch, 1, time, their numbers)."""
        latent, key = (part.unsqueeze(1) for part in self._compressed(x))
        return cat([self.kv_a_layernorm(latent), self.config.rotary(key, context)], -1)

    def naive(self, query: Tensor, latents: Tensor, context: Context) -> Tensor:
        """Keys and values made for every head: (batch, heads, time, v_head_dim)."""
        config = self.config
        latent, turned = latents.split([config.kv_lora_rank, config.qk_rope_head_dim], -1)
        made = self.kv_b_proj(latent.squeeze(1))
        made = made.reshape(*made.shape[:2], config.num_heads, -1).transpose(1, 2)
        plain, value = made.split([config.qk_nope_head_dim, config.v_head_dim], -1)
        turned = turned.expand(*plain.shape[:-1], config.qk_rope_head_dim)
        return self._attend(query, cat([plain, turned], -1), value, context)

    def absorbed(self, query: Tensor, latents: Tensor, context: Context) -> Tensor:
        """The same, read from the latents directly."""
        config = self.config
        both = self.kv_b_proj.weight.reshape(config.num_heads, -1, config.kv_lora_rank)
        to_key, to_value = both.split([config.qk_nope_head_dim, config.v_head_dim], 1)
        plain, turned = query.split([config.qk_nope_head_dim, config.qk_rope_head_dim], -1)
        query = cat([plain @ to_key, turned], -1)
        mixed = self._attend(query, latents, latents[..., : config.kv_lora_rank], context)
        return mixed @ to_value.mT

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        columns = key.shape[2]
        mask = None
        if context.padded:
            mask = context.once(
                ("visible", columns),
                lambda: Tensor(context.visible(columns)[:, None]).to(context.device),
            )
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            mask,
            dropout_p=self.config.dropout if self.training else 0.0,
            is_causal=mask is None,
            scale=self.config.scale,
            align="lower_right",
        )

    def extra_repr(self) -> str:
        config = self.config
        return f"{config.num_heads} heads, latent {config.kv_lora_rank}+{config.qk_rope_head_dim}"
