"""Batches of (inputs, targets), in an order that is a function of three integers.

An epoch cuts the text into blocks, from a random offset below the block's length, and visits them
in random order, each once: every token is seen equally often, and the cuts differ from epoch to
epoch. Offset and order come from the counter-based generator at (seed, epoch), so the whole state
is (seed, epoch, position), and resuming needs no replay.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from minitorch.errors import ConfigError, DataError
from minitorch.random import Generator


def split_tokens(
    ids: np.ndarray, val_fraction: float, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation): the last val_fraction of the text is kept for validation.

    The end rather than random blocks, so that no validation block has neighbours in training.
    Raises DataError where either part is shorter than a block and its target.
    """
    count = round(len(ids) * val_fraction)
    train, val = ids[: len(ids) - count], ids[len(ids) - count :]
    for name, part in (("training", train), ("validation", val)):
        if len(part) < block_size + 1:
            raise DataError(
                f"data: the {name} part of the text has {len(part)} tokens, but a block of "
                f"{block_size} and its targets need {block_size + 1}; use more text, a smaller "
                "block_size, or another val_fraction"
            )
    return train, val


class BatchLoader:
    """An endless iterator over (inputs, targets), each int64 of shape (batch_size, block_size).

    targets[b, t] is the token after inputs[b, t]. ids: a vector of tokens, possibly mapped from a
    file. A batch may end one epoch and begin the next, so that all are full.
    """

    def __init__(self, ids: np.ndarray, batch_size: int, block_size: int, seed: int = 0):
        if batch_size < 1 or block_size < 1:
            raise ConfigError(
                f"loader: expected batch_size and block_size of at least 1; got {batch_size} and "
                f"{block_size}"
            )
        if len(ids) < block_size + 1:
            raise DataError(
                f"loader: a block of {block_size} tokens and its targets need {block_size + 1} "
                f"tokens; the text has {len(ids)}"
            )
        self.ids = ids
        self.batch_size = batch_size
        self.block_size = block_size
        self.seed = seed
        self.epoch = 0
        self.position = 0
        self._starts = self._order()

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        starts: list[int] = []
        while len(starts) < self.batch_size:
            if self.position == len(self._starts):
                self.epoch, self.position = self.epoch + 1, 0
                self._starts = self._order()
            wanted = self.batch_size - len(starts)
            chosen = self._starts[self.position : self.position + wanted]
            starts.extend(chosen)
            self.position += len(chosen)
        return _blocks(self.ids, np.array(starts), self.block_size)

    def _order(self) -> np.ndarray:
        """Where the blocks of this epoch start, in the order in which they are visited."""
        generator = Generator(self.seed)
        generator.offset = self.epoch
        draw = generator.draw()
        spare = len(self.ids) - 1 - self.block_size
        offset = draw.integers(min(self.block_size, spare + 1))
        starts = np.arange(offset, spare + 1, self.block_size)
        return draw.permutation(starts)

    def state_dict(self) -> dict[str, int]:
        """Where the iterator stands, as integers that JSON can hold."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave, on the same text and with the same sizes."""
        try:
            seed, epoch, position = (int(state[key]) for key in ("seed", "epoch", "position"))
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"loader: expected a state of integers seed, epoch and position; got {state!r}"
            ) from None
        before = self.seed, self.epoch
        self.seed, self.epoch = seed, epoch
        starts = self._order() if epoch >= 0 else self._starts
        if epoch < 0 or not 0 <= position <= len(starts):
            self.seed, self.epoch = before
            raise ConfigError(
                f"loader: the state {state!r} does not fit this text, which has {len(starts)} "
                "blocks to an epoch"
            )
        self._starts, self.position = starts, position


def sequential_batches(
    ids: np.ndarray, batch_size: int, block_size: int, max_tokens: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All blocks in order and once, for evaluation: (inputs, targets), the last batch smaller.

    max_tokens: take only about so many, in blocks spread evenly over the text.
    """
    starts = np.arange(0, len(ids) - block_size, block_size)
    if max_tokens is not None and max_tokens < len(starts) * block_size:
        count = max(1, max_tokens // block_size)
        starts = starts[np.linspace(0, len(starts) - 1, count).astype(int)]
    for i in range(0, len(starts), batch_size):
        yield _blocks(ids, starts[i : i + batch_size], block_size)


def _blocks(ids: np.ndarray, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    windows = np.asarray(ids[starts[:, None] + np.arange(length + 1)], np.int64)
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
