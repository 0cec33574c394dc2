"""Requests as prompts, and what a model's answers to them are like: measured, and compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitorch.kernels.philox import stream
from minitorch.tokenizers import Tokenizer
from models.chat import Message, render_prompt
from models.environments.requests import (
    ASKED,
    GAP,
    HIDDEN,
    KINDS,
    LONGEST_ANSWER,
    ORDINARY,
    STYLES,
    Request,
    draw_request,
    helpfulness,
    is_safe,
)
from models.environments.tasks import Row
from models.pipelines.written import Written, write
from models.recipes.prompts import KEY, VALIDATION, Prompt

MAX_TOKENS = LONGEST_ANSWER + 1
REQUEST = "request"
"""The column that holds the request of a prompt."""

MEASURED = 1 << 41
"""Requests that are measured are drawn with numbers from here."""

RIGHT, GAPS = "right", "gaps right"
ASKED_UNSAFE, HIDDEN_UNSAFE = "unsafe, asked", "unsafe, hidden"
FIRST, LATE = "kept at first", "kept late"

MARGINS = ((0.9, 3.0), (0.6, 1.0), (0.3, 2 / 3), (0.1, 1 / 3))
"""By how much one answer is better, at least, and the margin of that; below them all it is 0."""


class Requests:
    """Requests of one kind, or of all. A source of prompts."""

    def __init__(self, tokenizer: Tokenizer, seed: int, kind: str | None = None):
        self.tokenizer, self.seed, self.kind = tokenizer, seed, kind
        self.fingerprint = f"{kind or 'all'} requests"

    def take(self, position: int, count: int) -> list[Prompt]:
        """So many prompts from a position on."""
        return [
            prompt_of(self._drawn(number), self.tokenizer)
            for number in range(position, position + count)
        ]

    def validation(self, count: int) -> list[Prompt]:
        """So many others, always the same."""
        return self.take(VALIDATION, count)

    def _drawn(self, number: int) -> Request:
        return draw_request(stream(self.seed + KEY, number), self.kind)


def prompt_of(request: Request, tokenizer: Tokenizer, earlier: Sequence[Message] = ()) -> Prompt:
    """The prompt of a request, after what was said earlier."""
    ids = render_prompt([*earlier, Message("user", request.text)], tokenizer)
    return Prompt(request.text, tuple(ids), {REQUEST: request})


def measured(folder: Path, seed: int, *, count: int, tokenizer: Tokenizer) -> dict[str, float]:
    """Shares of a model's answers to single requests, so many of each kind, at temperature 1.

    right: of ordinary requests, as wanted. gaps right: of the others, the best safe answer. unsafe,
    asked or hidden: with the forbidden letter.
    """
    prompts = [p for kind in KINDS for p in Requests(tokenizer, seed, kind).take(MEASURED, count)]
    written = write(folder, prompts, max_tokens=MAX_TOKENS, seed=seed + 1)
    best = np.array([is_best(one) for one in written]).reshape(len(KINDS), count)
    unsafe = np.array([not is_safe(one.text) for one in written]).reshape(len(KINDS), count)
    ordinary, asked, hidden = map(KINDS.index, (ORDINARY, ASKED, HIDDEN))
    return {
        RIGHT: float(best[ordinary].mean()),
        GAPS: float(best[[asked, hidden]].mean()),
        ASKED_UNSAFE: float(unsafe[asked].mean()),
        HIDDEN_UNSAFE: float(unsafe[hidden].mean()),
    }


def is_best(written: Written) -> bool:
    """Whether it is the most helpful of the safe answers."""
    return written.text == written.prompt.columns[REQUEST].safe


def measured_dialogues(
    folder: Path, seed: int, *, count: int, turns: int, late: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """How an instruction is kept that stands before the first of several questions.

    The model goes on from its own answers, at temperature 1. kept at first, kept late: shares of
    answers that follow it, to the first question and from question `late` on; "kept": for every
    question.
    """
    random = stream(seed, 7)
    styles = [str(random.choice(list(STYLES))) for _ in range(count)]
    said = [[Message("system", style)] for style in styles]
    kept = []
    for _ in range(turns):
        requests = [draw_request(random, ORDINARY) for _ in range(count)]
        prompts = [prompt_of(r, tokenizer, before) for r, before in zip(requests, said)]
        answers = write(folder, prompts, max_tokens=MAX_TOKENS, seed=seed + 1)
        follows = [STYLES[s].followed(a.text) for s, a in zip(styles, answers, strict=True)]
        kept.append(float(np.mean(follows)))
        for messages, request, answer in zip(said, requests, answers):
            messages += [Message("user", request.text), Message("assistant", heard(answer.text))]
    return {FIRST: kept[0], LATE: float(np.mean(kept[late - 1 :])), "kept": kept}


def is_plain(text: str) -> bool:
    """Whether it says anything, and nothing that only a template may write."""
    return bool(text) and "<|" not in text


def heard(text: str) -> str:
    """What goes into a dialogue: the text, or a gap where it is not plain."""
    return text if is_plain(text) else GAP


def more_helpful(one: Written, other: Written) -> Row | None:
    """Two answers to one request as a row of a comparison; None where neither is more helpful."""
    return compared(one, other, *(_helpful(answer) for answer in (one, other)))


def safer(one: Written, other: Written) -> Row | None:
    """The safe answer is preferred; of two that are alike in this, the more helpful."""
    return compared(one, other, *(2 * is_safe(x.text) + _helpful(x) for x in (one, other)))


def _helpful(written: Written) -> float:
    return helpfulness(written.text, written.prompt.columns[REQUEST].wanted)


def compared(one: Written, other: Written, a: float, b: float) -> Row | None:
    """A row of a comparison of answers that are worth a and b; None where these are the same."""
    if a == b or not (is_plain(one.text) and is_plain(other.text)):
        return None
    chosen, rejected = (one, other) if a > b else (other, one)
    margin = next((margin for least, margin in MARGINS if abs(a - b) >= least), 0.0)
    return {
        "prompt": one.prompt.text,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "margin": margin,
    }
