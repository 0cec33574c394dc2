"""Where prompts come from, and how what is written after them is judged.

A source gives rows by their number: of a task, row n is drawn with the n-th stream of the seed; of
a file, they come in an order that is new in every epoch. So the position in it is one integer.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from minitorch.errors import ConfigError, DataError
from minitorch.kernels.philox import stream
from minitorch.tokenizers import Tokenizer
from models.chat import Message, render_prompt
from models.environments.rewards import Reward
from models.environments.tasks import TASKS, Task
from models.options import unknown
from models.recipes.data import Row, fingerprint, read_rows, split_rows

VALIDATION = 1 << 64
"""Rows from here on are those of validation."""

KEY = 1 << 64
"""Added to the seed: the streams that rows are drawn with are not those of rollouts."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as ids, and the columns that rewards read."""

    text: str
    ids: tuple[int, ...]
    columns: dict[str, Any]


class Source(Protocol):
    """Prompts without end, and some that are never learnt from."""

    fingerprint: Any

    def take(self, position: int, count: int) -> list[Prompt]:
        """So many from a position on."""

    def validation(self, count: int) -> list[Prompt]:
        """Up to so many, always the same."""


class TaskSource:
    """The rows of a task."""

    def __init__(self, task: Task, tokenizer: Tokenizer, seed: int):
        self.task, self.tokenizer, self.seed = task, tokenizer, seed
        self.fingerprint = task.name

    def take(self, position: int, count: int) -> list[Prompt]:
        return [self._drawn(number) for number in range(position, position + count)]

    def validation(self, count: int) -> list[Prompt]:
        return self.take(VALIDATION, count)

    def _drawn(self, number: int) -> Prompt:
        row = self.task.draw(stream(self.seed + KEY, number))
        columns = {name: value for name, value in row.items() if name != "prompt"}
        ids = render_prompt([Message("user", row["prompt"])], self.tokenizer)
        return Prompt(row["prompt"], tuple(ids), columns)


class FileSource:
    """The rows of a JSONL file, a share of them for validation. All have the same keys.

    longest: the most tokens of a prompt, so that the completion has room. Its length is the number
    of rows to learn from. Raises DataError, naming the row, for a longer prompt, and for keys that
    differ.
    """

    def __init__(
        self, path: Path, tokenizer: Tokenizer, val_fraction: float, seed: int, longest: int
    ):
        rows = read_rows(path)
        for row in rows:
            if row.fields.keys() != rows[0].fields.keys():
                other = sorted(row.fields.keys() ^ rows[0].fields.keys())
                raise DataError(
                    f"{row.where}: expected the keys of the first row; it differs in "
                    f"{', '.join(other)}. Give every row the same, or leave it out"
                )
        self.fingerprint = fingerprint(rows)
        self.seed = seed
        self._order: tuple[int, Any] | None = None
        self._training, self._validation = (
            [_from_row(row, tokenizer, longest) for row in part]
            for part in split_rows(rows, val_fraction, seed)
        )

    def __len__(self) -> int:
        return len(self._training)

    def take(self, position: int, count: int) -> list[Prompt]:
        return [self._at(number) for number in range(position, position + count)]

    def validation(self, count: int) -> list[Prompt]:
        return self._validation[:count]

    def _at(self, number: int) -> Prompt:
        epoch, place = divmod(number, len(self._training))
        if self._order is None or self._order[0] != epoch:
            order = stream(self.seed + KEY, epoch).permutation(len(self._training))
            self._order = epoch, order
        return self._training[self._order[1][place]]


def _from_row(row: Row, tokenizer: Tokenizer, longest: int) -> Prompt:
    messages = row.prompt()
    columns = {name: value for name, value in row.fields.items() if name != "prompt"}
    try:
        ids = render_prompt(messages, tokenizer)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None
    if len(ids) > longest:
        raise DataError(
            f"{row.where}: expected a prompt of at most {longest} tokens, so that an answer fits "
            f"into the model's context; got {len(ids)}. Shorten it, or lower max_tokens"
        )
    return Prompt("\n".join(message.content for message in messages), tuple(ids), columns)


def find_task(name: str) -> Task:
    """The task of a name; ConfigError where there is none."""
    if name not in TASKS:
        raise ConfigError(f"task: {unknown(name, TASKS)}")
    return TASKS[name]()


def load_rewards(text: str) -> list[tuple[Reward, float]]:
    """Rewards with weights from "FILE.py:function[=weight], ..."; ConfigError for what is none."""
    return [_load_reward(part.strip()) for part in text.split(",") if part.strip()]


def _load_reward(text: str) -> tuple[Reward, float]:
    where, _, weight = text.partition("=")
    try:
        factor = float(weight) if weight else 1.0
    except ValueError:
        raise ConfigError(f"reward: expected a number as a weight; got {weight!r}") from None
    return load_function("reward", where), factor


def load_function(setting: str, text: str) -> Callable[..., Any]:
    """The function from "FILE.py:function"; ConfigError, naming the setting, for what is none."""
    file, colon, name = text.rpartition(":")
    if not (colon and file and name):
        raise ConfigError(
            f"{setting}: expected FILE.py:function, for example rewards.py:is_short; got {text!r}"
        )
    function = getattr(_load_module(setting, Path(file)), name, None)
    if not callable(function):
        raise ConfigError(f"{setting}: {file} has no function {name!r}")
    return function


def _load_module(setting: str, path: Path) -> Any:
    name = f"reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{setting}: expected a Python file; got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{setting}: {path}: {type(error).__name__}: {error}") from error
    return module


def columns_of(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The columns of several prompts, as rewards take them."""
    return {name: [prompt.columns[name] for prompt in prompts] for name in prompts[0].columns}
