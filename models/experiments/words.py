"""Words of random letters, for experiments on preferences: models of them, and files of rows."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minitorch.backend import DEFAULT_FLOAT
from minitorch.random import Generator
from minitorch.tokenizers import CharTokenizer
from models.families import FAMILIES
from models.generate import END_OF_TEXT

LETTERS, PROMPT = "abcdef", "word="


def draw_word(random: np.random.Generator, shortest: int = 2, longest: int = 6) -> str:
    """Letters, their number and each of them equally likely."""
    length = int(random.integers(shortest, longest + 1))
    return "".join(LETTERS[i] for i in random.integers(len(LETTERS), size=length))


def write_untrained(folder: Path, *, layers: int, width: int, seed: int) -> None:
    """A model of words with random weights, and its tokenizer, into the folder."""
    tokenizer = CharTokenizer(sorted(set(LETTERS + PROMPT)), [END_OF_TEXT])
    sizes = FAMILIES["llama"].sized(
        vocab_size=tokenizer.vocab_size, layers=layers, heads=4, width=width, positions=16
    )
    sizes.build(DEFAULT_FLOAT, Generator(seed)).save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """A file of JSON lines; returns its name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
