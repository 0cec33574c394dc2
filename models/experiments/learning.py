"""How all experiments train: AdamW, a warm-up and a cosine, gradients clipped; and their text."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

import minitorch as mt
from minitorch import nn, optim
from minitorch.data import embedded_text, sequential_batches, split_tokens
from minitorch.tokenizers import CharTokenizer

WARMUP, CLIP, WEIGHT_DECAY = 0.05, 1.0, 0.01
"""The share of the steps, the norm of the gradient, AdamW's decay."""

Batches = Iterable[tuple[np.ndarray, np.ndarray]]


class Text(NamedTuple):
    """Characters of the embedded corpus as ids, (count,) each, and how many kinds there are."""

    train: np.ndarray
    validation: np.ndarray
    vocab_size: int


@functools.cache
def embedded(longest: int) -> Text:
    """The embedded corpus, a tenth of it for validation. longest: of the blocks to be cut."""
    text = embedded_text()
    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode_array(text)
    return Text(*split_tokens(ids, 0.1, longest), tokenizer.vocab_size)


def train(
    model: Any,
    batches: Batches,
    steps: int,
    learning_rate: float,
    console: Console,
    label: str,
    after_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """The losses of all steps, in nats; where one is not finite it is the last."""
    optimizer = optim.AdamW(model.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = optim.schedules.cosine(steps, math.ceil(WARMUP * steps))
    scheduler = optim.LRScheduler(optimizer, schedule)
    model.train()
    losses: list[float] = []
    stream = iter(batches)
    for _ in track(range(steps), label, console=console):
        optimizer.zero_grad()
        loss = model.loss(*map(mt.from_numpy, next(stream)))
        loss.backward()
        norm, scale = optim.clip_grad_scale(model.parameters(), CLIP)
        losses.append(loss.item())
        if not (math.isfinite(losses[-1]) and math.isfinite(norm)):
            return [*losses[:-1], math.nan]
        optimizer.step(scale)
        scheduler.step()
        after_step()
    return losses


def mean_loss(
    model: nn.Module, ids: np.ndarray, length: int, max_tokens: int | None = None
) -> float:
    """The mean over blocks of a length, in nats per token, the balance of experts left out.

    max_tokens: of about so many, spread evenly over the text.
    """
    model.eval()
    total = count = 0.0
    with mt.no_grad():
        for inputs, targets in sequential_batches(ids, 16, length, max_tokens):
            total += model.loss(*map(mt.from_numpy, (inputs, targets))).item() * targets.size  # type: ignore[attr-defined]
            count += targets.size
    return total / count
