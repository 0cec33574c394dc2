"""GPT-2: a decoder-only transformer with learned positions and layer norm before each branch.

    x = wte[ids] + wpe[0, 1, ..., time - 1]
    x = x + attention(layer_norm(x))                  n_layer times, both lines
    x = x + W_2 gelu(W_1 layer_norm(x) + b_1) + b_2   W_1: 4 times as wide
    logits = layer_norm(x) wteᵀ                       the head is the embedding table again

Weights start as N(0, 0.02²), and the projections that write into the residual stream, of which
there are 2 n_layer, as N(0, 0.02² / (2 n_layer)), so that the stream's variance does not grow with
the depth. gelu is its tanh approximation. Source: Radford et al. 2019, section 2.3, and
openai/gpt-2, src/model.py.

Parameters have Hugging Face's names, without the leading "transformer.". Their GPT-2 keeps the four
projections of a block as (in, out), which they call Conv1D; here, as in every Linear, they are
(out, in), and are transposed on the way to a file and back.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from minitorch import modes, nn
from minitorch.backend import DEFAULT_FLOAT
from minitorch.errors import ConfigError, ShapeError
from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.cache import Cache, step
from models.blocks.context import Context
from models.blocks.feed_forward import dense
from models.pretrained import SHARD_BYTES, check_fixed, load, save
from models.sizes import check_positive, check_share, check_size

PRESETS: dict[str, dict[str, int]] = {
    "nano": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64},
    "baby": {"n_layer": 6, "n_head": 6, "n_embd": 384, "n_positions": 256},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "n_positions": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "n_positions": 1024},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "n_positions": 1024},
}
"""The four sizes that were published, and nanoGPT's for a CPU and for one GPU."""


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The sizes of a GPT-2; the defaults are those of the smallest that was published.

    n_positions: the most tokens it can read at once. dropout: in training, of embeddings, attention
    probabilities and the output of every branch. bias: whether layers have them, as GPT-2's do.
    Raises ConfigError for sizes that do not fit together.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    layer_norm_epsilon: float = 1e-5

    model_type: ClassVar[str] = "gpt2"
    title: ClassVar[str] = "GPT-2"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd"):
            check_size(name, getattr(self, name))
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"n_head: expected a divisor of n_embd = {self.n_embd}; got {self.n_head}"
            )
        check_share("dropout", self.dropout)
        check_positive("layer_norm_epsilon", self.layer_norm_epsilon)
        if not isinstance(self.bias, bool):
            raise ConfigError(f"bias: expected true or false; got {self.bias!r}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """One of PRESETS, with changes."""
        if name not in PRESETS:
            raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}; got {name!r}")
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def sized(cls, *, layers: int, heads: int, width: int, positions: int, **others: Any) -> Self:
        """By the words that all families share."""
        return cls(n_layer=layers, n_head=heads, n_embd=width, n_positions=positions, **others)

    @property
    def max_position_embeddings(self) -> int:
        """n_positions, by the name that the other families have for it."""
        return self.n_positions

    def num_parameters(self) -> int:
        """How many numbers the model has, the head counted once with the embedding."""
        d, ones = self.n_embd, int(self.bias)
        norm = d + ones * d
        block = 2 * norm + 12 * d * d + ones * (3 + 1 + 4 + 1) * d
        return (self.vocab_size + self.n_positions) * d + self.n_layer * block + norm

    def to_hugging_face(self) -> dict[str, Any]:
        """What config.json holds."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": None,
            "activation_function": "gelu_new",
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.dropout,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": INIT_STD,
            "bias": self.bias,
            "bos_token_id": None,
            "eos_token_id": None,
            "tie_word_embeddings": True,
        }

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> Self:
        """From the content of a config.json; what it leaves out is GPT-2's default.

        Raises ConfigError for another architecture, or a variant of GPT-2 that this is not.
        """
        fixed = {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "n_inner": (None, 4 * config.get("n_embd", cls.n_embd)),
            "tie_word_embeddings": (True,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        }
        check_fixed(config, fixed)
        fields = {field.name for field in dataclasses.fields(cls)}
        known = {key: value for key, value in config.items() if key in fields}
        return cls(**{"dropout": config.get("resid_pdrop", 0.1), **known})

    def build(self, dtype: np.dtype, generator: Generator | None) -> "GPT2":
        """A model of this configuration, with random weights."""
        return GPT2(self, dtype, generator)

    def from_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Without the prefix, the causal masks that old files hold, and biases of 0 we lack."""
        found = {}
        for key, array in arrays.items():
            name = key.removeprefix("transformer.")
            absent = not self.bias and name.endswith(".bias") and not array.any()
            if not MASKS.search(name) and not absent:
                found[name] = _exchange(name, array)
        return found

    def to_files(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The other way round. Theirs always have biases: they are 0 where a model has none."""
        found = dict(arrays)
        for name, array in arrays.items():
            if BIASED.search(name):
                found.setdefault(f"{name[:-6]}bias", np.zeros(array.shape[:1], array.dtype))
        return {f"transformer.{name}": _exchange(name, array) for name, array in found.items()}


INIT_STD = 0.02


def _norm(config: GPT2Config, dtype: np.dtype) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias, dtype=dtype)


class MLP(nn.Module):
    """W_2 gelu(W_1 x + b_1) + b_2, at every position by itself."""

    def __init__(self, config: GPT2Config, dtype: np.dtype, generator: Generator | None):
        width = config.n_embd
        self.c_fc = nn.Linear(width, 4 * width, config.bias, dtype, generator)
        self.c_proj = nn.Linear(4 * width, width, config.bias, dtype, generator)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(dense(x, self.c_fc, self.c_proj, "gelu_tanh"))


class Block(nn.Module):
    """Attention and MLP, each added to what it read."""

    def __init__(self, config: GPT2Config, dtype: np.dtype, generator: Generator | None):
        self.ln_1 = _norm(config, dtype)
        self.attn = nn.CausalSelfAttention(
            config.n_embd, config.n_head, config.bias, config.dropout, dtype, generator
        )
        self.ln_2 = _norm(config, dtype)
        self.mlp = MLP(config, dtype, generator)

    def forward(
        self, x: Tensor, cache: nn.KVCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, mask)
        return x + self.mlp(self.ln_2(x))

    def decodes(self) -> bool:
        """Whether `F.decode_blocks` can do it all: nothing is dropped or replaced."""
        attn, mlp = self.attn, self.mlp
        return (
            type(self) is Block
            and type(attn.c_attn)
            is type(attn.c_proj)
            is type(mlp.c_fc)
            is type(mlp.c_proj)
            is nn.Linear
            and not (self.training and mlp.dropout.p)
        )

    def decoded(self, x: Tensor, cache: nn.KVCache) -> F.DecodedBlock:
        """What one new token of each sequence, x: (batch, 1, n_embd), meets here."""
        attn, mlp = self.attn, self.mlp
        heads = attn.n_head
        return F.DecodedBlock(
            _affine(self.ln_1),
            _affine(attn.c_attn),
            _affine(attn.c_proj),
            _affine(self.ln_2),
            _affine(mlp.c_fc),
            _affine(mlp.c_proj),
            *cache.extend((x.shape[0], heads, 1, x.shape[2] // heads), x.data),
        )


def _decodes(x: Tensor) -> bool:
    """Whether x, (batch, time, n_embd), is of one token and on no tape, in its own dtype."""
    mode = modes.thread.mode
    return x.shape[1] == 1 and x.device == "cpu" and not mode.record and mode.lower is None


def _affine(layer: nn.Linear | nn.LayerNorm) -> Any:
    return layer.weight, layer.bias


class GPT2(nn.Module):
    """The language model: token ids to logits of the token that follows each."""

    def __init__(
        self,
        config: GPT2Config,
        dtype: np.dtype = DEFAULT_FLOAT,
        generator: Generator | None = None,
    ):
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, dtype, generator)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd, dtype, generator)
        self.dropout = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, dtype, generator) for _ in range(config.n_layer))
        self.ln_f = _norm(config, dtype)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, False, dtype, generator)
        self.lm_head.weight = self.wte.weight
        self._initialise(generator)

    def _initialise(self, generator: Generator | None) -> None:
        for name, param in self.named_parameters():
            if name.endswith("c_proj.weight"):
                std = INIT_STD / math.sqrt(2 * self.config.n_layer)
                nn.init.normal_(param, std=std, generator=generator)
            elif param.ndim == 2:
                nn.init.normal_(param, std=INIT_STD, generator=generator)
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
        shifts them itself. Returns logits (batch, time, vocab_size).

        cache: from new_cache(). ids are then the columns that follow those already in it. mask:
        (batch, time), true (or 1) for tokens and false (or 0) for padding, on whichever side.
        """
        logits = self._run(ids, cache, mask, None, self.lm_head)
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        return logits, loss

    def loss(self, ids: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of forward() alone, for which the logits need never be whole in memory."""
        head = self.lm_head
        features = self.features(ids, None, mask)
        return F.linear_cross_entropy(features, head.weight, targets, head.bias)

    def features(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        mask: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """What the head reads: (batch, time, n_embd). context: of `ids`, if it is known."""
        return self._run(ids, cache, mask, context, None)

    def _run(
        self,
        ids: Tensor,
        cache: Cache | None,
        mask: Tensor | None,
        context: Context | None,
        head: nn.Module | None,
    ) -> Tensor:
        """What `features` returns, or what the head makes of it.

        One new token goes through blocks that are next to each other in one call, and with the last
        ones through what follows them.
        """
        context, seen = self._place(ids, cache, mask, context)
        x = self._embed(ids, context)
        decoded: list[F.DecodedBlock] = []
        together = seen is None and _decodes(x)
        for i, block in enumerate(self.h):
            layer = cache.layers[i] if cache else None
            if together and layer is not None and isinstance(block, Block) and block.decodes():
                decoded.append(block.decoded(x, layer))
            else:
                x = block(self._decode(x, decoded), layer, seen)
        if decoded and type(self.ln_f) is nn.LayerNorm:
            if type(head) is nn.Linear and head.bias is None:
                return self._decode(x, decoded, _affine(self.ln_f), head.weight)
            x = self._decode(x, decoded, _affine(self.ln_f))
            return x if head is None else head(x)
        x = self.ln_f(self._decode(x, decoded))
        return x if head is None else head(x)

    def _decode(
        self,
        x: Tensor,
        blocks: list[F.DecodedBlock],
        norm: Any = None,
        head: Tensor | None = None,
    ) -> Tensor:
        """x after these blocks, and what follows, in one call from Python; forgets them."""
        if not blocks:
            return x
        eps = self.config.layer_norm_epsilon
        x = F.decode_blocks(x, blocks, norm=norm, head=head, eps=eps, activation="gelu_tanh")
        blocks.clear()
        return x

    def hidden_states(self, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The stream before the first block and after each: (batch, time, n_embd) all."""
        context, seen = self._place(ids, None, mask)
        states = [self._embed(ids, context)]
        for block in self.h:
            states.append(block(states[-1], None, seen))
        return states

    def _place(
        self,
        ids: Tensor,
        cache: Cache | None,
        mask: Tensor | None,
        context: Context | None = None,
    ) -> tuple[Context, Tensor | None]:
        """Where the tokens stand, and what they see where there is padding."""
        past = cache.length if cache else 0
        if ids.ndim == 2 and ids.shape[1] > self.config.n_positions - past:
            raise ShapeError(
                f"GPT2: expected ids (batch, time), time from 1 to {self.config.n_positions} with "
                f"the {past} positions in the cache; got shape {ids.shape}. Crop the oldest tokens"
            )
        context = context or step(ids, cache, mask)
        if not context.padded:
            return context, None
        return context, Tensor(context.visible(context.key.shape[1])[:, None]).to(ids.device)

    def _embed(self, ids: Tensor, context: Context) -> Tensor:
        at = np.maximum(context.query, 0) if context.padded else context.query
        positions = Tensor(at if len(at) > 1 else at[0]).to(ids.device)
        return self.dropout(self.wte(ids) + self.wpe(positions))

    def new_cache(self, planned: int | None = None) -> Cache:
        """An empty cache for forward().

        planned: the length of the text to come, if it is known; there is then room for no more.
        """
        longest = self.config.n_positions
        return Cache([nn.KVCache(min(planned or longest, longest)) for _ in self.h], planned)

    def save_pretrained(self, folder: str | Path, max_shard_bytes: int = SHARD_BYTES) -> None:
        """Write config.json and the weights, which transformers' GPT2LMHeadModel loads."""
        save(self, folder, max_shard_bytes)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: np.dtype = DEFAULT_FLOAT) -> Self:
        """Read what save_pretrained, or transformers, wrote into a folder (models/pretrained.py).

        Weights are converted to dtype.
        """
        return load(folder, [GPT2Config], dtype)  # type: ignore[return-value]


CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
BIASED = re.compile(r"(ln_\w+|c_attn|c_proj|c_fc)\.weight$")
MASKS = re.compile(r"\.attn\.(bias|masked_bias)$")


def _exchange(name: str, array: np.ndarray) -> np.ndarray:
    """Between Linear's (out, in) and Conv1D's (in, out); its own inverse."""
    return np.ascontiguousarray(array.T) if CONV1D.search(name) else array
