"""A reward model on preferences that are drawn: how near it comes to the best that can be.

A word's hidden score is the sum of its letters' values. Of two words one is preferred with the
probability that Bradley and Terry's model gives to their scores,

    p = sigmoid(score(a) - score(b))

so that nobody, who knows the scores too, can say more than max(p, 1 - p): on average the Bayes
rate. Expected: the reward model is within two points of it on pairs that it has not seen. Control:
the same preferences turned round, from which it learns the opposite: what it says comes from them
and not from the words. A coin instead of preferences is shown too, and no control: its model is a
random direction among few letters, which may lie along the hidden score or against it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import track

from minitorch.random import Generator
from models.chat import Message, render
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.experiments.words import LETTERS, PROMPT, draw_word, write_rows, write_untrained
from models.recipes.reward import Reward, RewardConfig


@dataclass(frozen=True)
class Setup:
    """pairs: to learn from; asked: to measure on. spread: the values' standard deviation."""

    layers: int = 1
    width: int = 32
    pairs: int = 8000
    asked: int = 4000
    spread: float = 1.0
    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 3e-3


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """The share of new pairs that each judge orders as the one who draws would."""
    random = Generator(seed).draw()
    values = dict(zip(LETTERS, random.normal(0, setup.spread, len(LETTERS)), strict=True))
    asked = [(draw_word(random), draw_word(random)) for _ in range(setup.asked)]
    better = np.array([_probability(values, *pair) for pair in asked])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_untrained(Path(folder), layers=setup.layers, width=setup.width, seed=seed)
        turned = {letter: -value for letter, value in values.items()}
        for name, behind in (("preferences", values), ("turned round", turned), ("coins", {})):
            data = write_rows(
                Path(folder) / f"{name}.jsonl",
                (_pair(random, behind) for _ in range(setup.pairs)),
            )
            recipe = Reward(
                RewardConfig(
                    model=folder,
                    data=data,
                    steps=setup.steps,
                    batch_size=setup.batch_size,
                    learning_rate=setup.learning_rate,
                    seed=seed,
                )
            )
            for _ in track(range(setup.steps), name, console=console):
                recipe.train_step()
            scores = _scores(recipe, [word for pair in asked for word in pair]).reshape(-1, 2)
            first = scores[:, 0] > scores[:, 1]
            rows.append(
                {
                    "variant": name,
                    "right": float(np.where(first, better, 1 - better).mean()),
                    "Bayes rate": float(np.maximum(better, 1 - better).mean()),
                    "mean score": float(scores.mean()),
                    "correlation with the hidden score": float(
                        np.corrcoef(scores[:, 0], [_score(values, a) for a, _ in asked])[0, 1]
                    ),
                }
            )
    return rows


def _score(values: dict[str, float], word: str) -> float:
    return sum(values.get(letter, 0.0) for letter in word)


def _probability(values: dict[str, float], one: str, other: str) -> float:
    return float(1 / (1 + np.exp(_score(values, other) - _score(values, one))))


def _pair(random: np.random.Generator, values: dict[str, float]) -> Row:
    """A row of two words, the preferred one drawn."""
    one = other = draw_word(random)
    while other == one:
        other = draw_word(random)
    if random.random() > _probability(values, one, other):
        one, other = other, one
    return {"prompt": PROMPT, "chosen": one, "rejected": other}


def _scores(recipe: Reward, words: Sequence[str]) -> np.ndarray:
    texts = [
        render([Message("user", PROMPT), Message("assistant", word)], recipe.tokenizer).ids
        for word in words
    ]
    return recipe.model.rewards(texts)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of the share that is right."""
    found = by_name(rows)
    learnt, turned = found["preferences"], found["turned round"]
    return [
        Claim("below the Bayes rate", learnt["Bayes rate"] - learnt["right"], "<=", 0.02),
        Claim("right, with preferences turned round", turned["right"], "<=", 0.5, control=True),
        Claim("correlation with the hidden score", learnt[CORRELATION], ">=", 0.95),
    ]


CORRELATION = "correlation with the hidden score"


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Bars: the share that is right."""
    axes.bar([row["variant"] for row in rows], [row["right"] for row in rows], 0.5)
    axes.axhline(rows[0]["Bayes rate"], color="grey", linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1)
    axes.set_ylabel("pairs ordered right; dotted: Bayes rate")


EXPERIMENT = Experiment(
    name="reward_model",
    question="How near does a reward model come to the best that noisy preferences allow?",
    setup=Setup(),
    quick=Setup(width=16, pairs=20, asked=20, steps=2, batch_size=4),
    run=run,
    claims=claims,
    draw=draw,
)
