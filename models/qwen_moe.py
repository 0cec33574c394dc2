"""Qwen1.5-MoE and Qwen2-MoE: many small experts, and one that every token sees, behind a gate.

    y = Σ_chosen s_e expert_e(x) + sigmoid(w x) shared(x)       s the softmax over all experts

The weights of the chosen do not sum to 1. Both were upcycled from dense models: see
`models.blocks.experts.upcycled`. Sources: Qwen team 2024, "Qwen1.5-MoE"; Yang et al. 2024 (arXiv
2407.10671), section 2.2.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitorch.random import Generator
from models import expert_files
from models.blocks.experts import MixtureOfExperts
from models.blocks.feed_forward import GatedFeedForward
from models.blocks.routing import Balance, RouterConfig
from models.decoder import Block
from models.llama import LlamaConfig
from models.qwen import Qwen2Config

QWEN_MOE: dict[str, Any] = {"vocab_size": 151_936, "rope_theta": 1e6}


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(Qwen2Config):
    """intermediate_size: of dense layers. Layers have experts where their number, counted from 1,
    is a multiple of decoder_sparse_step, but those in mlp_only_layers, counted from 0.
    """

    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool = False
    router_aux_loss_coef: float = 0.001
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    model_type: ClassVar[str] = "qwen2_moe"
    architecture: ClassVar[str] = "Qwen2MoeForCausalLM"
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {**Qwen2Config.fixed, "qkv_bias": (True,)}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {
            **LlamaConfig.presets["toy"],
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 128,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "router_aux_loss_coef": 0.01,
        },
        "qwen1.5-moe-a2.7b": {
            **QWEN_MOE,
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "intermediate_size": 5632,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "max_position_embeddings": 8192,
        },
        "qwen2-57b-a14b": {
            **QWEN_MOE,
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18_944,
            "moe_intermediate_size": 2560,
            "shared_expert_intermediate_size": 20_480,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 131_072,
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.router()

    def router(self) -> RouterConfig:
        """How tokens find their experts."""
        return RouterConfig(
            num_experts=self.num_experts,
            k=self.num_experts_per_tok,
            norm_topk_prob=self.norm_topk_prob,
        )

    def experts(self, dtype: np.dtype, generator: Generator | None) -> MixtureOfExperts:
        """The feed-forward layer of most layers."""
        width, hidden = self.hidden_size, self.shared_expert_intermediate_size
        return MixtureOfExperts(
            width,
            self.moe_intermediate_size,
            self.router(),
            Balance(expert=self.router_aux_loss_coef),
            shared=GatedFeedForward(width, hidden, dtype=dtype, generator=generator),
            shared_gate=True,
            dtype=dtype,
            generator=generator,
        )

    def block(self, layer: int, dtype: np.dtype, generator: Generator | None) -> Block:
        if layer in self.mlp_only_layers or (layer + 1) % self.decoder_sparse_step:
            return super().block(layer, dtype, generator)
        attention = self.attention_block(layer, dtype, generator)
        norms = self.norm(dtype), self.norm(dtype)
        return Block(attention, self.experts(dtype, generator), norms)

    @classmethod
    def settings(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        known = super().settings(content)
        return {**known, "mlp_only_layers": tuple(known.get("mlp_only_layers", ()))}

    def to_hugging_face(self) -> dict[str, Any]:
        return {**super().to_hugging_face(), "mlp_only_layers": list(self.mlp_only_layers)}

    def from_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = super().from_files(arrays)
        arrays = {k.replace(".shared_expert.", ".shared_experts."): v for k, v in arrays.items()}
        return expert_files.stacked(arrays)

    def to_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = super().to_files(arrays)
        arrays = {k.replace(".shared_experts.", ".shared_expert."): v for k, v in arrays.items()}
        return expert_files.separate(arrays)
