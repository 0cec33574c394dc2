"""The settings of a run that learns a text: one flat dataclass of parts, saved beside the run."""

from dataclasses import dataclass
from typing import Any, ClassVar

from minitorch.errors import ConfigError
from models.families import FAMILIES
from models.optimization import TrainingSettings
from models.options import Settings, option

PRESETS: dict[str, dict[str, Any]] = {
    "nano": {},
    "baby": {
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "block_size": 256,
        "dropout": 0.2,
        "batch_size": 64,
        "steps": 5000,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "warmup_fraction": 0.02,
        "eval_interval": 250,
        "checkpoint_interval": 250,
    },
    "gpt2": {
        "tokenizer": "bpe",
        "vocab_size": 50257,
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "block_size": 1024,
        "batch_size": 12,
        "gradient_accumulation": 40,
        "steps": 600_000,
        "optimizer": "adamw",
        "learning_rate": 6e-4,
        "warmup_fraction": 0.0033,
        "beta2": 0.95,
        "eval_interval": 1000,
        "eval_tokens": 200_000,
        "checkpoint_interval": 1000,
    },
}
"""What each preset changes. The sizes are nanoGPT's: its CPU example, its character-level GPU
example, and GPT-2 small."""


@dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """What is read."""

    data: str = option(
        "embedded",
        "text to train on: `embedded` (the Python language reference), a file, a folder, or a URL",
        fixed=True,
    )
    val_fraction: float = option(
        0.1, "share of the text, at its end, kept for validation", above=0, below=1, fixed=True
    )


@dataclass(frozen=True, kw_only=True)
class VocabularySettings(TextSettings):
    """How it is cut into tokens."""

    tokenizer: str = option(
        "char", "`char`, `byte`, `bpe` (trained on the text), or a tokenizer.json", fixed=True
    )
    vocab_size: int = option(
        1024, "size of the vocabulary that `bpe` is trained to", at_least=257, fixed=True
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """What reads it."""

    model: str = option(
        "gpt2", "family of the model, in the sizes below", choices=tuple(FAMILIES), fixed=True
    )
    n_layer: int = option(4, "number of transformer blocks", at_least=1, fixed=True)
    n_head: int = option(4, "attention heads; divides n_embd", at_least=1, fixed=True)
    n_embd: int = option(128, "width of the model", at_least=1, fixed=True)
    block_size: int = option(64, "tokens of context", at_least=1, fixed=True)
    bias: bool = option(True, "with `gpt2`, biases in linear layers and layer norms", fixed=True)
    dropout: float = option(0.0, "with `gpt2`, probability of dropout", at_least=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head:
            fitting = [n for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            raise ConfigError(
                f"n_head: {self.n_head} heads do not divide n_embd = {self.n_embd}; "
                f"n_head could be {max(n for n in fitting if n <= self.n_head)}"
            )


@dataclass(frozen=True, kw_only=True)
class LanguageModelSettings(TrainingSettings, ModelSettings, TextSettings):
    """What all runs have that learn to predict a text."""

    ema_decay: float = option(
        0.0, "of the average of the weights that is evaluated and exported; 0: none",
        at_least=0, below=1, fixed=True,
    )  # fmt: skip
    cuda_graph: bool = option(
        True, "with `cuda`, record a step once and replay it; not with `adafactor`"
    )
    eval_tokens: int = option(
        0, "validation tokens of one evaluation, spread evenly; 0: all", at_least=0
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LanguageModelSettings, VocabularySettings):
    """All that decides what a training run computes. The defaults are the preset `nano`.

    Raises ConfigError, naming the field, for a value of the wrong type or out of its range, and for
    values that do not fit together.
    """

    command: ClassVar[str] = "train"
    presets: ClassVar = PRESETS

    sample_tokens: int = option(300, "length of the text written at the end; 0: none", at_least=0)
