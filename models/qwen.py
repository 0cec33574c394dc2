"""Qwen 1, 2 and 2.5: Llamas with biases where queries, keys and values are made, and nowhere else.

Qwen 1 reads texts longer than those it was trained on, L tokens, by a larger base of its rotations
and by larger queries, neither of which changes anything up to L:

    base → base α^(d / (d - 2)),  α = 2^ceil(log2(n / L) + 1) - 1        for a text of n tokens
    q_i → q_i log(i) / log(L)                                            for the i-th, i > L

Qwen 2 has grouped heads, YaRN, and a window in the layers from max_window_layers on, if it is
switched on. Sources: Bai et al. 2023 (arXiv 2309.16609) and QwenLM/Qwen, modeling_qwen.py; Yang et
al. 2024 (2407.10671); Qwen team 2024 (2412.15115).
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from minitorch.errors import ConfigError
from minitorch.random import Generator
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.dual_chunk import Chunks, DualChunkAttention
from models.blocks.positions import TRAINED_LENGTH
from models.blocks.sparse_chunks import SparseDualChunkAttention
from models.blocks.vertical_slash import Budget, VerticalSlashAttention
from models.decoder import DERIVED
from models.llama import LlamaConfig, size

QWEN: dict[str, Any] = {"vocab_size": 151_936, "max_position_embeddings": 8192}
QWEN_2: dict[str, Any] = {
    "vocab_size": 152_064,
    "max_position_embeddings": 131_072,
    "rope_theta": 1e6,
}
QWEN_2_SMALL: dict[str, Any] = {**QWEN_2, "vocab_size": 151_936, "tie_word_embeddings": True}
QWEN_2_5: dict[str, Any] = {**QWEN_2, "max_position_embeddings": 32_768}
QWEN_2_5_1M: dict[str, Any] = {
    **QWEN_2,
    "max_position_embeddings": 1_010_000,
    "rope_theta": 1e7,
    "dual_chunk_attention_config": {
        "chunk_size": 262_144,
        "local_size": 8192,
        "original_max_position_embeddings": 262_144,
    },
}
QWEN_2_5_SMALL: dict[str, Any] = {**QWEN_2_SMALL, "max_position_embeddings": 32_768}


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """Layers from max_window_layers on see sliding_window tokens back, itself included, if any.

    dual_chunk_attention_config: {"chunk_size": c, "local_size": w}, for attention by chunks
    (models/blocks/dual_chunk.py), as the models for a million tokens have it; or None.
    sparse_prefill: the fields of a Budget (models/blocks/vertical_slash.py), {"columns": ...,
    "diagonals": ..., ...}, of prompts that are read sparsely, by chunks or not; or None. Hugging
    Face has no such key.
    """

    sliding_window: int | None = None
    max_window_layers: int = 0
    dual_chunk_attention_config: Mapping[str, Any] | None = None
    sparse_prefill: Mapping[str, int] | None = None

    model_type: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {**LlamaConfig.presets["toy"], "tie_word_embeddings": True},
        "qwen2-0.5b": size(896, 24, 14, 2, 4864, **QWEN_2_SMALL),
        "qwen2-1.5b": size(1536, 28, 12, 2, 8960, **QWEN_2_SMALL),
        "qwen2-7b": size(3584, 28, 28, 4, 18_944, **QWEN_2),
        "qwen2-72b": size(8192, 80, 64, 8, 29_568, **QWEN_2, rms_norm_eps=1e-5),
        "qwen2.5-0.5b": size(896, 24, 14, 2, 4864, **QWEN_2_5_SMALL),
        "qwen2.5-1.5b": size(1536, 28, 12, 2, 8960, **QWEN_2_5_SMALL),
        "qwen2.5-3b": size(2048, 36, 16, 2, 11_008, **QWEN_2_5_SMALL),
        "qwen2.5-7b": size(3584, 28, 28, 4, 18_944, **QWEN_2_5),
        "qwen2.5-14b": size(5120, 48, 40, 8, 13_824, **QWEN_2_5, rms_norm_eps=1e-5),
        "qwen2.5-32b": size(5120, 64, 40, 8, 27_648, **QWEN_2_5, rms_norm_eps=1e-5),
        "qwen2.5-72b": size(8192, 80, 64, 8, 29_568, **QWEN_2_5, rms_norm_eps=1e-5),
        "qwen2.5-7b-1m": size(3584, 28, 28, 4, 18_944, **QWEN_2_5_1M, rms_norm_eps=1e-5),
        "qwen2.5-14b-1m": size(5120, 48, 40, 8, 13_824, **QWEN_2_5_1M, rms_norm_eps=1e-5),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._chunks()
        self._budget()

    def attention(self, layer: int) -> AttentionConfig:
        window = self.sliding_window if layer >= self.max_window_layers else None
        return dataclasses.replace(super().attention(layer), qkv_bias=True, window=window)

    def attention_block(
        self, layer: int, dtype: np.dtype, generator: Generator | None
    ) -> Attention:
        config, chunks, budget = self.attention(layer), self._chunks(), self._budget()
        if chunks is None:
            if budget is None:
                return super().attention_block(layer, dtype, generator)
            return VerticalSlashAttention(config, budget, dtype, generator)
        if budget is None:
            return DualChunkAttention(config, chunks, dtype, generator)
        return SparseDualChunkAttention(config, chunks, budget, dtype, generator)

    def _chunks(self) -> Chunks | None:
        given = self.dual_chunk_attention_config
        if given is None:
            return None
        if not {"chunk_size", "local_size"} <= given.keys():
            raise ConfigError(
                "dual_chunk_attention_config: expected chunk_size and local_size; got "
                f"{sorted(given)}"
            )
        return Chunks(trained=given["chunk_size"], local=given["local_size"])

    def _budget(self) -> Budget | None:
        given = self.sparse_prefill
        if given is None:
            return None
        known = {field.name for field in dataclasses.fields(Budget)}
        if not {"columns", "diagonals"} <= given.keys() <= known:
            raise ConfigError(
                f"sparse_prefill: expected columns and diagonals, and of {sorted(known)} nothing "
                f"else; got {sorted(given)}"
            )
        return Budget(**given)

    @classmethod
    def settings(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Without use_sliding_window the window of the file means nothing."""
        known = {"max_window_layers": 28, **super().settings(content)}
        if not content.get("use_sliding_window", False):
            known.pop("sliding_window", None)
        layers = known.get("num_hidden_layers", 0)
        first = known["max_window_layers"] if known.get("sliding_window") else layers
        kinds = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
        if content.get("layer_types") not in (None, kinds):
            raise ConfigError(f"expected layer_types to be {kinds}; got {content['layer_types']}")
        return known

    def to_hugging_face(self) -> dict[str, Any]:
        return {**super().to_hugging_face(), "use_sliding_window": self.sliding_window is not None}


@dataclass(frozen=True, kw_only=True)
class QwenConfig(LlamaConfig):
    """Qwen 1. trained_length: of the texts it was trained on, its files' seq_length.

    use_dynamic_ntk, use_logn_attn: whether longer ones are read by a larger base, by larger
    queries; by their authors' code not in training. Its layers are those of Qwen 2; Hugging Face's
    files have names of their own.
    """

    trained_length: int = 8192
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True

    model_type: ClassVar[str] = "qwen"
    architecture: ClassVar[str] = "QWenLMHeadModel"
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "no_bias": (True,),
        "emb_dropout_prob": (0.0,),
        "rotary_pct": (1.0,),
        "scale_attn_weights": (True,),
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy": {**LlamaConfig.presets["toy"], "num_key_value_heads": 4, "trained_length": 64},
        "qwen-1.8b": size(2048, 24, 16, 16, 5504, **QWEN),
        "qwen-7b": size(4096, 32, 32, 32, 11_008, **QWEN),
        "qwen-14b": size(
            *(5120, 40, 40, 40, 13_696),
            **{**QWEN, "vocab_size": 152_064, "trained_length": 2048},
        ),
        "qwen-72b": size(
            *(8192, 80, 64, 64, 24_576),
            vocab_size=152_064,
            max_position_embeddings=32_768,
            trained_length=32_768,
            rope_theta=1e6,
        ),
    }

    def __post_init__(self) -> None:
        if self.use_dynamic_ntk and self.rope_scaling is None:
            scaling = {"rope_type": "qwen_dynamic", TRAINED_LENGTH: self.trained_length}
            object.__setattr__(self, "rope_scaling", scaling)
        super().__post_init__()

    @classmethod
    def sized(cls, *, positions: int, **sizes: Any) -> Self:
        sized = super().sized(positions=positions, **sizes)
        scaling = {"rope_scaling": None, "trained_length": positions}
        return dataclasses.replace(sized, **scaling)  # type: ignore[arg-type]

    def attention(self, layer: int) -> AttentionConfig:
        trained = self.trained_length if self.use_logn_attn else None
        return dataclasses.replace(super().attention(layer), qkv_bias=True, trained_length=trained)

    @classmethod
    def settings(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        known = super().settings(content)
        known |= {name: content[key] for name, key in KEYS.items() if key in content}
        if "intermediate_size" in known:
            known["intermediate_size"] //= 2
        return known

    def to_hugging_face(self) -> dict[str, Any]:
        content = super().to_hugging_face()
        for name, key in KEYS.items():
            content[key] = content.pop(name)
        for name in ("rope_scaling", "num_key_value_heads", "attention_bias", "mlp_bias"):
            del content[name]
        return {**content, "intermediate_size": 2 * self.intermediate_size}

    def from_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name, array in arrays.items():
            if ".c_attn." in name:
                parts = np.split(array, 3) if len(array) % 3 == 0 else [array]
                found |= {
                    _ours(name.replace("c_attn", f"{x}_proj")): p for x, p in zip("qkv", parts)
                }
            elif not DERIVED.search(name):
                found[_ours(name)] = array
        return found

    def to_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name, array in arrays.items():
            if ".q_proj." in name:
                parts = [arrays[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                found[_theirs(name.replace("q_proj", "c_attn"))] = np.concatenate(parts)
            elif not re.search(r"\.[kv]_proj\.", name):
                found[_theirs(name)] = array
        return found


KEYS = {
    "head_dim": "kv_channels",
    "rms_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_emb_base",
    "trained_length": "seq_length",
    "attention_dropout": "attn_dropout_prob",
}
"""Fields that have another name in config.json; intermediate_size is there twice what it is."""

NAMES = (
    (".transformer.wte.", ".embed_tokens."),
    (".transformer.h.", ".layers."),
    (".transformer.ln_f.", ".norm."),
    (".ln_1.", ".input_layernorm."),
    (".ln_2.", ".post_attention_layernorm."),
    (".attn.c_proj.", ".self_attn.o_proj."),
    (".attn.", ".self_attn."),
    (".mlp.w1.", ".mlp.up_proj."),
    (".mlp.w2.", ".mlp.gate_proj."),
    (".mlp.c_proj.", ".mlp.down_proj."),
)
"""Parts of names, theirs and ours. Their feed-forward layer is c_proj(w1(x) ⊙ silu(w2(x)))."""


def _ours(name: str) -> str:
    name = f".{name}"
    for theirs, ours in NAMES:
        name = name.replace(theirs, ours)
    return name[1:]


def _theirs(name: str) -> str:
    name = f".{name}"
    for theirs, ours in NAMES:
        name = name.replace(ours, theirs)
    return name[1:]
