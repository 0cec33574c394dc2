"""What all experiments share: a set-up, a table, claims on it, a picture.

An experiment trains small models that differ in one thing and measures them: a row of the table
for each. Its claims are inequalities that stand in its file before it runs. At least one is on a
negative control, which must fail without the thing in question: a task that everything solves, or
a comparison that nothing can lose, proves nothing.
"""

import dataclasses
import math
import operator
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

import minitorch
from models.machine import processor
from models.picture import picture

Row = dict[str, Any]
"""What was measured of one variant: numbers, lists of numbers, and its name as "variant"."""

RELATIONS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Claim:
    """value relation limit, in words: text. control: whether it is on a negative control."""

    text: str
    value: float
    relation: Literal["<=", ">="]
    limit: float
    control: bool = False

    @property
    def holds(self) -> bool:
        """Whether it is so; of NaN nothing is."""
        return RELATIONS[self.relation](self.value, self.limit)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What an experiment's file declares.

    setup, quick: a dataclass of sizes, and the same so small that it only shows that all runs.
    run(setup, seed, console) -> the table; progress goes to the console. claims(rows): what must
    hold after a run with `setup`. draw(axes, rows): the picture.
    """

    name: str
    question: str
    setup: Any
    quick: Any
    run: Callable[[Any, int, Console], list[Row]]
    claims: Callable[[Sequence[Row]], list[Claim]]
    draw: Callable[[Axes, Sequence[Row]], None]


def record(
    experiment: Experiment,
    setup: Any,
    seed: int,
    rows: Sequence[Row],
    claims: Sequence[Claim],
    command: str,
) -> dict[str, Any]:
    """A run as JSON can hold it, with when, where and how; what is not finite becomes null."""
    return {
        "experiment": experiment.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "processor": processor(),
        "versions": {"minitorch": minitorch.__version__, "python": platform.python_version()},
        "seed": seed,
        "setup": _plain(dataclasses.asdict(setup)),
        "rows": _plain(rows),
        "claims": _plain([{**dataclasses.asdict(c), "holds": c.holds} for c in claims]),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def by_name(rows: Sequence[Row]) -> dict[str, Row]:
    """The rows by their variants."""
    return {row["variant"]: row for row in rows}


def show(console: Console, rows: Sequence[Row], claims: Sequence[Claim]) -> None:
    """Print what was measured, lists left out, and which claims hold."""
    table = Table(box=None, pad_edge=False)
    columns = [name for name, value in rows[0].items() if not isinstance(value, list)]
    for name in columns:
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    console.print(table)
    for claim in claims:
        verdict = "[green]holds[/]" if claim.holds else "[red]fails[/]"
        console.print(f"{verdict}  {claim.text}: {claim.value:.3g} {claim.relation} {claim.limit}")


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str("" if value is None else value)


def save_picture(path: Path, experiment: Experiment, rows: Sequence[Row]) -> None:
    """Write the experiment's picture as a PNG."""
    with picture(path, 7, 3.5) as axes:
        experiment.draw(axes, rows)
