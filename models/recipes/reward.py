"""Reward models: a score for answers, learnt from which of two is preferred, or from their steps.

    outcome   -log sigmoid(r(chosen) - r(rejected) - margin), the score at the last token
    process   cross-entropy of each step's label, the score at the token that ends the step

Only differences of outcome scores are learnt; `centring` holds the scores near 0. A policy that
moves writes what its judge has never read; the judge is then trained on, with newer rows and, so
that it forgets nothing, some of the earlier (`replay`: iterative GRPO, Shao et al. 2024, arXiv
2402.03300, algorithm 1, where they are a tenth). Rows are

    {"prompt": ..., "chosen": ..., "rejected": ..., "margin": 1}        the margin may be absent
    {"prompt": ..., "steps": [...], "labels": [1, 1, 0]}                1: right, 0: wrong
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import minitorch as mt
from minitorch.errors import DataError
from minitorch.random import Generator
from minitorch.rl import last_token_scores, process_reward_loss, reward_model_loss
from minitorch.tensor import Tensor
from minitorch.tokenizers import Tokenizer
from models import checkpoints, lora
from models.chat import TEMPLATES
from models.checkpoints import Checkpoint
from models.families import Model
from models.options import option
from models.recipes.data import (
    Example,
    Row,
    check_length,
    collate,
    example,
    prompt_ids,
    read_rows,
    split_rows,
    with_replay,
)
from models.recipes.judged import Judged
from models.recipes.post_training import PostTrainingSettings
from models.recipes.recipe import Metrics
from models.reward_model import HEAD, RewardModel

OWN = "own"


@dataclass(frozen=True, kw_only=True)
class RewardConfig(PostTrainingSettings):
    """All that decides what `minitorch reward` computes."""

    command: ClassVar[str] = "reward"

    data: str = option("", "a JSONL file of preferences, or of steps", fixed=True)
    kind: str = option("outcome", "what is judged", choices=("outcome", "process"), fixed=True)
    val_fraction: float = option(
        0.1, "share of the rows kept for validation", above=0, below=1, fixed=True
    )
    template: str = option(
        OWN, "how conversations are written", choices=(OWN, *TEMPLATES), fixed=True
    )
    replay: str = option("", "a JSONL file of earlier rows, learnt from besides", fixed=True)
    replay_share: float = option(
        0.1, "with replay, their share of what is learnt from", above=0, below=1, fixed=True
    )
    centring: float = option(0.01, "of outcomes, the weight of (r + r')²", at_least=0)


@dataclass(frozen=True)
class Pair:
    """Two answers to one question, the preferred one first."""

    chosen: Example
    rejected: Example
    margin: float


@dataclass(frozen=True)
class Steps:
    """An answer in steps. labels: (tokens,), of a step where it ends, and NaN elsewhere.

    start: where the first step begins.
    """

    ids: np.ndarray
    labels: np.ndarray
    start: int


class Reward(Judged):
    """The recipe of `minitorch reward`."""

    columns: ClassVar[Mapping[str, str]] = {
        **Judged.columns,
        "accuracy": "right {:.3f}",
        "val_accuracy": "val right {:.3f}",
    }
    config: RewardConfig

    def __init__(self, config: RewardConfig):
        template = None if config.template == OWN else config.template
        super().__init__(config, template, partial(_judge, config))
        rows = read_rows(config.data)
        make = make_pair if config.kind == "outcome" else make_steps
        learnt, kept = split_rows(rows, config.val_fraction, config.seed)
        if config.replay:
            earlier = read_rows(config.replay)
            learnt = with_replay(learnt, earlier, config.replay_share, config.seed)
            rows = rows + earlier
        training, validation = (
            [make(row, self.tokenizer, self.context) for row in part] for part in (learnt, kept)
        )
        self.learn_from(rows, training, validation)

    def judge(self, items: Sequence[Any]) -> tuple[Tensor, Metrics, list[Tensor]]:
        """Pairs or steps."""
        if self.config.kind == "outcome":
            return outcome_loss(self.model, items, self.config.centring)
        return process_loss(self.model, items)

    def export(self, folder: Path) -> None:
        """The reward model and its tokenizer; with LoRA, adapters taken in."""
        model = self.model
        if self.adapters is not None:
            model = RewardModel(lora.merged_model(self.model.trunk))
            model.score.load_state_dict(self.model.score.state_dict())
        model.save_pretrained(folder)
        self.tokenizer.save(folder / "tokenizer.json")

    def load_model(self, saved: Checkpoint) -> None:
        """The trunk as of any recipe, and the head."""
        if self.adapters is None:
            self.model.load_state_dict(RewardModel.from_pretrained(saved.path).state_dict())
        else:
            super().load_model(saved)


def _judge(config: RewardConfig, trunk: Model) -> RewardModel:
    """With a new head, or with that of the folder where it is of a reward model already."""
    model = RewardModel(trunk, Generator(config.seed))
    path = checkpoints.model_folder(Path(config.model)) / HEAD
    if path.is_file():
        model.load_head(path)
    return model


def make_pair(row: Row, tokenizer: Tokenizer, context: int) -> Pair:
    """A row of a preference as tokens."""
    chosen, rejected = (
        example(row, messages, tokenizer, context, last_only=True) for messages in row.pair()
    )
    return Pair(chosen, rejected, row.number("margin", 0.0))


def make_steps(row: Row, tokenizer: Tokenizer, context: int) -> Steps:
    """A row of steps as tokens, each step encoded by itself, so that it has an end."""
    steps, labels = row.fields.get("steps"), row.fields.get("labels")
    if (
        not isinstance(steps, list)
        or not isinstance(labels, list)
        or not steps
        or len(steps) != len(labels)
        or not all(isinstance(step, str) and step for step in steps)
        or not all(isinstance(x, int | float) and 0 <= x <= 1 for x in labels)
    ):
        raise DataError(
            f"{row.where}: expected texts under 'steps' and as many labels from 0 to 1 under "
            f"'labels'; got {steps!r:.80} and {labels!r:.80}"
        )
    ids = prompt_ids(row, tokenizer, context)
    start = len(ids)
    marks = [math.nan] * start
    for step, label in zip(steps, labels, strict=True):
        try:
            encoded = tokenizer.encode(step)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None
        ids += encoded
        marks += [math.nan] * (len(encoded) - 1) + [float(label)]
    check_length(row, len(ids), context)
    return Steps(np.array(ids), np.array(marks), start)


def outcome_loss(
    model: RewardModel, pairs: Sequence[Pair], centring: float
) -> tuple[Tensor, Metrics, list[Tensor]]:
    """The loss of pairs, what it was like, and what blocks add to it."""
    batch = collate([[pair.chosen] for pair in pairs] + [[pair.rejected] for pair in pairs])
    scores, extra = model(batch.ids)
    real = mt.from_numpy(batch.segments > 0).to(scores.device)
    last = last_token_scores(scores, real)
    chosen, rejected = last[: len(pairs)], last[len(pairs) :]
    margin = mt.from_numpy(np.array([pair.margin for pair in pairs], last.dtype)).to(last.device)
    loss = reward_model_loss(chosen, rejected, margin=margin, centring=centring)
    gaps = (chosen - rejected).detach().numpy()
    metrics = {
        "loss": loss.item(),
        "accuracy": float(np.mean((gaps > 0) + 0.5 * (gaps == 0))),
        "margin": float(gaps.mean()),
        "score": last.mean().item(),
        "tokens": int((batch.segments > 0).sum()),
    }
    return loss, metrics, extra


def process_loss(
    model: RewardModel, items: Sequence[Steps]
) -> tuple[Tensor, Metrics, list[Tensor]]:
    """The loss of steps, what it was like, and what blocks add to it."""
    longest = max(len(item.ids) for item in items)
    ids = np.zeros((len(items), longest), np.int64)
    labels = np.full((len(items), longest), np.nan, np.float32)
    for i, item in enumerate(items):
        ids[i, : len(item.ids)], labels[i, : len(item.ids)] = item.ids, item.labels
    ends = ~np.isnan(labels)
    scores, extra = model(ids)
    wanted = mt.from_numpy(np.where(ends, labels, 0)).to(scores.device)
    loss = process_reward_loss(scores, wanted, mt.from_numpy(ends).to(scores.device))
    given = scores.detach().numpy()[ends]
    right = (given > 0) == (labels[ends] > 0.5)
    metrics = {
        "loss": loss.item(),
        "accuracy": float(right.mean()),
        "score": float(given.mean()),
        "tokens": sum(len(item.ids) for item in items),
    }
    return loss, metrics, extra
