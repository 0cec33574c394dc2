"""Where the tokens of one step stand, from which follows what each of them may see.

A batch is a table of columns, and a column holds one token of every row, or padding. Before a
token's own column lie those that the cache holds. Each real token has a position, counted from 0
over the real tokens of its row; padding has -1. A key is visible to a query if

    0 <= position(key) <= position(query)  and  position(query) - position(key) < window

so that padding on the left, on the right or in the middle changes nothing for the row that has it.

A row may also be packed: it holds several texts, each with positions of its own, and a token sees
only those of its text.
"""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitorch.tensor import Tensor

PADDING = -1

LossOfParts = Callable[[list[Any], Tensor | None], Tensor | None]
"""A loss, or none, from what several blocks left for it and from `Context.counted`."""


@dataclass
class Context:
    """What the blocks of one step share.

    query: positions of the step's tokens, (1 or batch, time). key: the same of all columns, those
    in the cache first, (1 or batch, past + time). One row stands for all where none is padded.
    planned: how long the sequence will be, which dynamic scaling of positions depends on.
    segments: of packed rows, which text each token is of, (batch, time); there is no cache then.
    """

    query: np.ndarray
    key: np.ndarray
    planned: int
    device: str
    segments: np.ndarray | None = None
    _memo: dict[Hashable, Any] = field(default_factory=dict)
    _parts: dict[LossOfParts, list[Any]] = field(default_factory=dict)

    @functools.cached_property
    def padded(self) -> bool:
        """Whether columns alone do not say what is visible: rows differ, or have padding."""
        packed = self.segments is not None
        return packed or not _unpadded(self.key)

    def real(self) -> np.ndarray:
        """Which tokens of the step are no padding: (1 or batch, time) bool."""
        return self.query != PADDING

    def counted(self) -> Tensor | None:
        """`real` of all tokens in a row, (batch time,), for sums over them; None: all of them."""

        def make() -> Tensor | None:
            real = self.real()
            return None if real.all() else Tensor(real.reshape(-1)).to(self.device)

        return self.once("counted", make)

    def once(self, name: Hashable, compute: Callable[[], Any]) -> Any:
        """compute(), by the first block that asks for this name in this step."""
        if name not in self._memo:
            self._memo[name] = compute()
        return self._memo[name]

    def leave(self, part: Any, loss: LossOfParts) -> None:
        """Leave a part of a loss, which blocks share that name an equal one."""
        self._parts.setdefault(loss, []).append(part)

    def losses(self) -> list[Tensor]:
        """What blocks add to the loss of the step, such as the balance of routers."""
        real = self.counted()
        found = [loss(parts, real) for loss, parts in self._parts.items()]
        return [loss for loss in found if loss is not None]

    def distance(self, columns: int) -> np.ndarray:
        """position(query) - position(key) for the last columns: (1 or batch, time, columns)."""
        return self.query[:, :, None] - self.key[:, None, -columns:]

    def visible(self, columns: int, window: int | None = None) -> np.ndarray:
        """Which of the last columns each token may see: (1 or batch, time, columns) bool."""
        distance = self.distance(columns)
        seen = (distance >= 0) & (self.key[:, None, -columns:] != PADDING)
        if self.segments is not None:
            seen = seen & (self.segments[:, :, None] == self.segments[:, None, -columns:])
        return seen if window is None else seen & (distance < window)


def place(
    time: int, mask: np.ndarray | None, past: np.ndarray, planned: int | None, device: str
) -> Context:
    """The context of a step of `time` columns after those of `past`: (1 or batch, columns).

    mask: (batch, time), true where a token is real; None: everywhere.
    """
    columns = past.shape[1]
    if mask is None and _unpadded(past):
        key = np.arange(columns + time)[None]
        return Context(key[:, columns:], key, planned or columns + time, device)
    count = (past != PADDING).sum(1, keepdims=True)
    if mask is None:
        query = count + np.arange(time)
    else:
        query = np.where(mask, count + np.cumsum(mask, 1) - 1, PADDING)
        past = np.broadcast_to(past, (len(query), past.shape[1]))
    key = np.concatenate([past, query], 1)
    return Context(query, key, planned or int(key.max(initial=0)) + 1, device)


def _unpadded(positions: np.ndarray) -> bool:
    """Whether positions, (1 or batch, columns), are one row, in which none is padding."""
    rows, columns = positions.shape  # a row counts its tokens: past padding it lags behind
    return rows == 1 and (columns == 0 or bool(positions[0, -1] == columns - 1))


def place_packed(segments: np.ndarray, device: str) -> Context:
    """The context of rows that hold several texts each: segments (batch, time), 0 for padding.

    The tokens of a text lie side by side, and their numbers differ from the neighbouring text's.
    """
    columns = np.arange(segments.shape[1])
    begins = np.diff(segments, axis=1, prepend=-1) != 0
    first = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    at = np.where(segments > 0, columns - first, PADDING)
    return Context(at, at, int(at.max(initial=0)) + 1, device, segments)


def starts(segments: np.ndarray) -> np.ndarray:
    """Where each text begins in the rows laid one after another, and the end: (texts + 1,) int64.

    Padding counts as a text of its own, whose tokens nobody looks at.
    """
    begins = np.diff(segments, axis=1, prepend=-1) != 0
    return np.append(np.flatnonzero(begins), segments.size)
