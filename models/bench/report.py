"""What a benchmark says: a table as it runs, a picture, and everything as JSON."""

import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from minitorch.kernels.cpu.extension import get_num_threads, instruction_sets
from models.bench.peaks import Peaks
from models.bench.timing import OURS, Result
from models.machine import processor
from models.picture import picture


def show(
    console: Console, title: str, results: Iterable[Result], peaks: Peaks | None
) -> list[Result]:
    """Print a row for each result as it comes; returns them all."""
    done: list[Result] = []
    with Live(console=console, transient=False, auto_refresh=False) as live:
        for result in results:
            done.append(result)
            live.update(_table(title, done, peaks), refresh=True)
    return done


def _table(title: str, results: Sequence[Result], peaks: Peaks | None) -> Table:
    libraries = list(dict.fromkeys(name for result in results for name in result.costs))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("case", overflow="fold")
    for library in libraries:
        table.add_column(library, justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.case.name,
            *[_cost(result, library) for library in libraries],
            "-" if result.worst_ratio is None else f"{result.worst_ratio:.2f}",
            _limit(result, peaks),
        )
    table.caption = (
        "median of a call; ratio: fastest peer / minitorch; limit: share of the machine's"
        if results[0].case.unit == "s"
        else "peak of a process; ratio: smallest peer / minitorch"
    )
    table.caption_justify = "left"
    return table


def _cost(result: Result, library: str) -> str:
    if library not in result.costs:
        return "-"
    cost = result.median(library)
    if result.case.unit == "B":
        return f"{cost / 1e6:,.0f} MB"
    unit, factor = ("s ", 1) if cost >= 1 else ("ms", 1e3) if cost >= 1e-3 else ("µs", 1e6)
    return f"{cost * factor:.3g} {unit}"


def _limit(result: Result, peaks: Peaks | None) -> str:
    share = limit_share(result, peaks)
    return "-" if share is None else f"{100 * share:.0f} %"


def limit_share(result: Result, peaks: Peaks | None) -> float | None:
    """The share of what the machine could do: of its arithmetic, or of its bandwidth if greater."""
    if peaks is None or not (result.case.flops or result.case.bytes):
        return None
    seconds = result.median(OURS)
    return max(
        result.case.flops / seconds / getattr(peaks, f"{result.case.dtype}_flops"),
        result.case.bytes / seconds / peaks.read_bytes,
    )


def to_json(suite: str, results: Sequence[Result], peaks: Peaks | None, command: str) -> Any:
    """Everything measured, with when, where and how."""
    return {
        "suite": suite,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": {
            "processor": processor(),
            "platform": platform.platform(),
            "threads": get_num_threads(),
            "instruction_set": (instruction_sets() or ("numpy",))[0],
            "peaks": None if peaks is None else peaks.to_json(),
        },
        "versions": {name: v for name in ("numpy", "torch", "jax") if (v := _version(name))},
        "results": [{**r.to_json(), "share_of_limit": limit_share(r, peaks)} for r in results],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def draw(path: Path, suite: str, results: Sequence[Result]) -> None:
    """Write a PNG: for each case each peer's cost over this engine's, 1 marked by a line."""
    peers = list(dict.fromkeys(peer for result in results for peer in result.peers))
    shown = [result for result in results if result.peers]
    with picture(path, 8, 1.2 + 0.32 * len(shown)) as axes:
        height = 0.8 / max(len(peers), 1)
        for i, peer in enumerate(peers):
            rows = [(row, r.ratio(peer)) for row, r in enumerate(shown) if peer in r.costs]
            axes.barh(
                [row + (i - (len(peers) - 1) / 2) * height for row, _ in rows],
                [ratio for _, ratio in rows],
                height,
                label=peer,
            )
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(range(len(shown)), [result.case.name for result in shown], fontsize=7)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        timed = results[0].case.unit == "s"
        axes.set_xlabel(
            "times as fast as the peer" if timed else "the peer's memory, in times this"
        )
        axes.set_title(f"{suite}: {OURS} against its peers", loc="left", fontsize=11)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if peers:
            axes.legend(frameon=False, fontsize=8)
