"""What a training run shows while it runs: a live line in a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from models.machine import ask, peak_memory

QUIET = 10.0  # seconds between plain lines when no evaluation comes


class Display(Protocol):
    """The progress of one run."""

    def step(self, step: int, metrics: Mapping[str, float], tokens_per_second: float) -> None:
        """A step is done; its metrics are smoothed over some steps."""

    def evaluated(self, row: dict[str, Any]) -> None:
        """A row was added to the log."""

    def note(self, text: str) -> None:
        """Something else to be told, in one line."""

    def close(self) -> None:
        """The run has ended, one way or another."""


def display(console: Console, done: int, steps: int, columns: Mapping[str, str]) -> Display:
    """The display that suits the console, of a run of `steps` steps of which `done` are done.

    columns: the metrics to show, and the format of each: {"val_loss": "val {:.4f}"}.
    """
    kind = Live if console.is_terminal else Plain
    return kind(console, done, steps, columns)


class Live:
    """A progress bar that is redrawn in place, and a line above it for each evaluation."""

    def __init__(self, console: Console, done: int, steps: int, columns: Mapping[str, str]):
        self.columns = columns
        self.metrics: dict[str, float] = {}
        self.progress = Progress(
            TextColumn("step {task.completed:>5}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[metrics]}", style="magenta"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            _Memory(),
            console=console,
            expand=True,
        )
        self.task = self.progress.add_task(
            "", total=steps, completed=done, metrics="", speed="- tok/s"
        )
        self.progress.start()

    def step(self, step: int, metrics: Mapping[str, float], tokens_per_second: float) -> None:
        self.metrics.update(metrics)
        self.progress.update(
            self.task,
            completed=step,
            metrics=_formatted(self.columns, self.metrics),
            speed=f"{tokens_per_second:,.0f} tok/s",
        )

    def evaluated(self, row: dict[str, Any]) -> None:
        self.metrics.update(row)
        self.progress.update(self.task, metrics=_formatted(self.columns, self.metrics))
        self.note(_line(self.columns, row))

    def note(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self.progress.stop()


class _Memory(ProgressColumn):
    """The peak memory of the process."""

    def render(self, task: Task) -> Text:
        peak = ask(peak_memory)
        return Text(f"{peak / 2**20:,.0f} MiB" if peak else "", style="dim")


class Plain:
    """One line per evaluation, and one now and then between evaluations that are far apart."""

    def __init__(self, console: Console, done: int, steps: int, columns: Mapping[str, str]):
        self.console = console
        self.columns = columns
        self.done = done
        self.steps = steps
        self.start = self.last = time.monotonic()

    def step(self, step: int, metrics: Mapping[str, float], tokens_per_second: float) -> None:
        now = time.monotonic()
        if now - self.last >= QUIET:
            left = (now - self.start) / (step - self.done) * (self.steps - step)
            self.note(
                f"step {step}/{self.steps}  {_formatted(self.columns, metrics)}  "
                f"{tokens_per_second:,.0f} tok/s  {left:.0f} s left"
            )

    def evaluated(self, row: dict[str, Any]) -> None:
        self.note(_line(self.columns, row))

    def note(self, text: str) -> None:
        self.last = time.monotonic()
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        pass


def _line(columns: Mapping[str, str], row: dict[str, Any]) -> str:
    return (
        f"step {row['step']:>6}  {_formatted(columns, row)}  {row['tokens_per_second']:,.0f} tok/s"
    )


def _formatted(columns: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    return "  ".join(text.format(metrics[key]) for key, text in columns.items() if key in metrics)
