"""The configuration of a training run: one flat dataclass, validated, saved beside the run.

A value comes from the last of these that names it:

    the defaults  <  --preset  <  --config FILE (TOML)  <  --set key=value, --data, --seed, --device

Every field carries its help and its range, from which the messages, `minitorch train --settings`
and the table in the documentation are made.
"""

import dataclasses
import difflib
import json
import math
import operator
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitorch.backend import DEVICES
from minitorch.errors import ConfigError
from minitorch.io import atomic_write
from models.families import FAMILIES

LIMITS = {
    "at_least": ("at least", operator.ge),
    "above": ("more than", operator.gt),
    "below": ("less than", operator.lt),
    "at_most": ("at most", operator.le),
}


def option(
    default: Any, help: str, *, choices: Sequence[str] = (), fixed: bool = False, **limits: float
) -> Any:
    """A field of the configuration.

    limits: bounds by the names of LIMITS. fixed: a run cannot be resumed with another value.
    """
    metadata = {"help": help, "choices": tuple(choices), "fixed": fixed, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that decides what a training run computes. The defaults are the preset `nano`.

    Raises ConfigError, naming the field, for a value of the wrong type or out of its range, and for
    values that do not fit together.
    """

    data: str = option(
        "embedded",
        "text to train on: `embedded` (the Python language reference), a file, a folder, or a URL",
        fixed=True,
    )
    tokenizer: str = option(
        "char", "`char`, `byte`, `bpe` (trained on the text), or a tokenizer.json", fixed=True
    )
    vocab_size: int = option(
        1024, "size of the vocabulary that `bpe` is trained to", at_least=257, fixed=True
    )
    val_fraction: float = option(
        0.1, "share of the text, at its end, kept for validation", above=0, below=1, fixed=True
    )
    seed: int = option(
        1337, "of the weights, the order of the data, dropout", at_least=0, fixed=True
    )

    model: str = option(
        "gpt2", "family of the model, in the sizes below", choices=tuple(FAMILIES), fixed=True
    )
    n_layer: int = option(4, "number of transformer blocks", at_least=1, fixed=True)
    n_head: int = option(4, "attention heads; divides n_embd", at_least=1, fixed=True)
    n_embd: int = option(128, "width of the model", at_least=1, fixed=True)
    block_size: int = option(64, "tokens of context", at_least=1, fixed=True)
    bias: bool = option(True, "with `gpt2`, biases in linear layers and layer norms", fixed=True)
    dropout: float = option(0.0, "with `gpt2`, probability of dropout", at_least=0, below=1)

    steps: int = option(1000, "optimizer steps", at_least=1)
    batch_size: int = option(12, "sequences in one forward pass", at_least=1, fixed=True)
    gradient_accumulation: int = option(
        1, "forward passes to one optimizer step", at_least=1, fixed=True
    )
    optimizer: str = option(
        "muon", "update rule", choices=("adamw", "muon", "lion", "adafactor", "sgd"), fixed=True
    )
    learning_rate: float = option(4e-3, "the highest learning rate", above=0)
    muon_learning_rate: float = option(
        0.02, "with `muon`, that of the matrices inside the blocks", above=0
    )
    schedule: str = option(
        "cosine", "of the learning rate", choices=("cosine", "linear", "wsd", "constant")
    )
    warmup_fraction: float = option(
        0.1, "share of the steps in which it rises to learning_rate", at_least=0, at_most=1
    )
    decay_fraction: float = option(
        0.2, "share of the steps, at the end, in which `wsd` falls", at_least=0, at_most=1
    )
    final_fraction: float = option(
        0.1, "where it ends, as a share of learning_rate", at_least=0, at_most=1
    )
    weight_decay: float = option(0.1, "of matrices and embeddings, not of vectors", at_least=0)
    muon_weight_decay: float = option(0.0, "with `muon`, that of the matrices", at_least=0)
    beta1: float = option(0.9, "decay of the first moment", at_least=0, below=1)
    beta2: float = option(0.99, "decay of the second moment", at_least=0, below=1)
    grad_clip: float = option(1.0, "greatest norm of the gradient; 0: no clipping", at_least=0)
    ema_decay: float = option(
        0.0, "of the average of the weights that is evaluated and exported; 0: none",
        at_least=0, below=1, fixed=True,
    )  # fmt: skip

    device: str = option(
        "cpu", "where it computes: `simt` runs the CUDA kernels in the emulator", choices=DEVICES
    )
    cuda_graph: bool = option(
        True, "with `cuda`, record a step once and replay it; not with `adafactor`"
    )
    precision: str = option(
        "float32", "of matrix products and attention; weights and losses stay float32",
        choices=("float32", "bfloat16"),
    )  # fmt: skip

    eval_interval: int = option(100, "steps between evaluations", at_least=1)
    eval_tokens: int = option(
        0, "validation tokens of one evaluation, spread evenly; 0: all", at_least=0
    )
    checkpoint_interval: int = option(100, "steps between checkpoints", at_least=1)
    keep_checkpoints: int = option(2, "newest checkpoints kept, besides the best", at_least=1)
    sample_tokens: int = option(300, "length of the text written at the end; 0: none", at_least=0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _typed(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            _check_range(field, value)
        if self.n_embd % self.n_head:
            fitting = [n for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            raise ConfigError(
                f"n_head: {self.n_head} heads do not divide n_embd = {self.n_embd}; "
                f"n_head could be {max(n for n in fitting if n <= self.n_head)}"
            )
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ConfigError(
                f"decay_fraction: {self.decay_fraction} and warmup_fraction = "
                f"{self.warmup_fraction} are more than the whole run"
            )

    def toml(self) -> list[str]:
        """One line of TOML per field, without comments."""
        return [f"{f.name} = {_toml(getattr(self, f.name))}" for f in dataclasses.fields(self)]

    def save(self, path: str | Path) -> None:
        """Write all fields as TOML with their help as comments; `resolve` reads it back."""
        lines = [
            "# A training run of minitorch; use it again with: minitorch train --config FILE",
            *(
                f"{line}  # {_describe(field)}"
                for line, field in zip(self.toml(), dataclasses.fields(self))
            ),
        ]
        with atomic_write(path) as file:
            file.write(("\n".join(lines) + "\n").encode())


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


def resolve(
    preset: str = "nano",
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """The configuration from a preset, a TOML file and overrides, the later ones winning.

    overrides: values, or texts such as "1e-3" as they come from a command line. Raises ConfigError.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset: {_unknown(preset, PRESETS)}")
    values = dict(PRESETS[preset])
    if file is not None:
        values.update(_with_source(str(file), read_toml(file)))
    values.update(_with_source("--set", overrides or {}))
    return TrainConfig(**values)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The keys and values of a TOML file; ConfigError where it is missing or not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def parse_assignment(text: str) -> tuple[str, str]:
    """("key", "value") from "key=value"; ConfigError where there is no "="."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected key=value, for example --set steps=2000")
    return key.strip().replace("-", "_"), value.strip()


def resumed(before: TrainConfig, now: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """What a run that had `before` goes on with: `now` and overrides.

    Raises ConfigError where a fixed field would change.
    """
    after = dataclasses.replace(now, **_with_source("--set", overrides))
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.metadata["fixed"] and old != new:
            raise ConfigError(
                f"{field.name}: this run has {old!r} and cannot be resumed with {new!r}; "
                "start a new one with another --out"
            )
    return after


def describe() -> list[tuple[str, ...]]:
    """For every field: key, default, what each other preset has instead or "", meaning."""
    others = [changes for name, changes in PRESETS.items() if name != "nano"]
    return [
        (
            field.name,
            _toml(field.default),
            *(_toml(preset[field.name]) if field.name in preset else "" for preset in others),
            _describe(field),
        )
        for field in dataclasses.fields(TrainConfig)
    ]


def _with_source(source: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the fields' types, from texts too; errors begin with the source."""
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    result = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{source}: {_unknown(key, fields)}")
        try:
            result[key] = _typed(fields[key], value, parse=True)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
    return result


def _typed(field: dataclasses.Field, value: Any, parse: bool = False) -> Any:
    kind = field.type
    if parse and isinstance(value, str) and kind is not str:
        value = _parse(kind, value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        expected = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
        raise ConfigError(f"{field.name}: expected {expected[kind]}; got {value!r}")  # type: ignore[index]
    return value


def _parse(kind: Any, text: str) -> Any:
    """The value that a text from the command line stands for, or the text where there is none."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _check_range(field: dataclasses.Field, value: Any) -> None:
    choices, limits = field.metadata["choices"], field.metadata["limits"]
    if choices and value not in choices:
        raise ConfigError(f"{field.name}: {_unknown(value, choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{field.name}: expected a finite number; got {value}")
    if not all(LIMITS[name][1](value, limit) for name, limit in limits.items()):
        expected = ", ".join(f"{LIMITS[name][0]} {limit}" for name, limit in limits.items())
        raise ConfigError(f"{field.name}: expected {expected}; got {value}")


def _describe(field: dataclasses.Field) -> str:
    choices = field.metadata["choices"]
    return field.metadata["help"] + (f": {', '.join(f'`{c}`' for c in choices)}" if choices else "")


def _unknown(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    return f"unknown {name!r}; {hint}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
