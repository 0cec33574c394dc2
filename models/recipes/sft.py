"""Supervised fine-tuning: a base model learns to answer, from conversations.

    loss = sum of -log p(token | what is before it), over the assistant's tokens / their number

The number is that of all micro-batches of a step: the mean of the micro-batches' means would give a
token in a batch of short answers more weight. Questions are read and not learnt; the token that
ends an answer is learnt.

Beside the conversations may go plain text, so that what the base model knows is not forgotten
(replay: Robins 1995), and noise on the embeddings (NEFTune: Jain et al. 2023, arXiv 2310.05914).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import minitorch as mt
from minitorch import nn
from minitorch.errors import ConfigError, DataError
from minitorch.random import Generator
from minitorch.tokenizers import Tokenizer
from models.chat import TEMPLATES, Message, content_ids, end_id, render_prompt
from models.checkpoints import Checkpoint
from models.environments.tasks import TASKS
from models.families import Model
from models.generate import generate_batch
from models.options import option
from models.recipes.data import (
    Batch,
    Example,
    Row,
    Shuffled,
    collate,
    example,
    fingerprint,
    pack,
    read_rows,
    split_rows,
)
from models.recipes.plain_text import PlainText
from models.recipes.post_training import PostTraining, PostTrainingSettings
from models.recipes.recipe import DivergenceError, Metrics
from models.recipes.scoring import next_token_losses
from models.sampling import Sampler

GENERATED_TOGETHER = 64  # answers
DRAWS = 10  # for each row that is wanted of a task


@dataclass(frozen=True, kw_only=True)
class SFTConfig(PostTrainingSettings):
    """All that decides what `minitorch sft` computes."""

    command: ClassVar[str] = "sft"

    data: str = option(
        "strings", f"a JSONL file of conversations, or a task to draw from: {', '.join(TASKS)}",
        fixed=True,
    )  # fmt: skip
    task_rows: int = option(4000, "rows drawn, where data is a task", at_least=2, fixed=True)
    val_fraction: float = option(
        0.05, "share of the rows kept for validation", above=0, below=1, fixed=True
    )
    template: str = option(
        "chatml", "how conversations are written", choices=tuple(TEMPLATES), fixed=True
    )
    answers: str = option(
        "all", "which of a conversation's answers are learnt", choices=("all", "last"), fixed=True
    )
    packing: bool = option(
        False, "several conversations to a row, as many as the context holds", fixed=True
    )
    text: str = option(
        "", "plain text on which forgetting is measured, as `data` of `minitorch train`; none: ``",
        fixed=True,
    )  # fmt: skip
    replay: float = option(
        0.0, "share of a batch's rows that are plain text", at_least=0, below=1, fixed=True
    )
    replay_length: int = option(64, "tokens of a row of plain text", at_least=1, fixed=True)
    neftune: float = option(0.0, "alpha of the noise on embeddings; 0: none", at_least=0)
    eval_rows: int = option(
        100, "validation rows that are answered, for the share of exact answers", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replay and not self.text:
            raise ConfigError("replay: expected a text to draw from; give one by --set text=FILE")


class SFT(PostTraining):
    """The recipe of `minitorch sft`."""

    columns: ClassVar[Mapping[str, str]] = {
        **PostTraining.columns,
        "exact_match": "exact {:.3f}",
        "text_loss": "text {:.4f}",
    }
    config: SFTConfig

    def __init__(self, config: SFTConfig):
        super().__init__(config, config.template)
        self.rows = load_rows(config)
        training, self.validation = split_rows(self.rows, config.val_fraction, config.seed)
        examples, self.judged = (
            [self._example(row) for row in rows] for rows in (training, self.validation)
        )
        alone = [[item] for item in examples]
        self.packed = pack(examples, self.context) if config.packing else alone
        self.replayed = round(config.replay * config.batch_size)
        if self.replayed == config.batch_size or (config.replay and not self.replayed):
            raise ConfigError(
                f"replay: {config.replay} of {config.batch_size} rows is {self.replayed}, which "
                "leaves one of the two without rows; change it or batch_size"
            )
        count = (config.batch_size - self.replayed) * config.gradient_accumulation
        self.loader = Shuffled(len(self.packed), count, config.seed)
        self.text = self._plain_text() if config.text else None

    def _plain_text(self) -> PlainText:
        config, rows = self.config, max(self.replayed, 1)
        return PlainText(config.text, self.tokenizer, rows, config.replay_length, config.seed)

    def _example(self, row: Row) -> Example:
        last_only = self.config.answers == "last"
        return example(row, row.conversation(), self.tokenizer, self.context, last_only=last_only)

    def update(self) -> Metrics:
        """One optimizer step, on all its micro-batches' tokens alike."""
        batches = self._micro_batches()
        total = sum(batch.counted for batch in batches)
        if total == 0:
            raise DataError("data: a batch has no answer to learn from; are all of them empty?")
        self.optimizer.zero_grad()
        loss = 0.0
        for batch in batches:
            with self.precision(), noisy_embeddings(self.model, self.config.neftune):
                losses, extra = next_token_losses(self.model, batch)
            part = losses.sum() / total
            sum((x / len(batches) for x in extra), part).backward()
            loss += part.item()
        grad_norm = self.descend(loss)
        return {"loss": loss, "grad_norm": grad_norm, "tokens": total}

    def _micro_batches(self) -> list[Batch]:
        chosen = [self.packed[i] for i in next(self.loader)]
        size = self.config.batch_size - self.replayed
        batches = []
        for start in range(0, len(chosen), size):
            batches.append(collate(chosen[start : start + size]))
            if self.text is not None and self.replayed:  # by itself, as its rows are longer
                batches.append(collate([[item] for item in self.text.draw()]))
        return batches

    def evaluate(self, stop: Callable[[], bool] = lambda: False) -> Metrics | None:
        """The loss of validation answers, the share answered exactly, the loss of plain text."""
        self.model.eval()
        total = tokens = 0.0
        for start in range(0, len(self.judged), self.config.batch_size):
            if stop():
                return None
            part = self.judged[start : start + self.config.batch_size]
            batch = collate([[item] for item in part])
            with mt.no_grad(), self.precision():
                losses, _ = next_token_losses(self.model, batch)
            total += losses.sum().item()
            tokens += batch.counted
        if not math.isfinite(total):
            raise DivergenceError(f"step {self.step}: the validation loss is {total / tokens:g}")
        found = {"val_loss": total / tokens}
        asked = self.validation[: self.config.eval_rows]
        if asked:
            given = answers(self.model, self.tokenizer, asked)
            wanted = [row.question()[1] for row in asked]
            found["exact_match"] = float(np.mean([a == b for a, b in zip(given, wanted)]))
        if self.text is not None:
            found["text_loss"] = self.text.loss(self.model, self.config.batch_size)
        return found

    @property
    def fingerprint(self) -> dict[str, int]:
        """That of the rows."""
        return fingerprint(self.rows)

    def state(self) -> dict[str, Any]:
        """The positions in the rows and in the plain text."""
        text = self.text and self.text.state_dict()
        return {"position": self.loader.state_dict(), "text": text}

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint of this run."""
        super().restore(saved)
        self.loader.load_state_dict(saved.state["position"])
        if self.text is not None:
            self.text.load_state_dict(saved.state["text"])


def load_rows(config: SFTConfig) -> list[Row]:
    """The rows of a file, or drawn from a task, which asks nothing twice.

    A small task may have fewer questions than are wanted; those are all that many draws find.
    """
    if config.data not in TASKS:
        return read_rows(config.data)
    task, random = TASKS[config.data](), Generator(config.seed).draw()
    rows: dict[str, Row] = {}
    for _ in range(DRAWS * config.task_rows):
        fields = task.draw(random)
        fields["completion"] = task.demonstrate(fields, random)
        rows.setdefault(fields["prompt"], Row(f"{config.data}:{len(rows) + 1}", fields))
        if len(rows) == config.task_rows:
            break
    return list(rows.values())


def answers(model: Model, tokenizer: Tokenizer, rows: Sequence[Row]) -> list[str]:
    """What the model answers where the last answer of each row stands, its likeliest tokens.

    An answer is cut off where it is longer than all that are expected: it is wrong then.
    """
    asked = [row.question() for row in rows]
    prompts = [render_prompt(messages, tokenizer) for messages, _ in asked]
    lengths = [len(content_ids(Message("assistant", answer), tokenizer)) + 1 for _, answer in asked]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    found: dict[int, str] = {}
    chunks = [order[i : i + GENERATED_TOGETHER] for i in range(0, len(order), GENERATED_TOGETHER)]
    while chunks:
        chunk = chunks.pop()
        longest = max(lengths[i] for i in chunk)
        room = model.config.max_position_embeddings - max(len(prompts[i]) for i in chunk)
        if longest > room and len(chunk) > 1:
            chunks += [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
            continue
        written = generate_batch(
            model,
            [prompts[i] for i in chunk],
            max_tokens=longest,
            sampler=Sampler(temperature=0.0),
            generator=Generator(0),
            vocab_size=tokenizer.vocab_size,
            stop_ids=[end_id(tokenizer)],
        )
        found |= {i: tokenizer.decode(ids) for i, ids in zip(chunk, written, strict=True)}
    return [found[i] for i in range(len(rows))]


@contextlib.contextmanager
def noisy_embeddings(model: nn.Module, alpha: float) -> Iterator[None]:
    """Within the block the embeddings of a row of T tokens have noise: uniform, within
    alpha / sqrt(T width). Source: NEFTune, algorithm 1.
    """
    if alpha == 0:
        yield
        return
    embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))
    plain = embedding.forward

    def forward(ids: mt.Tensor) -> mt.Tensor:
        x = plain(ids)
        bound = alpha / math.sqrt(x.shape[-2] * x.shape[-1])
        return x + (mt.rand(*x.shape, dtype=x.dtype).to(x.device) * 2 - 1) * bound

    embedding.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del embedding.forward
