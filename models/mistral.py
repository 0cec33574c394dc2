"""Mistral 7B: a Llama in which a token sees a window of the text.

After l layers news has come from l windows back, though every layer's cache holds one window alone.
From version 0.2 on there is no window. Source: Jiang et al. 2023 (arXiv 2310.06825).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitorch import nn
from minitorch.errors import ConfigError
from minitorch.random import Generator
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.streaming import StreamingAttention
from models.decoder import Decoder
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
    """sliding_window: how many tokens back one sees, itself included; None: all.

    first_tokens: so many of the beginning stay in sight besides (models/blocks/streaming.py), which
    lets a model that was trained without a window go on for ever. transformers knows no such field.
    """

    sliding_window: int | None = None
    first_tokens: int = 0

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

    def attention_block(
        self, layer: int, dtype: np.dtype, generator: Generator | None
    ) -> Attention:
        if not self.first_tokens:
            return super().attention_block(layer, dtype, generator)
        return StreamingAttention(self.attention(layer), self.first_tokens, dtype, generator)

    @classmethod
    def settings(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        window = content.get("sliding_window", 4096)  # what its absence means to transformers
        return {**super().settings(content), "sliding_window": window}


def streaming(model: Decoder, window: int, first_tokens: int = 4) -> Decoder:
    """A Llama or a Mistral that writes without end: the same weights, and the attention of
    models/blocks/streaming.py.

    window + first_tokens: at most as many tokens as the model was trained on. The weights are
    shared, not copied. Raises ConfigError for another family, whose layers are not these.
    """
    if type(model.config) not in (LlamaConfig, MistralConfig):
        raise ConfigError(
            f"streaming: expected a Llama or a Mistral; got {type(model.config).__name__}"
        )
    fields = dataclasses.asdict(model.config)
    config = MistralConfig(**fields | {"sliding_window": window, "first_tokens": first_tokens})
    some = next(model.parameters())
    with nn.init.unallocated():
        made = config.build(some.dtype, None)
    made = made.to(some.device)
    made.load_state_dict(model.state_dict(), assign=True)
    return made
