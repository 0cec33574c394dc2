"""The decoder that all families share: embedding, blocks, a norm, a head.

    x = embedding[ids]
    x = x + attention(norm(x));  x = x + feed_forward(norm(x))        for every layer
    logits = norm(x) W_headᵀ                                          W_head the embedding, if tied

Which attention, feed-forward and norm a layer has is said by the family's configuration, a
dataclass that derives from `DecoderConfig` and makes blocks of the parts in models/blocks.
Parameters have the names of Hugging Face's files, without a leading "model.".
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from minitorch import nn
from minitorch.backend import DEFAULT_FLOAT
from minitorch.errors import ConfigError
from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.cache import Cache, step
from models.blocks.context import Context
from models.blocks.residual import Residual, pre_norm
from models.pretrained import SHARD_BYTES, check_fixed, save
from models.sizes import check_positive, check_size

INTO_STREAM = re.compile(r"\b(o_proj|down_proj)(\.weight)?$")
"""Projections that write into the residual stream: they start smaller, as in GPT-2."""

DERIVED = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
"""What old files hold although it follows from the configuration."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What every family has. A family adds its sizes and says what a block is made of.

    max_position_embeddings: the longest text that the model is meant for; with rotated positions
    nothing breaks beyond it, but quality. initializer_range: the standard deviation of the weights
    at the start. Of the class: model_type and architecture are Hugging Face's names of the family;
    `fixed` says what config.json may hold under keys that have no field here; `presets` are sizes.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
            check_size(name, getattr(self, name))
        for name in ("rms_norm_eps", "initializer_range"):
            check_positive(name, getattr(self, name))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """One of `presets`, with changes."""
        if name not in cls.presets:
            raise ConfigError(f"preset: expected one of {', '.join(cls.presets)}; got {name!r}")
        return cls(**{**cls.presets[name], **changes})

    @classmethod
    def sized(
        cls,
        *,
        vocab_size: int,
        layers: int,
        heads: int,
        width: int,
        positions: int,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> Self:
        """The preset `toy` in another size: what belongs to the width or the heads follows them.

        dropout and bias are GPT-2's: here there is no dropout, and biases are the family's.
        """
        if dropout:
            raise ConfigError(
                f"dropout: {cls.model_type} models are trained without; got {dropout}. "
                "Set dropout=0"
            )
        toy = cls.presets["toy"]
        group = toy["num_attention_heads"] // toy.get("num_key_value_heads", 1)
        changes = {
            name: max(1, value * width // toy["hidden_size"])
            for name, value in toy.items()
            if name.endswith("intermediate_size")
        }
        if "num_key_value_heads" in toy:
            changes["num_key_value_heads"] = heads // math.gcd(heads, group)
        return cls.preset(
            "toy",
            vocab_size=vocab_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_size=width,
            max_position_embeddings=positions,
            **changes,
        )

    @property
    def title(self) -> str:
        """What the family is called."""
        return self.architecture.removesuffix("ForCausalLM")

    def block(self, layer: int, dtype: np.dtype, generator: Generator | None) -> "Block":
        """The block of a layer, counted from 0."""
        raise NotImplementedError(f"{type(self).__name__} does not define block()")

    def positions(self, dtype: np.dtype, generator: Generator | None) -> nn.Module | None:
        """What is added to the embeddings of a step: context -> (1 or batch, time, width)."""
        return None

    def norm(self, dtype: np.dtype) -> nn.Module:
        """A norm over the model's width."""
        return nn.RMSNorm(self.hidden_size, eps=self.rms_norm_eps, dtype=dtype)

    def build(self, dtype: np.dtype, generator: Generator | None) -> "Decoder":
        """A model of this configuration, with random weights."""
        return Decoder(self, dtype, generator)

    @classmethod
    def from_hugging_face(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a config.json, whose keys are the names of the fields.

        Raises ConfigError for a variant of the family that this is not, and for a missing size.
        """
        check_fixed(content, cls.fixed)
        known = cls.settings(content)
        for field in dataclasses.fields(cls):
            needed = field.default is field.default_factory is dataclasses.MISSING
            if needed and field.name not in known:
                raise ConfigError(f"expected {field.name}; got none")
        return cls(**known)

    @classmethod
    def settings(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that a config.json gives; null stands for the default."""
        fields = {field.name for field in dataclasses.fields(cls)}
        return {k: value for k, value in content.items() if k in fields and value is not None}

    def to_hugging_face(self) -> dict[str, Any]:
        """What config.json holds."""
        names = {"architectures": [self.architecture], "model_type": self.model_type}
        only = {key: allowed[0] for key, allowed in self.fixed.items()}
        return {**names, **dataclasses.asdict(self), **only}

    def from_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors of Hugging Face's files under the names that they have in the model."""
        kept = {name: array for name, array in arrays.items() if not DERIVED.search(name)}
        return {name.removeprefix("model."): array for name, array in kept.items()}

    def to_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The other way round."""
        return {_file_name(name): array for name, array in arrays.items()}

    def num_parameters(self) -> int:
        """How many numbers a model of this size has, tied ones once; nothing is allocated."""
        with nn.init.unallocated():
            return self.build(DEFAULT_FLOAT, None).num_parameters()


def _file_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


class Block(nn.Module):
    """Attention and feed-forward, each with a norm and added to what it read.

    attention(x, context, cache), feed_forward(x, context): (batch, time, width) -> the same.
    residuals: how either is added (models/blocks/residual.py). branch_norms: two more norms, of
    what the branches give, for the sandwich.
    """

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        residuals: tuple[Residual, Residual] = (pre_norm, pre_norm),
        branch_norms: tuple[nn.Module, nn.Module] | None = None,
    ):
        self.input_layernorm, self.post_attention_layernorm = norms
        self.self_attn, self.mlp = attention, feed_forward
        self._residuals = residuals
        outer: tuple[nn.Module | None, ...] = branch_norms or (None, None)
        self.attention_output_norm, self.mlp_output_norm = outer

    def new_cache(self) -> Any:
        """What the attention remembers, empty."""
        return self.self_attn.new_cache()  # type: ignore[attr-defined]

    def forward(self, x: Tensor, context: Context, cache: Any = None) -> Tensor:
        def attend(h: Tensor) -> Tensor:
            out = self.self_attn(h, context, cache)
            return out if self.attention_output_norm is None else self.attention_output_norm(out)

        def feed(h: Tensor) -> Tensor:
            out = self.mlp(h, context)
            return out if self.mlp_output_norm is None else self.mlp_output_norm(out)

        x = self._residuals[0](x, self.input_layernorm, attend)
        return self._residuals[1](x, self.post_attention_layernorm, feed)


class Decoder(nn.Module):
    """A language model: token ids to logits of the token that follows each."""

    def __init__(
        self,
        config: DecoderConfig,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        self.config = config
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width, dtype, generator)
        self.embed_positions = config.positions(dtype, generator)
        self.layers = nn.ModuleList(
            config.block(i, dtype, generator) for i in range(config.num_hidden_layers)
        )
        self.norm = config.norm(dtype)
        self.lm_head = nn.Linear(width, config.vocab_size, False, dtype, generator)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self._initialise(generator)

    def _initialise(self, generator: Generator | None) -> None:
        std = self.config.initializer_range
        into_stream = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, param in self.named_parameters():
            if param.ndim >= 2:
                scale = into_stream if INTO_STREAM.search(name) else std
                nn.init.normal_(param, std=scale, generator=generator)
            elif name.endswith(".bias"):
                nn.init.zeros_(param)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        cache: Cache | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, and the mean cross-entropy with targets in nats per token, or None without.

        ids, targets: (batch, time) integers; a target of -100 does not count. Position t of the
        targets is what follows position t of ids: they are shifted already, where transformers
        shifts them itself. Returns logits (batch, time, vocab_size). What blocks add to the loss,
        as a router does for its balance, is in the loss.

        cache: from new_cache(). ids are then the columns that follow those already in it. mask:
        (batch, time), true (or 1) for tokens and false (or 0) for padding, on whichever side.
        """
        context = step(ids, cache, mask)
        logits = self.lm_head(self.features(ids, cache, context=context))
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        return logits, sum(context.losses(), loss)

    def loss(self, ids: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of forward() alone, for which the logits need never be whole in memory."""
        context, head = step(ids, None, mask), self.lm_head
        features = self.features(ids, context=context)
        loss = F.linear_cross_entropy(features, head.weight, targets, head.bias)
        return sum(context.losses(), loss)

    def features(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        mask: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """What the head reads: (batch, time, hidden_size). context: of `ids`, if it is known."""
        context = context or step(ids, cache, mask)
        x = self.embed(ids, context)
        for i, layer in enumerate(self.layers):
            x = layer(x, context, cache.layers[i] if cache else None)
        return self.norm(x)

    def embed(self, ids: Tensor, context: Context) -> Tensor:
        """The stream before the first layer."""
        x = self.embed_tokens(ids)
        return x if self.embed_positions is None else x + self.embed_positions(context)

    def hidden_states(self, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The stream before the first layer and after each: (batch, time, hidden_size) all."""
        context = step(ids, None, mask)
        states = [self.embed(ids, context)]
        for layer in self.layers:
            states.append(layer(states[-1], context))
        return states

    def save_pretrained(self, folder: str | Path, max_shard_bytes: int = SHARD_BYTES) -> None:
        """Write config.json and the weights, which transformers loads (models/pretrained.py)."""
        save(self, folder, max_shard_bytes)

    def new_cache(self, planned: int | None = None) -> Cache:
        """An empty cache for forward(). planned: the length of the text to come, if it is known."""
        return Cache([layer.new_cache() for layer in self.layers], planned)  # type: ignore[attr-defined]
