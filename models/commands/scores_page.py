"""What a reward model leaves to be read: validation answers, and how it judges them.

Of a pair the answer that people preferred comes first. A score is that of the text up to a token;
a token is green where it raises the score and red where it lowers it. Only the last score of an
answer was ever learnt: the others tell what the model has seen until then. Of an answer in steps a
token has the score of its step, green where it says that the step is right.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import minitorch as mt
from minitorch.tokenizers import Tokenizer
from models.recipes.data import Example
from models.recipes.reward import Pair, Steps
from models.reward_model import RewardModel
from models.rollout_page import GREEN, RED, Legend, Record, record, write_both

PAIRS = Legend(
    {"scores": "score", "changes": "change"},
    "changes",
    (GREEN, "raises the score"),
    (RED, "lowers it"),
    of="answer",
    reward="score",
)
STEPS = Legend(
    {"scores": "score of the step", "labels": "label"},
    "scores",
    (GREEN, "judged right"),
    (RED, "judged wrong"),
    of="answer",
    reward="lowest score",
)
SHOWN = 16  # rows


def write_scores(
    out: Path,
    model: RewardModel,
    tokenizer: Tokenizer,
    step: int,
    items: Sequence[Pair | Steps],
) -> None:
    """Write OUT/rollouts.jsonl and OUT/rollouts.html of the first pairs, or answers in steps."""
    model.eval()
    rows: list[Record] = []
    for number, item in enumerate(items[:SHOWN]):
        if isinstance(item, Pair):
            rows += _pair(model, tokenizer, step, number, item)
        else:
            rows.append(_steps(model, tokenizer, step, number, item))
    write_both(out, rows, "scores", PAIRS if isinstance(items[0], Pair) else STEPS)


def _pair(
    model: RewardModel, tokenizer: Tokenizer, step: int, number: int, pair: Pair
) -> list[Record]:
    answers = (pair.chosen, pair.rejected)
    scores = [_scores(model, answer.ids) for answer in answers]
    gap = scores[0][-1] - scores[1][-1]
    right = 0.5 if gap == 0 else float(gap > 0)
    return [
        _answer(tokenizer, step, number, answer, found, {"preferred": preferred, "right": right})
        for answer, found, preferred in zip(answers, scores, (1.0, 0.0), strict=True)
    ]


def _answer(
    tokenizer: Tokenizer,
    step: int,
    number: int,
    answer: Example,
    scores: np.ndarray,
    verdict: dict[str, float | None],
) -> Record:
    start = max(int(np.argmax(answer.mask)), 1)
    return record(
        step,
        number,
        tokenizer.decode(answer.ids[:start].tolist()),
        [tokenizer.decode([token]) for token in answer.ids[start:].tolist()],
        [True] * (len(answer) - start),
        {"scores": scores[start:].tolist(), "changes": np.diff(scores)[start - 1 :].tolist()},
        scores[-1],
        verdict,
        True,
    )


def _steps(model: RewardModel, tokenizer: Tokenizer, step: int, number: int, item: Steps) -> Record:
    ends = np.flatnonzero(~np.isnan(item.labels))
    start, scores, labels = item.start, _scores(model, item.ids)[ends], item.labels[ends]
    lengths = np.diff(ends, prepend=start - 1)
    return record(
        step,
        number,
        tokenizer.decode(item.ids[:start].tolist()),
        [tokenizer.decode([token]) for token in item.ids[start:].tolist()],
        [True] * int(lengths.sum()),
        {
            name: np.repeat(x, lengths).tolist()
            for name, x in (("scores", scores), ("labels", labels))
        },
        scores.min(),
        {"steps right": float(np.mean((scores > 0) == (labels > 0.5)))},
        True,
    )


def _scores(model: RewardModel, ids: np.ndarray) -> np.ndarray:
    """The score at every token of a text: (tokens,)."""
    with mt.no_grad():
        return model(ids[None])[0].numpy()[0]
