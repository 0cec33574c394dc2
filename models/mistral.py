"""Mistral 7B: a Llama in which a token sees a window of the text.

After l layers news has come from l windows back, though every layer's cache holds one window alone.
From version 0.2 on there is no window. Source: Jiang et al. 2023 (arXiv 2310.06825).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.blocks.attention import AttentionConfig
from models.llama import LlamaConfig

MISTRAL: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """sliding_window: how many tokens back one sees, itself included; None: all."""

    sliding_window: int | None = None

    model_type: ClassVar[str] = "mistral"
    architecture: ClassVar[str] = "MistralForCausalLM"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {**LlamaConfig.presets["toy"], "sliding_window": 16},
        "mistral-7b-v0.1": {**MISTRAL, "vocab_size": 32_000, "sliding_window": 4096},
        "mistral-7b-v0.2": {**MISTRAL, "vocab_size": 32_000, "rope_theta": 1e6},
        "mistral-7b-v0.3": {**MISTRAL, "vocab_size": 32_768, "rope_theta": 1e6},
    }

    def attention(self, layer: int) -> AttentionConfig:
        return dataclasses.replace(super().attention(layer), window=self.sliding_window)

    @classmethod
    def settings(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        window = content.get("sliding_window", 4096)  # what its absence means to transformers
        return {**super().settings(content), "sliding_window": window}
