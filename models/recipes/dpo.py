"""Preferences without a reward model: DPO and its relatives, one choice of loss.

What a pair gives to each (minitorch.rl.preference has the formulas), with log p of whole answers:

    dpo, cdpo, hinge   sums of log p of both answers, and of the reference
    ipo                means of both, and of the reference
    kto                sums of each answer by itself, and of answers under others' questions
    orpo, simpo        means of both; no reference

The reference is the model that training begins with, or another of the same vocabulary. It never
changes, so that its log-probabilities are computed once, before the first step and without dropout.

Watch both `chosen` and `rejected`, the log-probabilities of the two answers: the loss falls as long
as their distance grows, also when both become less likely.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

import minitorch as mt
from minitorch import rl
from minitorch.tensor import Tensor
from models import checkpoints
from models.chat import TEMPLATES
from models.families import Model, with_tokenizer
from models.options import option
from models.recipes.data import (
    IGNORED,
    Example,
    Row,
    collate,
    example,
    read_rows,
    split_rows,
)
from models.recipes.judged import Judged
from models.recipes.post_training import PostTrainingSettings
from models.recipes.recipe import Metrics
from models.recipes.scoring import next_token_losses
from models.recipes.start import check_same_vocabulary

LOSSES = ("dpo", "cdpo", "ipo", "hinge", "kto", "orpo", "simpo")
OF_MEANS = ("ipo", "orpo", "simpo")
WITHOUT_REFERENCE = ("orpo", "simpo")
OWN = "own"


@dataclass(frozen=True, kw_only=True)
class DPOConfig(PostTrainingSettings):
    """All that decides what `minitorch dpo` computes."""

    command: ClassVar[str] = "dpo"

    learning_rate: float = option(2e-4, "the highest learning rate", above=0)
    data: str = option("", "a JSONL file of preferences", fixed=True)
    loss: str = option("dpo", "what pairs are judged by", choices=LOSSES, fixed=True)
    beta: float = option(
        0.1, "how far the model may go from the reference; with `orpo` the weight of the odds, "
        "with `simpo` the scale, 2 say", above=0,
    )  # fmt: skip
    label_smoothing: float = option(
        0.1, "with `cdpo`, the probability that a preference is wrong", at_least=0, below=0.5
    )
    margin: float = option(1.0, "with `simpo`, the distance that is enough", at_least=0)
    reference: str = option(
        "", "another folder than model's, of the model to stay close to", fixed=True
    )
    val_fraction: float = option(
        0.1, "share of the rows kept for validation", above=0, below=1, fixed=True
    )
    template: str = option(
        OWN, "how conversations are written", choices=(OWN, *TEMPLATES), fixed=True
    )


@dataclass(frozen=True)
class Pair:
    """Answers to one question: the chosen one, the rejected one and, with KTO, one to another.

    reference: the reference's log-probability of each, once it is known.
    """

    answers: tuple[Example, ...]
    reference: tuple[float, ...] = ()


class DPO(Judged):
    """The recipe of `minitorch dpo`."""

    columns: ClassVar[Mapping[str, str]] = {
        **Judged.columns,
        "chosen": "chosen {:.2f}",
        "rejected": "rejected {:.2f}",
        "accuracy": "right {:.3f}",
        "val_accuracy": "val right {:.3f}",
    }
    config: DPOConfig

    def __init__(self, config: DPOConfig):
        super().__init__(config, None if config.template == OWN else config.template)
        rows = read_rows(config.data)
        training, validation = (
            self._pairs(part) for part in split_rows(rows, config.val_fraction, config.seed)
        )
        if config.loss not in WITHOUT_REFERENCE:
            reference = self._reference()
            training, validation = (
                self._with_reference(pairs, reference) for pairs in (training, validation)
            )
        self.learn_from(rows, training, validation)

    def _pairs(self, rows: Sequence[Row]) -> list[Pair]:
        """The rows as tokens; with KTO each question also with the next row's answer."""
        pairs = []
        for i, row in enumerate(rows):
            conversations = [*row.pair()]
            if self.config.loss == "kto":
                following, _ = rows[(i + 1) % len(rows)].pair()
                conversations.append([*conversations[0][:-1], following[-1]])
            answers = (
                example(row, messages, self.tokenizer, self.context, last_only=True)
                for messages in conversations
            )
            pairs.append(Pair(tuple(answers)))
        return pairs

    def _reference(self) -> Model:
        """The model to stay close to: that which training begins with, unless another is named."""
        if not self.config.reference:
            return self.model
        folder = checkpoints.model_folder(Path(self.config.reference))
        model, tokenizer = with_tokenizer(folder)
        check_same_vocabulary(tokenizer, self.tokenizer, folder)
        return model.to(self.config.device)

    def _with_reference(self, pairs: Sequence[Pair], model: Model) -> list[Pair]:
        """The pairs with what the reference gives to their answers, without dropout."""
        model.eval()
        found = []
        for part in self._parts(pairs):
            with mt.no_grad(), self.precision():
                columns, _, _ = self._log_probs(model, part)
            values = zip(*(column.numpy().tolist() for column in columns), strict=True)
            found += [replace(pair, reference=row) for pair, row in zip(part, values, strict=True)]
        return found

    def _log_probs(
        self, model: Model, pairs: Sequence[Pair]
    ) -> tuple[list[Tensor], int, list[Tensor]]:
        """Of the answers, (pairs,) for each kind; how many tokens; what blocks add to the loss."""
        kinds = zip(*(pair.answers for pair in pairs), strict=True)
        batch = collate([[answer] for kind in kinds for answer in kind])
        losses, extra = next_token_losses(model, batch)
        log_probs = -losses.sum(1)
        if self.config.loss in OF_MEANS:
            counts = (batch.targets != IGNORED).sum(1).astype(log_probs.dtype)
            log_probs = log_probs / mt.from_numpy(counts).to(log_probs.device)
        columns = log_probs.reshape(-1, len(pairs)).unbind(0)
        return list(columns), int((batch.segments > 0).sum()), extra

    def judge(self, items: Sequence[Pair]) -> tuple[Tensor, Metrics, list[Tensor]]:
        """Pairs, by the configured loss."""
        ours, tokens, extra = self._log_probs(self.model, items)
        theirs = [
            mt.from_numpy(np.array(column, ours[0].dtype)).to(ours[0].device)
            for column in zip(*(pair.reference for pair in items), strict=True)
        ]
        loss = preference_loss(self.config, ours, theirs)
        gaps = (ours[0] - ours[1]).detach().numpy()
        if theirs:
            gaps = gaps - (theirs[0] - theirs[1]).numpy()
        metrics = {
            "loss": loss.item(),
            "chosen": ours[0].mean().item(),
            "rejected": ours[1].mean().item(),
            "accuracy": float(np.mean((gaps > 0) + 0.5 * (gaps == 0))),
            "reward_margin": self.config.beta * float(gaps.mean()),
            "tokens": tokens,
        }
        return loss, metrics, extra


def preference_loss(config: DPOConfig, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """The configured loss of pairs.

    ours, theirs: log-probabilities of the chosen and the rejected answers and, with KTO, of the
    mismatched, (pairs,) each, of the model and of the reference.
    """
    chosen, rejected = ours[:2]
    match config.loss:
        case "orpo":
            return rl.orpo_loss(chosen, rejected, weight=config.beta)
        case "simpo":
            return rl.simpo_loss(chosen, rejected, beta=config.beta, margin=config.margin)
        case "ipo":
            return rl.ipo_loss(chosen, rejected, *theirs, beta=config.beta)
        case "hinge":
            return rl.hinge_loss(chosen, rejected, *theirs, beta=config.beta)
        case "kto":
            return _kto(config, ours, theirs)
        case _:
            smoothing = config.label_smoothing if config.loss == "cdpo" else 0.0
            return rl.dpo_loss(
                chosen, rejected, *theirs, beta=config.beta, label_smoothing=smoothing
            )


def _kto(config: DPOConfig, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Each answer by itself: the chosen are desirable, the rejected are not."""
    divergence = rl.kto_divergence(ours[2].detach(), theirs[2])
    desirable = np.repeat([True, False], len(ours[0]))
    return rl.kto_loss(
        mt.cat([ours[0], ours[1]]),
        mt.cat([theirs[0], theirs[1]]),
        mt.from_numpy(desirable).to(ours[0].device),
        divergence=divergence,
        beta=config.beta,
    )
