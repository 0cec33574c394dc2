"""Plain text beside what a recipe learns from, so that what the model knew is not forgotten."""

from typing import Any

import numpy as np

import minitorch as mt
from minitorch.data import BatchLoader, load_text, sequential_batches, split_tokens
from minitorch.tokenizers import Tokenizer
from models.families import Model
from models.recipes.data import Example


class PlainText:
    """Rows to learn from again, and a part to measure forgetting on.

    source: as `data` of `minitorch train`. rows, length: drawn at once, and the tokens of each.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, rows: int, length: int, seed: int):
        self.length = length
        ids = tokenizer.encode_array(load_text(source))
        training, self.validation = split_tokens(ids, 0.1, length)
        self._loader = BatchLoader(training, rows, length, seed)

    def draw(self) -> list[Example]:
        """The next rows, of which every token is learnt."""
        ids, targets = next(self._loader)
        whole = np.concatenate([ids, targets[:, -1:]], 1)[:, : self.length]
        return [Example(row, np.ones(len(row), bool)) for row in whole]

    def loss(self, model: Model, batch_size: int, tokens: int = 4096) -> float:
        """In nats per token, on about so many tokens of the part that is not learnt from."""
        total = count = 0.0
        device = next(model.parameters()).device
        for batch in sequential_batches(self.validation, batch_size, self.length, tokens):
            ids, targets = (mt.from_numpy(x).to(device) for x in batch)
            with mt.no_grad():
                total += model.loss(ids, targets).item() * targets.numel()
            count += targets.numel()
        return total / count

    def state_dict(self) -> dict[str, int]:
        """Where it stands."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._loader.load_state_dict(state)
