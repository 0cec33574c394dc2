"""Schedules as data: what hypothesis draws, and makes shorter when a result depends on it."""

from collections.abc import Callable
from typing import Any

from hypothesis import Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

SCHEDULES = st.lists(st.integers(0, 127), max_size=10)
"""Lists of choices, as the emulator takes them (`checked(choices=...)`, SIMT_CHOICES)."""


def schedule_that_matters(run: Callable[[list[int]], Any], *, tries: int = 60) -> list[int] | None:
    """The simplest schedule found for which run(schedule) is not run([]); None if there is none."""
    expected = run([])
    phases = (Phase.generate, Phase.shrink)
    how = settings(
        max_examples=tries, derandomize=True, database=None, deadline=None, phases=phases
    )
    try:
        return find(SCHEDULES, lambda schedule: run(schedule) != expected, settings=how)
    except NoSuchExample:
        return None
