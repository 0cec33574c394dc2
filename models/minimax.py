"""MiniMax-01: seven layers of lightning attention, then one of softmax attention, and experts.

    h = norm(x);  x = α h + β attention(h)        the stream goes on normalised, and scaled up
    h = norm(x);  x = α h + β experts(h)

Memory grows with the text in every eighth layer alone. Softmax layers turn half of each head's
features; transformers' version of the model turns all of them, which is what rotary_dim = None
does. Source: MiniMax 2025 (arXiv 2501.08313), section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitorch import nn
from minitorch.errors import ConfigError
from minitorch.random import Generator
from models.blocks.lightning import LightningAttention, decay_slopes, decays
from models.blocks.positions import Rotary
from models.blocks.residual import normalised
from models.decoder import Block
from models.llama import LlamaConfig
from models.mixtral import MixtralConfig

LINEAR, FULL = "linear_attention", "full_attention"
STATE = (".slope_rate", ".query_decay", ".key_decay", ".diagonal_decay")
"""What their files hold although it follows from the configuration."""


def every_eighth(layers: int) -> tuple[str, ...]:
    """The kinds of layers: softmax attention in every eighth, or in the last of fewer."""
    step = min(8, layers)
    return tuple(FULL if (i + 1) % step == 0 else LINEAR for i in range(layers))


@dataclass(frozen=True, kw_only=True)
class MiniMaxConfig(MixtralConfig):
    """layer_types: the attention of each layer, "linear_attention" or "full_attention".

    Without them `every_eighth`. block_size: of lightning attention; a matter of speed alone, and in
    the toy, as in MiniMax-Text-01, twice the features of a head. The factors are those of a layer's
    input (alpha) and of what it computes from it (beta). rotary_dim: how many features of a head
    are turned; None: all.
    """

    layer_types: tuple[str, ...] = ()
    block_size: int = 256
    rotary_dim: int | None = None
    full_attn_alpha_factor: float = 1.0
    full_attn_beta_factor: float = 1.0
    linear_attn_alpha_factor: float = 1.0
    linear_attn_beta_factor: float = 1.0
    mlp_alpha_factor: float = 1.0
    mlp_beta_factor: float = 1.0

    model_type: ClassVar[str] = "minimax"
    architecture: ClassVar[str] = "MiniMaxForCausalLM"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {
            **LlamaConfig.presets["toy"],
            "intermediate_size": 176,
            "block_size": 64,
            "router_aux_loss_coef": 0.01,
        },
        "minimax-text-01": {
            "vocab_size": 200_064,
            "hidden_size": 6144,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 9216,
            "num_local_experts": 32,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 10_240_000,
            "rope_theta": 1e7,
            "rotary_dim": 64,
            "rms_norm_eps": 1e-5,
            "full_attn_alpha_factor": 160**0.25,
            "linear_attn_alpha_factor": 160**0.25,
            "mlp_alpha_factor": 160**0.25,
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layer_types:
            object.__setattr__(self, "layer_types", every_eighth(self.num_hidden_layers))
        known = set(self.layer_types) <= {LINEAR, FULL}
        if not known or len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"layer_types: expected {LINEAR!r} or {FULL!r} for each of "
                f"{self.num_hidden_layers} layers; got {self.layer_types}"
            )

    def rotary(self) -> Rotary:
        assert self.head_dim is not None
        dim = self.rotary_dim or self.head_dim
        return Rotary(dim, self.rope_theta, self.rope_scaling, self.max_position_embeddings)

    def block(self, layer: int, dtype: np.dtype, generator: Generator | None) -> Block:
        assert self.head_dim is not None
        attention: nn.Module
        if self.layer_types[layer] == LINEAR:
            slopes = decay_slopes(self.num_attention_heads, layer, self.num_hidden_layers)
            attention = LightningAttention(
                self.hidden_size, self.head_dim, slopes, self.block_size, dtype, generator
            )
            first = normalised(self.linear_attn_alpha_factor, self.linear_attn_beta_factor)
        else:
            attention = self.attention_block(layer, dtype, generator)
            first = normalised(self.full_attn_alpha_factor, self.full_attn_beta_factor)
        return Block(
            attention,
            self.experts(dtype, generator),
            (self.norm(dtype), self.norm(dtype)),
            (first, normalised(self.mlp_alpha_factor, self.mlp_beta_factor)),
        )

    @classmethod
    def settings(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        known = super().settings(content)
        if not known.get("layer_types"):
            raise ConfigError("expected layer_types, the attention of each layer; got none")
        return {**known, "layer_types": tuple(known["layer_types"])}

    def to_hugging_face(self) -> dict[str, Any]:
        return {**super().to_hugging_face(), "layer_types": list(self.layer_types)}

    def from_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return super().from_files({k: v for k, v in arrays.items() if not k.endswith(STATE)})

    def to_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**super().to_files(arrays), **self._state()}

    def _state(self) -> dict[str, np.ndarray]:
        """Powers of each layer's decays, as the files hold them."""
        found = {}
        for layer in np.flatnonzero(np.array(self.layer_types) == LINEAR):
            slopes = decay_slopes(self.num_attention_heads, int(layer), self.num_hidden_layers)
            powers = decays(slopes, np.ones((1, self.block_size), bool), np.dtype(np.float32))
            values = (
                slopes[:, None, None].astype(np.float32),
                powers.query.numpy()[0],
                powers.key.numpy()[0],
                powers.within.numpy(),
            )
            prefix = f"model.layers.{layer}.self_attn"
            found.update({f"{prefix}{n}": v for n, v in zip(STATE, values, strict=True)})
        return found
