"""Random numbers that can be replayed: a counter-based generator, and a global one.

Each draw is a pure function of (seed, offset, shape): Philox 4x64-10 keyed by the seed, started at
a block of its own for every call, so that the whole state is two integers. Nothing depends on how
many numbers an earlier call happened to consume. Source: Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from minitorch import capture
from minitorch.errors import ConfigError, GraphError
from minitorch.kernels.philox import stream


class Generator:
    """A stream of random draws. seed: any integer of up to 128 bits, not negative.

    In PyTorch: torch.Generator; in JAX a key that is split by counting.
    """

    def __init__(self, seed: int = 0):
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> "Generator":
        """Start again at offset 0 of the stream of this seed; returns the generator."""
        seed = int(seed)
        if not 0 <= seed < 1 << 128:
            raise ConfigError(f"seed: expected an integer in [0, 2**128); got {seed}")
        self.seed = seed
        self.offset = 0
        return self

    def get_state(self) -> dict[str, int]:
        """The whole state, as integers that JSON can hold."""
        return {"seed": self.seed, "offset": self.offset}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on from a state that `get_state` gave."""
        try:
            seed, offset = int(state["seed"]), int(state["offset"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"set_state: expected integers 'seed' and 'offset'; got {state!r}"
            ) from None
        self.manual_seed(seed)
        self.offset = offset

    def fork(self) -> "Generator":
        """A generator in the same state."""
        other = Generator(self.seed)
        other.offset = self.offset
        return other

    def advance(self) -> tuple[int, int]:
        """Seed and offset of the next draw, which this is."""
        if why := _forbidden.get():
            raise ConfigError(why)
        if capture.thread.current is not None:
            capture.thread.current.note_draw(self)
        self.offset += 1
        return self.seed, self.offset - 1

    def draw(self) -> np.random.Generator:
        """NumPy's generator for the next draw, whose numbers are in main memory."""
        if capture.thread.current is not None:
            raise GraphError(
                "draw: numbers drawn in main memory would be the same in every replay of a "
                "captured step. Draw them before, and pass them to the step"
            )
        return stream(*self.advance())

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, offset={self.offset})"


default_generator = Generator(0)
"""What every random operation uses that is not given a generator."""


_forbidden: ContextVar[str] = ContextVar("forbidden", default="")


@contextmanager
def forbidden(why: str) -> Iterator[None]:
    """In the block a draw raises ConfigError(why)."""
    token = _forbidden.set(why)
    try:
        yield
    finally:
        _forbidden.reset(token)


def manual_seed(seed: int) -> Generator:
    """Seed the global generator; returns it."""
    return default_generator.manual_seed(seed)


def get_rng_state() -> dict[str, int]:
    """The state of the global generator."""
    return default_generator.get_state()


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the state of the global generator."""
    default_generator.set_state(state)
