"""What a model remembers of the tokens before: keys and values, or whatever a layer attends to.

With a cache a step computes its new tokens alone. Its parts grow as they are filled, by doubling,
so that the copies cost as much as one more of the final size; a layer that sees a window drops
what has left it, and its part stays within twice the window.

    bytes per token = 2 · layers · kv_heads · head_dim · bytes per number       keys and values
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch import modes
from minitorch.errors import DtypeError, GraphError, ShapeError
from minitorch.tensor import Tensor
from models.blocks.context import PADDING, Context, place


class LayerCache:
    """One layer's part: tensors (batch, ..., time, features) that grow along time.

    window: how many positions back the layer sees, itself included; None: all.
    """

    def __init__(self, window: int | None = None):
        self.window = window
        self._begin = self._end = 0
        self._buffers: list[Any] = []

    @property
    def columns(self) -> int:
        """How many columns it holds."""
        return self._end - self._begin

    @property
    def nbytes(self) -> int:
        """The memory it has taken."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def append(self, context: Context, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Take in a step's tensors; return them joined to those held: (..., columns, features).

        Raises GraphError where gradients are recorded, which would not reach what is held, and
        ShapeError for another batch or number of features.
        """
        if modes.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise GraphError("cache: expected no_grad(); what it holds is on no tape")
        self._check(tensors)
        self._drop(context)
        time = tensors[0].shape[-2]
        if not self._buffers or self._end + time > self._buffers[0].shape[-2]:
            self._move(tensors, 2 ** math.ceil(math.log2(self.columns + time)))
        stop = self._end + time
        for buffer, tensor in zip(self._buffers, tensors):
            buffer[..., self._end : stop, :] = tensor.data
        self._end = stop
        return tuple(Tensor(buffer[..., self._begin : stop, :]) for buffer in self._buffers)

    def _check(self, tensors: Sequence[Tensor]) -> None:
        for buffer, tensor in zip(self._buffers, tensors):
            held = (*buffer.shape[:-2], buffer.shape[-1])
            if (*tensor.shape[:-2], tensor.shape[-1]) != held:
                raise ShapeError(
                    f"cache: expected a step of shape {(*held[:-1], 'time', held[-1])}, that of "
                    f"what it holds; got {tensor.shape}. Begin another sequence with new_cache()"
                )

    def _drop(self, context: Context) -> None:
        """Forget the oldest columns that no token of this step or a later one sees in any row."""
        if self.window is None or self.columns == 0:
            return
        held = context.key[:, : -context.query.shape[1]][:, -self.columns :]
        following = (context.key[:, : -context.query.shape[1]] >= 0).sum(1, keepdims=True)
        needed = (held > following - self.window).any(0)
        self._begin += int(needed.argmax()) if needed.any() else self.columns

    def take(self, rows: np.ndarray) -> None:
        """Keep these rows alone, in this order."""
        self._buffers = [buffer[rows, ..., self._begin : self._end, :] for buffer in self._buffers]
        self._begin, self._end = 0, self.columns

    def adopt(self, places: np.ndarray, other: "LayerCache", rows: np.ndarray) -> None:
        """Hold at `places` what `other` holds of `rows`, its last column in the last one here."""
        if other.columns > self.columns:
            self._widen(other.columns)
        for buffer, source in zip(self._buffers, other._buffers):
            held = source[rows, ..., other._begin : other._end, :]
            buffer[places, ..., self._end - other.columns : self._end, :] = held

    def keep_last(self, columns: int) -> None:
        """Forget what is further back."""
        self._begin = max(self._begin, self._end - columns)

    def _widen(self, columns: int) -> None:
        """Columns of zeros before the first, which nothing sees, up to so many in all."""
        blank = columns - self.columns
        for i, old in enumerate(self._buffers):
            shape = (*old.shape[:-2], columns, old.shape[-1])
            self._buffers[i] = np.zeros_like(old, shape=shape)
            self._buffers[i][..., blank:, :] = old[..., self._begin : self._end, :]
        self._begin, self._end = 0, columns

    def _move(self, tensors: Sequence[Tensor], room: int) -> None:
        """What is held, into buffers of at least `room` columns."""
        kept = [buffer[..., self._begin : self._end, :] for buffer in self._buffers]
        self._buffers = [
            np.empty_like(t.data, shape=(*t.shape[:-2], room, t.shape[-1])) for t in tensors
        ]
        self._begin, self._end = 0, self.columns
        for buffer, old in zip(self._buffers, kept):
            buffer[..., : self._end, :] = old


class Cache:
    """What a model remembers: a part for each layer, and the position in each column.

    planned: how long the sequence is going to be; the length of the first step if that is not
    known. Positions that scale with the length (dynamic NTK) are scaled for it to the end: keys are
    held as they were turned, and would not fit to queries turned for another length.

    Rows can be exchanged (`take`, `adopt`, `trim`) where each has positions of its own: where the
    first step had a mask.
    """

    def __init__(self, layers: Sequence[Any], planned: int | None = None):
        self.layers, self.planned = list(layers), planned
        self.positions = np.empty((1, 0), np.int64)

    @property
    def length(self) -> int:
        """How many columns it has seen, padding included."""
        return self.positions.shape[1]

    @property
    def nbytes(self) -> int:
        """The memory of all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def take(self, rows: np.ndarray) -> None:
        """Keep these rows alone, in this order: (count,) integers."""
        self.positions = self.positions[rows]
        for layer in self.layers:
            layer.take(rows)

    def adopt(self, places: np.ndarray, other: "Cache", rows: np.ndarray) -> None:
        """Begin other sequences at `places`: those that `other` holds at `rows`.

        Their last columns stand in the last one here, so that the next step is the next of all.
        """
        length = max(self.length, other.length)
        self.positions, theirs = (_widened(cache.positions, length) for cache in (self, other))
        self.positions[places] = theirs[rows]
        for layer, source in zip(self.layers, other.layers):
            layer.adopt(places, source, rows)

    def trim(self) -> None:
        """Forget the columns at the beginning in which no row has a token."""
        used = (self.positions != PADDING).any(0)
        columns = self.length - int(used.argmax()) if used.any() else 0
        self.positions = self.positions[:, self.length - columns :]
        for layer in self.layers:
            layer.keep_last(columns)

    def extend(self, time: int, mask: np.ndarray | None, device: str) -> Context:
        """The context of the next `time` columns, which the cache counts from now on."""
        context = place(time, mask, self.positions, self.planned, device)
        self.positions, self.planned = context.key, context.planned
        return context


def _widened(positions: np.ndarray, columns: int) -> np.ndarray:
    """A copy with padding on the left, so many columns wide."""
    missing = columns - positions.shape[1]
    return np.pad(positions, ((0, 0), (missing, 0)), constant_values=PADDING)


def step(ids: Tensor, cache: Cache | None = None, mask: Tensor | None = None) -> Context:
    """Where the tokens of a step of a model stand; the cache counts them from now on.

    ids: (batch, time) integers; mask: of the same shape, true (or 1) for tokens and false (or 0)
    for padding; None: all are tokens. Raises DtypeError and ShapeError where they are not that.
    """
    if ids.is_floating_point():
        raise DtypeError(f"language model: expected integer token ids; got {ids.dtype}")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ShapeError(f"language model: expected ids (batch, time), some; got shape {ids.shape}")
    if mask is not None and mask.shape != ids.shape:
        raise ShapeError(
            f"language model: expected a mask of the shape of ids, {ids.shape}; got {mask.shape}"
        )
    real = None if mask is None else mask.numpy().astype(bool)
    if cache is not None:
        return cache.extend(ids.shape[1], real, ids.device)
    return place(ids.shape[1], real, np.empty((1, 0), np.int64), None, ids.device)
