"""A reward model: a language model whose head gives a number instead of the next token.

    r_t = w · h_t        at every token; that of a conversation is r at its last real token

The head starts at N(0, 1 / (width + 1)), so that the first scores are of the order of 1. Its folder
is that of the language model and one file more, score.safetensors. Source: Stiennon et al. 2020,
"Learning to summarize from human feedback" (arXiv 2009.01325), appendix B.1.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

import minitorch as mt
from minitorch import nn
from minitorch.backend import DEFAULT_FLOAT
from minitorch.errors import CheckpointError
from minitorch.io import load_safetensors, save_safetensors
from minitorch.random import Generator
from minitorch.rl import last_token_scores
from minitorch.tensor import Tensor
from models.families import Model, from_pretrained
from models.recipes.scoring import features

HEAD = "score.safetensors"


class RewardModel(nn.Module):
    """Token ids to a score at every token: (batch, time) -> (batch, time)."""

    def __init__(self, trunk: Model, generator: Generator | None = None):
        self.trunk = trunk
        weight = trunk.lm_head.weight
        width = weight.shape[1]
        self.score = nn.Linear(width, 1, False, weight.dtype)
        nn.init.normal_(self.score.weight, std=1 / math.sqrt(width + 1), generator=generator)

    @property
    def config(self) -> Any:
        """The language model's."""
        return self.trunk.config

    def forward(self, ids: np.ndarray) -> tuple[Tensor, list[Tensor]]:
        """The scores, and what blocks add to a loss. Rows are padded on the right."""
        hidden, extra = features(self.trunk, ids)
        return self.score(hidden).squeeze(-1), extra

    def rewards(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """The score of each conversation, at its last token: (count,). Nothing is recorded."""
        longest = max(map(len, texts))
        ids = np.array([[*text, *[0] * (longest - len(text))] for text in texts], np.int64)
        mask = np.array([[i < len(text) for i in range(longest)] for text in texts])
        self.eval()
        with mt.no_grad():
            scores, _ = self(ids)
            return last_token_scores(scores, mt.from_numpy(mask).to(scores.device)).numpy()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the language model as it does itself, and the head beside it."""
        self.trunk.save_pretrained(folder)
        weight = self.score.weight.detach().numpy()
        save_safetensors(Path(folder) / HEAD, {"score.weight": weight})

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: np.dtype = DEFAULT_FLOAT) -> Self:
        """Read what save_pretrained wrote; CheckpointError for a folder of another kind."""
        path = Path(folder) / HEAD
        if not path.is_file():
            raise CheckpointError(
                f"{folder}: expected a reward model, with {HEAD}; train one with `minitorch reward`"
            )
        model = cls(from_pretrained(folder, dtype))
        model.load_head(path)
        return model

    def load_head(self, path: Path) -> None:
        """Take the head that save_pretrained wrote."""
        self.score.load_state_dict({"weight": load_safetensors(path)[0]["score.weight"]})
