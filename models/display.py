"""What a training run shows while it runs: a live line in a terminal, plain lines elsewhere."""

import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from models.machine import ask, peak_memory

QUIET = 10.0  # seconds between plain lines when no evaluation comes


class Display(Protocol):
    """The progress of one run."""

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """An optimizer step is done; loss is smoothed over some steps."""

    def evaluated(self, row: dict[str, Any]) -> None:
        """A row was added to the log."""

    def note(self, text: str) -> None:
        """Something else to be told, in one line."""

    def close(self) -> None:
        """The run has ended, one way or another."""


def display(console: Console, done: int, steps: int) -> Display:
    """The display that suits the console, of a run of `steps` steps of which `done` are done."""
    return Live(console, done, steps) if console.is_terminal else Plain(console, done, steps)


class Live:
    """A progress bar that is redrawn in place, and a line above it for each evaluation."""

    def __init__(self, console: Console, done: int, steps: int):
        self.progress = Progress(
            TextColumn("step {task.completed:>5}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("val {task.fields[val]}", style="magenta"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            _Memory(),
            console=console,
            expand=True,
        )
        self.task = self.progress.add_task(
            "", total=steps, completed=done, loss="-", val="-", speed="- tok/s"
        )
        self.progress.start()

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        speed = f"{tokens_per_second:,.0f} tok/s"
        self.progress.update(self.task, completed=step, loss=f"{loss:.4f}", speed=speed)

    def evaluated(self, row: dict[str, Any]) -> None:
        self.progress.update(self.task, val=f"{row['val_loss']:.4f}")
        self.note(_line(row))

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

    def __init__(self, console: Console, done: int, steps: int):
        self.console = console
        self.done = done
        self.steps = steps
        self.start = self.last = time.monotonic()

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        now = time.monotonic()
        if now - self.last >= QUIET:
            left = (now - self.start) / (step - self.done) * (self.steps - step)
            self.note(
                f"step {step}/{self.steps}  loss {loss:.4f}  {tokens_per_second:,.0f} tok/s  "
                f"{left:.0f} s left"
            )

    def evaluated(self, row: dict[str, Any]) -> None:
        self.note(_line(row))

    def note(self, text: str) -> None:
        self.last = time.monotonic()
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        pass


def _line(row: dict[str, Any]) -> str:
    return (
        f"step {row['step']:>6}  train {row['train_loss']:.4f}  val {row['val_loss']:.4f}  "
        f"{row['bits_per_byte']:.3f} bits/byte  {row['tokens_per_second']:,.0f} tok/s"
    )
