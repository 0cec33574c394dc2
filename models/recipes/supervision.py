"""What the steps of a completion are worth, one by one: by a function, or by a reward model.

A step ends with a token whose text ends with `step_end`, and the last one where the completion
does. A score is that of the text up to there; credit for the last step goes to the token that ends
the completion, so that ending is learnt too. Nothing but the end is one step, which is empty. Words
of a tool end no step. Source: Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), section 4.1.3;
the model: Lightman et al. 2023, "Let's verify step by step" (arXiv 2305.20050).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

import minitorch as mt
from minitorch.errors import ConfigError
from minitorch.tokenizers import Tokenizer
from models.chat import end_id
from models.recipes.prompts import Prompt, columns_of
from models.reward_model import RewardModel
from models.rollouts import Rollout

Scores = dict[int, float]
"""The score of each step of a completion, by the place of the token that is given credit for it."""

Judge = Callable[[Sequence[Prompt], Sequence[Rollout], Sequence[Sequence[int]]], list[list[float]]]
"""Prompts, their completions, and how many tokens each has at the ends of its steps, to scores."""


class Supervision:
    """Calls give the scores of completions' steps. Raises ConfigError where no token ends one."""

    def __init__(self, judge: Judge, tokenizer: Tokenizer, step_end: str):
        self.judge, self.end = judge, end_id(tokenizer)
        words = ((i, tokenizer.decode([i])) for i in range(tokenizer.vocab_size))
        self.ends = {i for i, word in words if i != self.end and word.endswith(step_end)}
        if not (step_end and self.ends):
            raise ConfigError(
                f"step_end: expected the end of a token of the vocabulary; got {step_end!r}"
            )

    def __call__(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[Scores]:
        """The scores of completions, one of each prompt."""
        stops = [self.stops(rollout) for rollout in rollouts]
        found = self.judge(prompts, rollouts, stops)
        last = [len(rollout.completion_ids) - 1 for rollout in rollouts]
        return [
            dict(zip([*(stop - 1 for stop in own[:-1]), end], scores, strict=True))
            for own, end, scores in zip(stops, last, found, strict=True)
        ]

    def stops(self, rollout: Rollout) -> list[int]:
        """How many tokens the completion has at the end of each step, its end token aside."""
        ids = rollout.completion_ids
        count = len(ids) - bool(ids and ids[-1] == self.end)
        found = [i + 1 for i in range(count) if rollout.mask[i] and ids[i] in self.ends]
        return found if found and found[-1] == count else [*found, count]


def by_function(function: Callable[..., Any], tokenizer: Tokenizer) -> Judge:
    """function(prompts, steps, **columns) -> for each completion a list of as many numbers.

    steps: the texts of a completion's steps. columns: as of rewards. Raises ConfigError, naming the
    function, where it raises, or gives something else.
    """
    name = getattr(function, "__name__", "process_reward")

    def judge(
        prompts: Sequence[Prompt], rollouts: Sequence[Rollout], stops: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        steps = [
            [tokenizer.decode(rollout.completion_ids[a:b]) for a, b in pairwise([0, *own])]
            for rollout, own in zip(rollouts, stops, strict=True)
        ]
        columns = {**columns_of(prompts), "finished": [r.finished for r in rollouts]}
        try:
            found = function([prompt.text for prompt in prompts], steps, **columns)
        except Exception as error:
            raise ConfigError(f"{name}: raised {type(error).__name__}: {error}") from error
        return [_checked(name, *pair) for pair in _paired(name, found, steps)]

    return judge


def by_process_model(model: RewardModel) -> Judge:
    """The probability that a step is right, as `minitorch reward --kind process` has learnt it."""

    def judge(
        prompts: Sequence[Prompt], rollouts: Sequence[Rollout], stops: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        longest = max(len(rollout.ids) for rollout in rollouts)
        ids = np.array([[*r.ids, *[0] * (longest - len(r.ids))] for r in rollouts], np.int64)
        model.eval()
        with mt.no_grad():
            right = model(ids)[0].sigmoid().numpy()
        return [
            [float(right[i, len(rollout.prompt_ids) + stop - 1]) for stop in own]
            for i, (rollout, own) in enumerate(zip(rollouts, stops, strict=True))
        ]

    return judge


def _paired(name: str, found: Any, steps: list[list[str]]) -> list[tuple[Any, list[str]]]:
    if not isinstance(found, list | tuple | np.ndarray) or len(found) != len(steps):
        got = f"{len(found)}" if hasattr(found, "__len__") else type(found).__name__
        raise ConfigError(
            f"{name}: expected a list of {len(steps)} lists, one for each completion; got {got}"
        )
    return list(zip(found, steps))


def _checked(name: str, scores: Any, steps: list[str]) -> list[float]:
    """The scores of one completion as floats, if they are as many numbers as it has steps."""
    try:
        values = np.array(scores, np.float64)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if values.shape != (len(steps),) or not np.isfinite(values).all():
        raise ConfigError(
            f"{name}: expected {len(steps)} finite numbers, one for each of the steps "
            f"{steps!r:.80}; got {scores!r:.80}"
        )
    return values.tolist()
