"""What a run that learns from written answers leaves to be read: some of them, token by token.

The page is that of rollouts. Green is what the loss makes likelier, red what it makes rarer, and
the pointer shows what the model gives to a token now.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import minitorch as mt
from minitorch.tokenizers import Tokenizer
from models.families import Model
from models.recipes.data import Example, collate
from models.recipes.scoring import next_token_losses
from models.rollout_page import GREEN, RED, Legend, Record, record, write_both

LEGEND = Legend(
    {"log_probs": "log p", "advantages": "learnt"},
    "advantages",
    (GREEN, "to become likelier"),
    (RED, "rarer"),
    of="answer",
    reward="log p",
)
SHOWN = 16  # questions


def write_answers(
    out: Path, model: Model, tokenizer: Tokenizer, step: int, groups: Sequence[Sequence[Example]]
) -> None:
    """Write OUT/rollouts.jsonl and OUT/rollouts.html of the first groups.

    groups: the answers to one question each, first one to be learnt, then any to be avoided. Their
    reward is the log-probability that the model gives to the whole answer.
    """
    model.eval()
    rows = [
        _record(model, tokenizer, step, number, answer, 1.0 if place == 0 else -1.0)
        for number, group in enumerate(groups[:SHOWN])
        for place, answer in enumerate(group)
    ]
    write_both(out, rows, "answers", LEGEND)


def _record(
    model: Model, tokenizer: Tokenizer, step: int, group: int, answer: Example, sign: float
) -> Record:
    with mt.no_grad():
        losses, _ = next_token_losses(model, collate([[answer]]))
    start = max(int(np.argmax(answer.mask)), 1)
    mask = answer.mask[start:].astype(bool)
    log_probs = -losses.numpy()[0, start - 1 : len(answer) - 1]
    return record(
        step,
        group,
        tokenizer.decode(answer.ids[:start].tolist()),
        [tokenizer.decode([token]) for token in answer.ids[start:].tolist()],
        mask.tolist(),
        {"log_probs": log_probs.tolist(), "advantages": (sign * mask).tolist()},
        float(log_probs.sum()),
        {},
        True,
    )
