"""Prompts of several tasks in turn, each judged by the rewards of its own task."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from minitorch.kernels.philox import stream
from minitorch.tokenizers import Tokenizer
from models.chat import Message, render_prompt
from models.environments.rewards import Reward
from models.environments.tasks import Task
from models.recipes.prompts import KEY, VALIDATION, Prompt

TASK = "task"
"""The column that says which task a prompt is of."""


class Mixture:
    """The rows of several tasks, by their names, one after another. A source of prompts."""

    def __init__(self, tasks: Mapping[str, Task], tokenizer: Tokenizer, seed: int):
        self.tasks, self.tokenizer, self.seed = tasks, tokenizer, seed
        self.fingerprint = ", ".join(tasks)

    def take(self, position: int, count: int) -> list[Prompt]:
        """So many prompts from a position on."""
        return [self._drawn(number) for number in range(position, position + count)]

    def validation(self, count: int) -> list[Prompt]:
        """So many others, always the same."""
        return self.take(VALIDATION, count)

    def _drawn(self, number: int) -> Prompt:
        name = list(self.tasks)[number % len(self.tasks)]
        row = self.tasks[name].draw(stream(self.seed + KEY, number))
        ids = render_prompt([Message("user", row["prompt"])], self.tokenizer)
        return Prompt(row["prompt"], tuple(ids), {"answer": row["answer"], TASK: name})


def only(task: str, reward: Reward) -> Reward:
    """The reward for the rows of one task; to others it says nothing."""

    @functools.wraps(reward)
    def judged(
        prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        given = reward(prompts, completions, **columns)
        return [
            value if name == task else None
            for value, name in zip(given, columns[TASK], strict=True)
        ]

    judged.__name__ = f"{task}_{reward.__name__}"
    return judged
