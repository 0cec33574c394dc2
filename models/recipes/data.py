"""Rows of data: read from JSONL, turned into conversations and pairs, batched, packed.

A file has one JSON object to a line. What a row means is said by its keys:

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    {"prompt": "Hi", "completion": "Hello"}                  one question and its answer
    {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}    a preference

where a prompt may also be a list of messages, and so may both answers with all before them. Other
keys are kept: they are columns for a reward. What is wrong with a row is said with its file and
line.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minitorch.errors import ConfigError, DataError
from minitorch.random import Generator
from minitorch.tokenizers import Tokenizer
from models.chat import Message, render, render_prompt

IGNORED = -100  # a target that no loss counts


@dataclass(frozen=True)
class Row:
    """One object of a file. where: "file:line", for errors."""

    where: str
    fields: dict[str, Any]

    def text(self, key: str) -> str:
        """The text under a key; DataError where there is none, or an empty one."""
        value = self.fields.get(key)
        if not isinstance(value, str) or not value:
            raise DataError(
                f"{self.where}: expected a text under {key!r}; got "
                f"{value!r}. The keys are {', '.join(self.fields)}"
            )
        return value

    def number(self, key: str, default: float) -> float:
        """The number under a key, or the default where the key is absent."""
        value = self.fields.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise DataError(f"{self.where}: expected a number under {key!r}; got {value!r}")
        return float(value)

    def prompt(self) -> list[Message]:
        """The messages before the answer."""
        if isinstance(self.fields.get("prompt"), list):
            return self._messages("prompt")
        return [Message("user", self.text("prompt"))]

    def conversation(self, completion: str = "completion") -> list[Message]:
        """The messages, or the prompt and the answer under the key `completion`."""
        if "messages" in self.fields:
            messages = self._messages("messages")
            if not any(m.role == "assistant" and m.content for m in messages):
                raise DataError(f"{self.where}: expected an answer of the assistant; got none")
            return messages
        return [*self.prompt(), Message("assistant", self.text(completion))]

    def question(self) -> tuple[list[Message], str]:
        """The conversation up to its last answer, and that answer."""
        messages = self.conversation()
        last = max(i for i, message in enumerate(messages) if message.role == "assistant")
        return messages[:last], messages[last].content

    def pair(self) -> tuple[list[Message], list[Message]]:
        """The conversation that was preferred, and the other, each with the answer at its end.

        Under "chosen" and "rejected" are answers, or whole conversations. Raises DataError where
        the two are the same, or part before their last answers.
        """
        chosen, rejected = (self._ending_in(key) for key in ("chosen", "rejected"))
        if chosen[:-1] != rejected[:-1]:
            raise DataError(
                f"{self.where}: expected two answers to one question; got two questions"
            )
        if chosen == rejected:
            raise DataError(f"{self.where}: expected two answers; chosen and rejected are the same")
        return chosen, rejected

    def _ending_in(self, key: str) -> list[Message]:
        if not isinstance(self.fields.get(key), list):
            return [*self.prompt(), Message("assistant", self.text(key))]
        messages = self._messages(key)
        if messages[-1].role != "assistant" or not messages[-1].content:
            raise DataError(f"{self.where}: expected an answer at the end of {key!r}; got none")
        return messages

    def _messages(self, key: str) -> list[Message]:
        value = self.fields[key]
        if not isinstance(value, list) or not value:
            raise DataError(f"{self.where}: expected a list of messages under {key!r}")
        found = []
        for item in value:
            if not isinstance(item, dict) or item.keys() < {"role", "content"}:
                raise DataError(
                    f'{self.where}: expected messages like {{"role": "user", "content": "Hi"}}; '
                    f"got {item!r:.80}"
                )
            try:
                found.append(Message(item["role"], item["content"]))
            except DataError as error:
                raise DataError(f"{self.where}: {error}") from None
        return found


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a JSONL file; DataError where it is missing or empty, or a line is no object."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"data: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"data: {path} is not UTF-8: {error.reason}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not a line of JSON: {error}") from None
        if not isinstance(fields, dict):
            raise DataError(f"{where}: expected an object; got {line:.80}")
        rows.append(Row(where, fields))
    if not rows:
        raise DataError(f"data: {path} holds no rows")
    return rows


def split_rows(rows: Sequence[Row], val_fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(training, validation), drawn at random, each in the order of the file; neither is empty."""
    count = min(max(1, round(len(rows) * val_fraction)), len(rows) - 1)
    if count < 1:
        raise DataError(f"data: expected at least 2 rows, one of them to validate; got {len(rows)}")
    kept = set(Generator(seed).draw().permutation(len(rows))[:count].tolist())
    training = [row for i, row in enumerate(rows) if i not in kept]
    return training, [rows[i] for i in sorted(kept)]


def with_replay(new: Sequence[Row], earlier: Sequence[Row], share: float, seed: int) -> list[Row]:
    """The new rows, and of the earlier as many, drawn at random, as are `share` of the whole.

    All of the earlier where there are fewer.
    """
    count = round(len(new) * share / (1 - share))
    drawn = Generator(seed).draw().permutation(len(earlier))[:count]
    return [*new, *(earlier[i] for i in sorted(drawn.tolist()))]


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether it is to be predicted: (tokens,) both."""

    ids: np.ndarray
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def counted(self) -> int:
        """How many tokens are predicted. The first cannot be: nothing comes before it."""
        return int(self.mask[1:].sum())


def example(
    row: Row,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    context: int,
    *,
    last_only: bool = False,
) -> Example:
    """A conversation of a row as tokens.

    context: the most tokens that the model reads. Raises DataError, naming the row, where there are
    more, and for what the vocabulary cannot express.
    """
    try:
        rendered = render(messages, tokenizer, last_only=last_only)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None
    check_length(row, len(rendered.ids), context)
    return Example(np.array(rendered.ids), np.array(rendered.mask))


def prompt_ids(row: Row, tokenizer: Tokenizer, context: int) -> list[int]:
    """The tokens of a row's prompt, up to where the answer begins; errors as of `example`."""
    try:
        ids = render_prompt(row.prompt(), tokenizer)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None
    check_length(row, len(ids), context)
    return ids


def check_length(row: Row, length: int, context: int) -> None:
    """DataError where a row is longer than the model's context."""
    if length > context:
        raise DataError(
            f"{row.where}: {length} tokens are more than the model's context of {context}; shorten "
            "the row or leave it out"
        )


@dataclass(frozen=True)
class Batch:
    """Examples in rows. All (batch, time) int64, padded on the right.

    targets: the token after each of ids, or IGNORED. segments: the number of the example that a
    token is of, from 1, in each row; 0 is padding.
    """

    ids: np.ndarray
    targets: np.ndarray
    segments: np.ndarray

    @property
    def counted(self) -> int:
        """How many targets there are."""
        return int((self.targets != IGNORED).sum())

    @property
    def packed(self) -> bool:
        """Whether a row holds several examples."""
        return bool((self.segments > 1).any())


def collate(rows: Sequence[Sequence[Example]]) -> Batch:
    """A batch of rows, each of one example or of several one after another."""
    time = max(sum(map(len, row)) for row in rows)
    ids, segments = np.zeros((2, len(rows), time), np.int64)
    targets = np.full((len(rows), time), IGNORED)
    for i, row in enumerate(rows):
        at = 0
        for number, item in enumerate(row, 1):
            end = at + len(item)
            ids[i, at:end], segments[i, at:end] = item.ids, number
            following = np.where(item.mask[1:], item.ids[1:], IGNORED)
            targets[i, at : end - 1] = following
            at = end
    return Batch(ids, targets, segments)


def pack(examples: Sequence[Example], length: int) -> list[list[Example]]:
    """Rows of at most `length` tokens, as few as putting the longest first into the first gives."""
    rows: list[list[Example]] = []
    room: list[int] = []
    for item in sorted(examples, key=len, reverse=True):
        fitting = (i for i, left in enumerate(room) if left >= len(item))
        at = next(fitting, len(rows))
        if at == len(rows):
            rows.append([])
            room.append(length)
        rows[at].append(item)
        room[at] -= len(item)
    return rows


class Shuffled:
    """Endless batches of indices below `count`: every epoch all, in an order of its own.

    The order of an epoch is a function of (seed, epoch); a batch may end one and begin the next.
    The state is three integers, so that going on needs no replay.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        if count < 1:
            raise DataError("data: expected at least one row to learn from; got none")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch = self.position = 0
        self._indices = self._order()

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        chosen: list[int] = []
        while len(chosen) < self.batch_size:
            if self.position == self.count:
                self.epoch, self.position = self.epoch + 1, 0
                self._indices = self._order()
            end = self.position + self.batch_size - len(chosen)
            chosen += self._indices[self.position : end].tolist()
            self.position = min(end, self.count)
        return chosen

    def _order(self) -> np.ndarray:
        generator = Generator(self.seed)
        generator.offset = self.epoch
        return generator.draw().permutation(self.count)

    def state_dict(self) -> dict[str, int]:
        """Where it stands."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state that `state_dict` gave, over as many indices."""
        if not 0 <= state["position"] <= self.count:
            raise ConfigError(f"data: the state {state} does not fit {self.count} rows")
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._indices = self._order()


def fingerprint(rows: Iterable[Row]) -> dict[str, int]:
    """Two sets of rows that differ differ in this."""
    count = crc = 0
    for row in rows:
        count += 1
        crc = zlib.crc32(json.dumps(row.fields, sort_keys=True).encode(), crc)
    return {"rows": count, "crc32": crc}
