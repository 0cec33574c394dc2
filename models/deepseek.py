"""DeepSeek-V2 and V3 (R1 has V3's shape): latent attention, small experts, shared ones.

    x = x + latent_attention(norm(x))
    x = x + shared(h) + Σ_chosen g_e expert_e(h),  h = norm(x)       the first layers are dense

V2 takes experts by a softmax from the devices with the best one; V3 by sigmoids, from the groups
with the best two, with a bias that evens the load without a gradient, and also learns to predict
tokens further ahead (models/multi_token.py). DeepSeek LLM (V1) is a Llama: models/llama.py.

Positions turn pairs 2i and 2i + 1. Sources: DeepSeek-AI 2024 (arXiv 2405.04434) and 2024
(2412.19437); the configurations published with the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from minitorch.errors import ConfigError
from minitorch.random import Generator
from models import expert_files
from models.blocks.experts import MixtureOfExperts
from models.blocks.feed_forward import GatedFeedForward
from models.blocks.latent import LatentAttention, LatentConfig, softmax_scale
from models.blocks.positions import Rotary, read_rope
from models.blocks.routing import Balance, RouterConfig
from models.decoder import Block, Decoder, DecoderConfig
from models.multi_token import MultiTokenDecoder, from_layers, to_layers
from models.pretrained import check_fixed
from models.sizes import check_size

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
}
TOY: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 352,
    "moe_intermediate_size": 64,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "max_position_embeddings": 64,
}
BOTH: dict[str, Any] = {
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163_840,
}
DEEPSEEK_V3: dict[str, Any] = {
    **BOTH,
    "vocab_size": 129_280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "intermediate_size": 18_432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class DeepseekConfig(DecoderConfig):
    """What V2 and V3 share; Hugging Face's names.

    q_lora_rank: of the queries' latent; None: they have none. first_k_dense_replace: how many
    layers at the start have no experts. n_group, topk_group: RouterConfig's groups, kept_groups.
    """

    num_attention_heads: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int = 1
    first_k_dense_replace: int = 0
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    kv_lora_rank: int
    q_lora_rank: int | None = None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_routed_experts", "moe_intermediate_size", "kv_lora_rank", "v_head_dim"):
            check_size(name, getattr(self, name))
        self.router()
        self.attention()

    def router(self) -> RouterConfig:
        """How tokens find their experts."""
        raise NotImplementedError(f"{type(self).__name__} does not define router()")

    def balance(self) -> Balance:
        """The losses of the load."""
        raise NotImplementedError(f"{type(self).__name__} does not define balance()")

    def attention(self) -> LatentConfig:
        """What the attention of every layer is."""
        head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        return LatentConfig(
            hidden_size=self.hidden_size,
            num_heads=self.num_attention_heads,
            q_lora_rank=self.q_lora_rank,
            kv_lora_rank=self.kv_lora_rank,
            qk_nope_head_dim=self.qk_nope_head_dim,
            qk_rope_head_dim=self.qk_rope_head_dim,
            v_head_dim=self.v_head_dim,
            rotary=Rotary(
                self.qk_rope_head_dim,
                self.rope_theta,
                self.rope_scaling,
                self.max_position_embeddings,
                interleaved=True,
            ),
            scale=softmax_scale(head_dim, self.rope_scaling),
            bias=self.attention_bias,
            dropout=self.attention_dropout,
        )

    def block(self, layer: int, dtype: np.dtype, generator: Generator | None) -> Block:
        return Block(
            LatentAttention(self.attention(), dtype, generator),
            self.feed_forward(layer, dtype, generator),
            (self.norm(dtype), self.norm(dtype)),
        )

    def feed_forward(
        self, layer: int, dtype: np.dtype, generator: Generator | None
    ) -> GatedFeedForward | MixtureOfExperts:
        """Dense in the first layers, then experts, with the shared ones as one wider expert."""

        def dense(hidden: int) -> GatedFeedForward:
            width = self.hidden_size
            return GatedFeedForward(width, hidden, dtype=dtype, generator=generator)

        if layer < self.first_k_dense_replace:
            return dense(self.intermediate_size)
        shared = self.n_shared_experts * self.moe_intermediate_size
        return MixtureOfExperts(
            self.hidden_size,
            self.moe_intermediate_size,
            self.router(),
            self.balance(),
            shared=dense(shared) if shared else None,
            dtype=dtype,
            generator=generator,
        )

    def to_hugging_face(self) -> dict[str, Any]:
        return {**super().to_hugging_face(), "num_key_value_heads": self.num_attention_heads}

    @classmethod
    def settings(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        heads = content.get("num_attention_heads")
        check_fixed(content, {"num_key_value_heads": (None, heads)})
        theta, scaling = read_rope(content)
        return {**super().settings(content), "rope_theta": theta, "rope_scaling": scaling}

    def from_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return expert_files.stacked(super().from_files(arrays))

    def to_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return expert_files.separate(super().to_files(arrays))


@dataclass(frozen=True, kw_only=True)
class DeepseekV2Config(DeepseekConfig):
    """aux_loss_alpha: of the balance of experts, within each sequence if seq_aux, else the batch.

    device_loss_alpha, communication_loss_alpha: of the other two losses, between n_group groups.
    device_capacity_factor: in training a group drops what it likes least above so many times its
    even share, of all sequences but the share spared_sequences; None: nothing.
    """

    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True
    device_loss_alpha: float = 0.0
    communication_loss_alpha: float = 0.0
    device_capacity_factor: float | None = None
    spared_sequences: float = 0.1

    model_type: ClassVar[str] = "deepseek_v2"
    architecture: ClassVar[str] = "DeepseekV2ForCausalLM"
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": ("silu",),
        "scoring_func": ("softmax",),
        "moe_layer_freq": (1,),
        "mlp_bias": (False,),
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {
            **TOY,
            "n_shared_experts": 2,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
        },
        "deepseek-v2-lite": {
            **BOTH,
            "vocab_size": 102_400,
            "hidden_size": 2048,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "intermediate_size": 10_944,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
        "deepseek-v2": {
            **BOTH,
            "vocab_size": 102_400,
            "hidden_size": 5120,
            "num_hidden_layers": 60,
            "num_attention_heads": 128,
            "intermediate_size": 12_288,
            "moe_intermediate_size": 1536,
            "n_routed_experts": 160,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": 1536,
            "topk_method": "group_limited_greedy",
            "n_group": 8,
            "topk_group": 3,
            "routed_scaling_factor": 16.0,
            "aux_loss_alpha": 0.003,
            "device_loss_alpha": 0.05,
            "communication_loss_alpha": 0.02,
            "device_capacity_factor": 1.0,
            "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    }

    def router(self) -> RouterConfig:
        if self.norm_topk_prob:
            raise ConfigError("norm_topk_prob: expected false, as in all of DeepSeek-V2; got true")
        limited = self.topk_method == "group_limited_greedy"
        return RouterConfig(
            num_experts=self.n_routed_experts,
            k=self.num_experts_per_tok,
            scaling_factor=self.routed_scaling_factor,
            groups=self.n_group if limited else 1,
            kept_groups=self.topk_group if limited else 1,
            device_capacity_factor=self.device_capacity_factor,
            devices=self.n_group,
            spared=self.spared_sequences,
        )

    def balance(self) -> Balance:
        return Balance(
            expert=self.aux_loss_alpha,
            sequence_wise=self.seq_aux,
            device=self.device_loss_alpha,
            communication=self.communication_loss_alpha,
            devices=self.n_group,
        )


@dataclass(frozen=True, kw_only=True)
class DeepseekV3Config(DeepseekConfig):
    """aux_loss_alpha: of the balance within each sequence; mostly the router's bias sees to it.

    num_nextn_predict_layers: how many tokens beyond the next one are predicted too, in training,
    with the factor mtp_loss_factor for all of them together.
    """

    aux_loss_alpha: float = 0.0001
    num_nextn_predict_layers: int = 0
    mtp_loss_factor: float = 0.3

    model_type: ClassVar[str] = "deepseek_v3"
    architecture: ClassVar[str] = "DeepseekV3ForCausalLM"
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": ("silu",),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
        "moe_layer_freq": (1,),
        "rope_interleave": (True,),
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {
            **TOY,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 1,
        },
        "deepseek-v3": DEEPSEEK_V3,
        "deepseek-r1": DEEPSEEK_V3,
    }

    def router(self) -> RouterConfig:
        return RouterConfig(
            num_experts=self.n_routed_experts,
            k=self.num_experts_per_tok,
            score_function="sigmoid",
            norm_topk_prob=self.norm_topk_prob,
            scaling_factor=self.routed_scaling_factor,
            groups=self.n_group,
            kept_groups=self.topk_group,
            group_best=min(2, self.n_routed_experts // self.n_group),
            bias=True,
        )

    def balance(self) -> Balance:
        return Balance(expert=self.aux_loss_alpha, sequence_wise=True)

    def build(self, dtype: np.dtype, generator: Generator | None) -> Decoder:
        if not self.num_nextn_predict_layers:
            return super().build(dtype, generator)
        ahead = self.num_nextn_predict_layers, self.mtp_loss_factor
        return MultiTokenDecoder(self, *ahead, dtype=dtype, generator=generator)

    def from_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        named = super().from_files(arrays)
        return from_layers(named, self.num_hidden_layers, self.num_nextn_predict_layers)

    def to_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return super().to_files(to_layers(arrays, self.num_hidden_layers))
