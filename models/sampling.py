"""From logits to a drawn token: penalties, temperature, truncation, softmax, draw, in that order.

Each step is a pure function of logits, (rows, vocabulary) in float64, in which -inf means "never".
A truncation keeps the most probable token of every row, so no row can lose all its tokens.

    bias → penalties → temperature → top-k → top-p → min-p → softmax → draw

Sources: repetition penalty, CTRL (Keskar et al. 2019, section 4.1); top-k, Fan et al. 2018; top-p
(nucleus), Holtzman et al. 2020; min-p, Nguyen et al. 2024; presence and frequency penalties, the
OpenAI API. The order, and what each one does with ties, is that of Hugging Face's transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from minitorch.errors import ConfigError, ShapeError
from minitorch.random import Generator, default_generator

NEVER = -np.inf


def repetition_penalty(
    logits: np.ndarray, seen: Sequence[Sequence[int]], penalty: float
) -> np.ndarray:
    """Positive logits of tokens already seen are divided by penalty, negative ones multiplied.

    seen: for each row the token ids of prompt and continuation; how often does not matter.
    """
    out = logits.copy()
    for row, tokens in zip(out, seen):
        ids = np.unique(np.asarray(tokens, dtype=np.int64))
        row[ids] = np.where(row[ids] > 0, row[ids] / penalty, row[ids] * penalty)
    return out


def count_penalty(
    logits: np.ndarray, generated: Sequence[Sequence[int]], presence: float, frequency: float
) -> np.ndarray:
    """logit - presence·[count > 0] - frequency·count, counted over the generated tokens alone."""
    out = logits.copy()
    for row, tokens in zip(out, generated):
        ids, counts = np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True)
        row[ids] -= presence + frequency * counts
    return out


def temperature(logits: np.ndarray, value: float) -> np.ndarray:
    """logits / value. At 0 only the greatest logit of each row stays, the first one in a tie."""
    if value == 0:
        best = logits.argmax(axis=1, keepdims=True)
        return np.where(np.arange(logits.shape[1]) == best, logits, NEVER)
    with np.errstate(over="ignore"):  # far below the greatest is as good as -inf
        return (logits - logits.max(axis=1, keepdims=True)) / value


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """The k greatest logits of each row stay, and whatever ties with the least of them."""
    if k >= logits.shape[1]:
        return logits
    least = np.partition(logits, -k, axis=1)[:, -k, None]
    return np.where(logits < least, NEVER, logits)


def top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """The fewest tokens whose probabilities add up to p or more stay.

    A token stays where those more probable add up to less than p: the one that crosses p is in.
    """
    order = np.argsort(-logits, axis=1, kind="stable")
    probs = np.take_along_axis(softmax(logits), order, axis=1)
    before = np.cumsum(probs, axis=1) - probs
    before[:, 0] = 0.0
    keep = np.empty(logits.shape, dtype=bool)
    np.put_along_axis(keep, order, (before < p) | (np.arange(logits.shape[1]) == 0), axis=1)
    return np.where(keep, logits, NEVER)


def min_p(logits: np.ndarray, p: float) -> np.ndarray:
    """The tokens at least p times as probable as the most probable one stay."""
    if p == 0:
        return logits
    return np.where(logits < logits.max(axis=1, keepdims=True) + np.log(p), NEVER, logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x - max) / Σ exp(x - max), by row."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def draw(probs: np.ndarray, generator: Generator) -> np.ndarray:
    """One index per row: (rows,) int64."""
    return draw_at(probs, generator.draw().random(len(probs)))


def draw_at(probs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """One index per row, by inverting the cumulative sum at uniform, (rows,) in [0, 1).

    The first index whose cumulative sum exceeds u·total, so one of probability 0 is never drawn.
    """
    cumulative = np.cumsum(probs, axis=1)
    return (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The settings of the steps above; the defaults draw from the model's own distribution.

    temperature: 0 is greedy. top_k: 0 is all. logit_bias: token id → what is added to its logit;
    -inf forbids it. Raises ConfigError for a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("temperature", 0 <= self.temperature < np.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "more than 0"),
            ("presence_penalty", np.isfinite(self.presence_penalty), "a finite number"),
            ("frequency_penalty", np.isfinite(self.frequency_penalty), "a finite number"),
        ):
            if not valid:
                raise ConfigError(f"{name}: expected {expected}; got {getattr(self, name)}")

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the temperature is asked for."""
        return self == Sampler(temperature=self.temperature)

    @property
    def looks_back(self) -> bool:
        """Whether a draw depends on the tokens before, by a penalty."""
        return self.repetition_penalty != 1 or bool(self.presence_penalty or self.frequency_penalty)

    def probabilities(
        self,
        logits: np.ndarray,
        prompts: Sequence[Sequence[int]] = (),
        generated: Sequence[Sequence[int]] = (),
    ) -> np.ndarray:
        """The distribution that a token is drawn from: (rows, vocabulary) float64.

        logits: (rows, vocabulary). prompts, generated: the token ids of each row so far; they are
        read by the penalties alone. Raises ShapeError for other shapes, and ConfigError for a row
        with no token left or with NaN.
        """
        x = np.asarray(logits, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] == 0:
            raise ShapeError(f"sample: expected logits (rows, vocabulary); got shape {x.shape}")
        if self.logit_bias:
            x = x.copy()
            x[:, list(self.logit_bias)] += np.array(list(self.logit_bias.values()))
        highest = x.max(axis=1)
        for row in np.flatnonzero(~np.isfinite(highest)):
            raise ConfigError(
                f"sample: row {row} has no token to draw: its greatest logit is {highest[row]}; "
                "a bias forbids every token, or the model's weights are not finite"
            )
        if self.repetition_penalty != 1:
            seen = [[*p, *g] for p, g in zip(prompts, generated)]
            x = repetition_penalty(x, seen, self.repetition_penalty)
        if self.presence_penalty or self.frequency_penalty:
            x = count_penalty(x, generated, self.presence_penalty, self.frequency_penalty)
        x = temperature(x, self.temperature)
        if self.top_k:
            x = top_k(x, self.top_k)
        if self.top_p < 1:
            x = top_p(x, self.top_p)
        return softmax(min_p(x, self.min_p))

    def __call__(
        self,
        logits: np.ndarray,
        prompts: Sequence[Sequence[int]] = (),
        generated: Sequence[Sequence[int]] = (),
        *,
        generator: Generator = default_generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one token per row: (ids, the natural logarithm of the probability each one had)."""
        probs = self.probabilities(logits, prompts, generated)
        ids = draw(probs, generator)
        return ids, np.log(probs[np.arange(len(ids)), ids])
