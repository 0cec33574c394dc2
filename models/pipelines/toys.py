"""What toy pipelines are made of: models with random weights, fine-tuning on rows, misprints."""

import string
from pathlib import Path

import numpy as np

from minitorch.backend import DEFAULT_FLOAT
from minitorch.random import Generator
from minitorch.tokenizers import Tokenizer
from models.llama import LlamaConfig, size
from models.recipes.sft import SFT, SFTConfig

BATCH = 128
MUON = 5  # times the learning rate of the rest, for matrices


def write_untrained(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    width: int,
    layers: int,
    heads: int,
    positions: int,
    seed: int,
) -> Path:
    """A model with random weights, and its tokenizer, into the folder; returns it."""
    sizes = LlamaConfig(
        **size(width, layers, heads, heads, 3 * width),
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=positions,
    )
    sizes.build(DEFAULT_FLOAT, Generator(seed)).save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


def fine_tuning(model: Path, rows: Path, *, steps: int, learning_rate: float, seed: int) -> SFT:
    """The recipe that learns the rows of a file."""
    settings = SFTConfig(
        model=str(model),
        data=str(rows),
        template="plain",
        batch_size=BATCH,
        val_fraction=0.02,
        steps=steps,
        optimizer="muon",
        learning_rate=learning_rate,
        muon_learning_rate=MUON * learning_rate,
        eval_rows=0,
        seed=seed,
    )
    return SFT(settings)


def steps_of(rows: Path, epochs: int) -> int:
    """How many steps of `fine_tuning` go so often through the rows of a file."""
    return max(epochs * len(rows.read_text().splitlines()) // BATCH, 1)


def misprinted(text: str, random: np.random.Generator) -> str:
    """The text with another digit or letter in one place."""
    at = int(random.integers(len(text)))
    known = string.digits if text[at].isdigit() else string.ascii_lowercase[:6]
    others = [char for char in known if char != text[at]]
    return text[:at] + str(random.choice(others)) + text[at + 1 :]
