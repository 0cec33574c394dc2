"""Mixtral: a Mistral whose feed-forward layers are eight experts, two of them for each token.

    weights = softmax of the two highest logits

Source: Jiang et al. 2024 (arXiv 2401.04088). Its files call the feed-forward layer block_sparse_moe
and the matrices of an expert w1 (gate), w3 (up) and w2 (down).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitorch.random import Generator
from models import expert_files
from models.blocks.experts import MixtureOfExperts
from models.blocks.routing import Balance, RouterConfig
from models.decoder import Block
from models.llama import LlamaConfig
from models.mistral import MISTRAL, MistralConfig
from models.sizes import check_size

MIXTRAL: dict[str, Any] = {**MISTRAL, "rope_theta": 1e6, "router_aux_loss_coef": 0.02}


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(MistralConfig):
    """intermediate_size: of one expert. router_aux_loss_coef: of the balance of each layer."""

    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    router_aux_loss_coef: float = 0.001

    model_type: ClassVar[str] = "mixtral"
    architecture: ClassVar[str] = "MixtralForCausalLM"
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **MistralConfig.fixed,
        "router_jitter_noise": (0.0,),
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {
            **LlamaConfig.presets["toy"],
            "intermediate_size": 176,
            "router_aux_loss_coef": 0.01,
        },
        "mixtral-8x7b": {**MIXTRAL, "vocab_size": 32_000},
        "mixtral-8x22b": {
            **MIXTRAL,
            "vocab_size": 32_000,
            "hidden_size": 6144,
            "intermediate_size": 16_384,
            "num_hidden_layers": 56,
            "num_attention_heads": 48,
            "max_position_embeddings": 65_536,
        },
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("num_local_experts", self.num_local_experts)
        self.router()

    def router(self) -> RouterConfig:
        """How tokens find their experts."""
        return RouterConfig(
            num_experts=self.num_local_experts, k=self.num_experts_per_tok, norm_topk_prob=True
        )

    def experts(self, dtype: np.dtype, generator: Generator | None) -> MixtureOfExperts:
        """The feed-forward layer."""
        return MixtureOfExperts(
            self.hidden_size,
            self.intermediate_size,
            self.router(),
            Balance(expert=self.router_aux_loss_coef),
            dtype=dtype,
            generator=generator,
        )

    def block(self, layer: int, dtype: np.dtype, generator: Generator | None) -> Block:
        attention = self.attention_block(layer, dtype, generator)
        norms = self.norm(dtype), self.norm(dtype)
        return Block(attention, self.experts(dtype, generator), norms)

    @classmethod
    def settings(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().settings(content), "sliding_window": content.get("sliding_window")}

    def from_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = {_renamed(name): array for name, array in super().from_files(arrays).items()}
        return expert_files.stacked(arrays, expert_files.NUMBERED)

    def to_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        apart = expert_files.separate(super().to_files(arrays), expert_files.NUMBERED)
        return {name.replace(".mlp.", ".block_sparse_moe."): array for name, array in apart.items()}


def _renamed(name: str) -> str:
    return name.replace(".block_sparse_moe.", ".mlp.")
