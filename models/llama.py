"""Llama 2 and 3, and DeepSeek LLM (V1), which has the same parts in other sizes.

    x = x + attention(rms_norm(x))        grouped heads, rotated queries and keys, no biases
    x = x + W_down (silu(W_gate h) ⊙ W_up h),  h = rms_norm(x)
    logits = rms_norm(x) W_headᵀ

Hugging Face's files have the rows of W_q and W_k in the order in which features i and i + d / 2 are
a pair; Meta's own files pair 2i with 2i + 1. Sources: Touvron et al. 2023 (arXiv 2307.09288); Llama
team 2024 (2407.21783); DeepSeek-AI 2024 (2401.02954), table 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitorch.errors import ConfigError
from minitorch.random import Generator
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.feed_forward import GatedFeedForward
from models.blocks.positions import Rotary, read_rope
from models.decoder import Block, DecoderConfig
from models.sizes import check_positive, check_share, check_size

LLAMA_2: dict[str, Any] = {
    "vocab_size": 32_000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
LLAMA_3: dict[str, Any] = {
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}
LLAMA_3_1: dict[str, Any] = {
    **LLAMA_3,
    "max_position_embeddings": 131_072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
LLAMA_3_2: dict[str, Any] = {
    **LLAMA_3_1,
    "rope_scaling": {**LLAMA_3_1["rope_scaling"], "factor": 32.0},
    "tie_word_embeddings": True,
}
DEEPSEEK: dict[str, Any] = {
    "vocab_size": 102_400,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
}


def size(
    width: int, layers: int, heads: int, kv_heads: int, hidden: int, **others: Any
) -> dict[str, Any]:
    """The settings of a size, and others, by their names."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": hidden,
        **others,
    }


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """The sizes of a Llama; Hugging Face's names.

    num_key_value_heads: num_attention_heads unless given. head_dim: hidden_size /
    num_attention_heads unless given. rope_scaling: {"rope_type": ...} and its settings
    (models/blocks/positions.py). Raises ConfigError for sizes that do not fit.
    """

    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0

    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {"hidden_act": ("silu",)}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": size(128, 4, 4, 2, 352, vocab_size=256, max_position_embeddings=64),
        "llama-2-7b": size(4096, 32, 32, 32, 11_008, **LLAMA_2),
        "llama-2-13b": size(5120, 40, 40, 40, 13_824, **LLAMA_2),
        "llama-2-70b": size(8192, 80, 64, 8, 28_672, **LLAMA_2),
        "llama-3-8b": size(4096, 32, 32, 8, 14_336, **LLAMA_3),
        "llama-3-70b": size(8192, 80, 64, 8, 28_672, **LLAMA_3),
        "llama-3.1-8b": size(4096, 32, 32, 8, 14_336, **LLAMA_3_1),
        "llama-3.1-70b": size(8192, 80, 64, 8, 28_672, **LLAMA_3_1),
        "llama-3.1-405b": size(16_384, 126, 128, 8, 53_248, **LLAMA_3_1),
        "llama-3.2-1b": size(2048, 16, 32, 8, 8192, **LLAMA_3_2),
        "llama-3.2-3b": size(3072, 28, 24, 8, 8192, **LLAMA_3_2),
        "llama-3.3-70b": size(8192, 80, 64, 8, 28_672, **LLAMA_3_1),
        "deepseek-llm-7b": size(4096, 30, 32, 32, 11_008, **DEEPSEEK),
        "deepseek-llm-67b": size(8192, 95, 64, 8, 22_016, **DEEPSEEK),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        for name in ("intermediate_size", "num_attention_heads", "num_key_value_heads"):
            check_size(name, getattr(self, name))
        check_positive("rope_theta", self.rope_theta)
        check_share("attention_dropout", self.attention_dropout)
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"num_attention_heads: expected a divisor of hidden_size = {self.hidden_size}, "
                    f"or head_dim beside it; got {self.num_attention_heads}"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        self.attention(0)

    def attention(self, layer: int) -> AttentionConfig:
        """What the attention of a layer is."""
        assert self.head_dim is not None
        assert self.num_key_value_heads is not None
        return AttentionConfig(
            hidden_size=self.hidden_size,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            qkv_bias=self.attention_bias,
            out_bias=self.attention_bias,
            rotary=self.rotary(),
            dropout=self.attention_dropout,
        )

    def attention_block(
        self, layer: int, dtype: np.dtype, generator: Generator | None
    ) -> Attention:
        """The attention of a layer."""
        return Attention(self.attention(layer), dtype, generator)

    def rotary(self) -> Rotary:
        """How queries and keys are turned."""
        assert self.head_dim is not None
        return Rotary(
            self.head_dim, self.rope_theta, self.rope_scaling, self.max_position_embeddings
        )

    @classmethod
    def settings(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        theta, scaling = read_rope(content)
        return {**super().settings(content), "rope_theta": theta, "rope_scaling": scaling}

    def block(self, layer: int, dtype: np.dtype, generator: Generator | None) -> Block:
        feed_forward = GatedFeedForward(
            self.hidden_size, self.intermediate_size, "silu", self.mlp_bias, dtype, generator
        )
        return Block(
            self.attention_block(layer, dtype, generator),
            feed_forward,
            (self.norm(dtype), self.norm(dtype)),
        )
