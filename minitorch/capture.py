"""What a CUDA graph cannot record of a step, and what is done about it before each replay.

A graph replays launches, with the arguments that they had. Python does not run again: a learning
rate that went into a launch as a number stays what it was, and so does the offset of a random
stream. So inside a capture such numbers lie on the device, where a kernel reads them, and each
replay begins with what Python would have done: counts advance, the numbers are computed again and
sent, all in one copy. `minitorch.cuda` has the graphs themselves.

Source: PyTorch's CUDA graphs, whose optimizers are `capturable` and whose random generators have an
offset in the memory of the device, likewise.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitorch.errors import GraphError

Array = Any
SLOTS = 1 << 16
"""Numbers that one graph can have renewed."""


class Capture:
    """What belongs to one capture besides its launches.

    place: puts a NumPy array on the device, at once and outside of the capture.
    """

    def __init__(self, place: Callable[[np.ndarray], Array]):
        self._place = place
        self._kept: list[Array] = []
        self._script: list[Callable[[], Sequence[float]]] = []
        self._slots = self.constant(np.zeros(SLOTS))
        self._captured: list[float] = []
        self._streams: dict[int, _Stream] = {}

    def constant(self, array: np.ndarray) -> Array:
        """The array on the device, where it stays as it is as long as the graph lives."""
        placed = self._place(array)
        self._kept.append(placed)
        return placed

    def before_replay(self, action: Callable[[], None]) -> None:
        """Have action() run before each replay but the first, which is the captured call itself."""

        def act() -> Sequence[float]:
            action()
            return ()

        self._script.append(act)

    def renewed(self, compute: Callable[[], Sequence[float]]) -> Array:
        """compute()'s numbers on the device, in float64, computed anew before each replay."""
        first = len(self._captured)
        self._captured += compute()
        if len(self._captured) > SLOTS:
            raise GraphError(
                f"graph: expected at most {SLOTS:,} numbers that change between replays; got more. "
                "Capture a smaller part of the step"
            )
        self._script.append(compute)
        return self._slots[first : len(self._captured)]

    def note_draw(self, generator: Any) -> None:
        """A generator is about to move on; it will move on as far in each replay."""
        stream = self._streams.setdefault(generator.seed, _Stream(generator))
        if stream.generator is not generator:
            raise GraphError(
                f"graph: expected one generator of seed {generator.seed} in a captured step; got "
                "two. Give them different seeds"
            )

    def shift(self, seed: int) -> Array:
        """By how much a replay's offset lies behind the captured one: one number on the device."""
        stream = self._streams[seed]
        if stream.shift is None:
            stream.shift = self.renewed(lambda: [stream.behind])
        return stream.shift

    def finish(self) -> None:
        """The capture is over: the first replay has the numbers that were captured."""
        for stream in self._streams.values():
            stream.draws = stream.generator.offset - stream.first
        self._send(self._captured)

    def renew(self) -> None:
        """What Python does in place of the step before each later replay."""
        for stream in self._streams.values():
            stream.move_on()
        self._send([number for part in self._script for number in part()])

    def _send(self, numbers: Sequence[float]) -> None:
        if numbers:
            self._slots[: len(numbers)].set(np.array(numbers, np.float64))


class _Stream:
    """A generator in a capture: where it was, and how far it moves in one replay."""

    def __init__(self, generator: Any):
        self.generator, self.seed, self.first = generator, generator.seed, generator.offset
        self.draws = self.behind = 0
        self.shift: Array | None = None

    def move_on(self) -> None:
        """Take the draws of one replay."""
        if self.generator.seed != self.seed:
            raise GraphError(
                f"replay: expected the generator to have seed {self.seed}, as when the step was "
                f"captured; got {self.generator.seed}. Capture the step again"
            )
        self.behind = self.generator.offset - self.first
        self.generator.offset += self.draws


class _Thread(threading.local):
    current: Capture | None = None


thread = _Thread()
"""thread.current is the capture that is under way in this thread, if one is."""


def must_not_wait(operation: str) -> None:
    """Raise GraphError inside of a capture: the operation needs a value, which is not there yet."""
    if thread.current is not None:
        raise GraphError(
            f"{operation}: waits for the device, which a captured step cannot. Return the tensor "
            "from the step and look at it after the call, or leave this step uncaptured"
        )
