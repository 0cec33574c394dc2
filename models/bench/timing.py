"""Timing several implementations of the same work in turns.

The libraries take turns, round after round, so that a change of the machine's speed meets all of
them. After its turn the threads of a library keep the processor busy for a while, waiting for more
work (OpenBLAS's for 0.1 s), which would slow the next one down several times: so each turn begins
with `REST` seconds of sleep and a call that does not count. What a library takes in a round is the
mean over enough calls to fill `SLICE` seconds; the figure is the median over the rounds, and the
spread the distance of the quartiles over the median.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SLICE = 0.02
"""Seconds that a library is timed for in one round, at least; a longer call is timed once."""

REST = 0.15
"""Seconds of sleep before a library's turn, after which the other's threads sleep too."""

OURS = "minitorch"

COSTS = {"s": "seconds", "B": "bytes"}
"""What the figures of a unit are called."""


@dataclass(frozen=True)
class Case:
    """One piece of work and who can do it.

    build: gives library -> a call that does the work once; called when the case's turn comes.
    flops, bytes: what one call computes, and must move between memory and processor at least; 0 if
    that is not what limits it. dtype: what is multiplied. unit: "s", or "B" where a call is not to
    be timed but returns the bytes that it took.
    """

    name: str
    build: Callable[[], Mapping[str, Callable[[], Any]]]
    flops: float = 0.0
    bytes: float = 0.0
    dtype: str = "float32"
    unit: str = "s"


@dataclass
class Result:
    """What was measured of a case: library -> seconds (or bytes) of a call, one for each round."""

    case: Case
    costs: dict[str, list[float]] = field(default_factory=dict)

    def median(self, library: str) -> float:
        """Seconds of a call, or bytes."""
        return statistics.median(self.costs[library])

    def spread(self, library: str) -> float:
        """The distance of the quartiles, over the median."""
        values = self.costs[library]
        if len(values) < 4:
            return (max(values) - min(values)) / self.median(library)
        low, _, high = statistics.quantiles(values, n=4)
        return (high - low) / self.median(library)

    @property
    def peers(self) -> list[str]:
        """The libraries that were measured beside this one."""
        return [library for library in self.costs if library != OURS]

    def ratio(self, peer: str) -> float:
        """The peer's cost over this engine's: above 1 this engine is the faster, or smaller."""
        return self.median(peer) / self.median(OURS)

    @property
    def worst_ratio(self) -> float | None:
        """The ratio to the fastest peer; None where there is none."""
        return min((self.ratio(peer) for peer in self.peers), default=None)

    def to_json(self) -> dict[str, Any]:
        """Medians, spreads, ratios and rates."""
        rates = {}
        if self.case.flops:
            rates["gflops_per_second"] = self.case.flops / self.median(OURS) / 1e9
        if self.case.bytes:
            rates["gigabytes_per_second"] = self.case.bytes / self.median(OURS) / 1e9
        return {
            "case": self.case.name,
            COSTS[self.case.unit]: {library: self.median(library) for library in self.costs},
            "spread": {library: self.spread(library) for library in self.costs},
            "ratio": {peer: self.ratio(peer) for peer in self.peers},
            **rates,
        }


def measure(case: Case, rounds: int, wait: Callable[[], None] = lambda: None) -> Result:
    """Run all libraries of a case in turns; once, where they are not timed.

    wait: returns when all that was called is done, which on a GPU is later than the calls return.
    """
    runs = case.build()
    if case.unit != "s":
        return Result(case, {library: [run()] for library, run in runs.items()})
    repeats = {library: _warm_up(run, wait) for library, run in runs.items()}
    result = Result(case, {library: [] for library in runs})
    for _ in range(rounds):
        for library, run in runs.items():
            count = repeats[library]
            time.sleep(REST)
            run()
            wait()
            begun = time.perf_counter()
            for _ in range(count):
                run()
            wait()
            result.costs[library].append((time.perf_counter() - begun) / count)
    return result


def _warm_up(run: Callable[[], Any], wait: Callable[[], None]) -> int:
    """How many calls fill a slice, found by running some."""
    time.sleep(REST)
    run()
    wait()
    count = 1
    while True:
        begun = time.perf_counter()
        for _ in range(count):
            run()
        wait()
        seconds = time.perf_counter() - begun
        if seconds >= SLICE:
            return max(1, round(count * SLICE / seconds))
        count = max(count + 1, min(10 * count, round(1.2 * count * SLICE / max(seconds, 1e-9))))
