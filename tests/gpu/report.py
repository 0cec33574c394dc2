"""The result: JSON that is whole after each phase and case, what follows from it, and a table."""

import datetime
import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from minitorch.io import atomic_write
from tests.gpu.rates import floors, rates_of

Row = dict[str, Any]
OURS = "minitorch"


class Report:
    """phases: name -> {"passed", "said", ...}; cases: name -> what it took (measure.py)."""

    def __init__(self, path: Path, resume: bool):
        self.path = path
        self.phases: dict[str, Row] = {}
        self.cases: dict[str, Row] = {}
        before = json.loads(path.read_text()) if resume and path.exists() else {}
        if before.get("hardware") == hardware():
            self.phases, self.cases = before["phases"], before["cases"]
            for name in [name for name, row in self.cases.items() if "errors" in row]:
                del self.cases[name]

    def passed(self, phase: str) -> bool:
        found = self.phases.get(phase, {})
        return bool(found.get("passed")) and "left_out" not in found

    def enter(self, phase: str, result: Row) -> None:
        self.phases[phase] = result
        self._write()

    def add(self, case: str, row: Row) -> None:
        self.cases[case] = row
        self._write()

    def line(self, phase: str) -> str:
        found = self.phases[phase]
        said = {True: "ok", False: "FAILED", None: "not begun"}[found.get("passed")]
        failed = [f"\n  {name}: {text[-1500:]}" for name, text in found.get("failed", {}).items()]
        left = f"; left out: {found['left_out']}" if found.get("left_out") else ""
        return f"{said}, {found.get('said', '')}{left}" + "".join(failed)

    def exit_code(self) -> int:
        """1 if anything failed, 3 if something was left out, else 0."""
        phases = self.phases.values()
        if not all(found.get("passed", True) for found in phases):
            return 1
        return 3 if any("left_out" in found for found in phases) else 0

    def table(self) -> str:
        """In Markdown: a line for each case."""
        headings = ["case", "µs", "fastest peer", "its µs", "ratio", "rate", "share", "floors, µs"]
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
        lines += [line for name, row in self._finished().items() for line in _lines(name, row)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def _finished(self) -> dict[str, Row]:
        """The cases with what follows from them."""
        rates = rates_of(hardware().get("gpu", ""))
        squares = [row for name, row in self.cases.items() if name.startswith("matmul")]
        products = [rate for row in squares for rate in _rates(row).values()]
        return {
            name: row | _derived(row, rates, max(products, default=0.0))
            for name, row in self.cases.items()
        }

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hardware": hardware(),
            "phases": self.phases,
            "cases": self._finished(),
        }
        with atomic_write(self.path, "w") as file:
            file.write(json.dumps(found, indent=2) + "\n")
        title = ", ".join(str(x) for x in (found["date"], *hardware().values()) if x)
        with atomic_write(self.path.with_suffix(".md"), "w") as file:
            file.write(f"{title}\n\n{self.table()}\n\n{_LEGEND}\n")


_LEGEND = """Medians. Ratio: the fastest peer's time over minitorch's. Rate: TFLOP/s, or thousands
of tokens in a second. Share: of what a copy reached in the same run, or, of training steps, of the
fastest product's rate. Floors: what the arithmetic, and the bytes that must move, take at the rates
of the datasheet."""


def _derived(row: Row, rates: dict[str, float] | None, fastest: float) -> Row:
    """Rates and shares of a case that was timed; floors where the device's rates are known."""
    if OURS not in row.get("microseconds", {}):
        return {}
    ours, found = row["microseconds"][OURS] / 1e6, {}
    if row.get("tokens"):
        found["tokens_per_second"] = row["tokens"] / ours
        if fastest:
            found["share_of_products"] = row["flops"] / ours / fastest
    elif row.get("bytes") and not row.get("products"):
        found["share_of_copy"] = row["bytes"] / ours / row["copy_bytes_per_second"]
    if found_rates := _rates(row):
        found["flops_per_second"] = found_rates
    if rates:
        found["floors_microseconds"] = [
            1e6 * floor for floor in floors(row["flops"], row["bytes"], row["dtype"], rates)
        ]
    return found


def _rates(row: Row) -> dict[str, float]:
    """Of operations, where these are a product's."""
    times = row.get("microseconds", {}) if row.get("products") else {}
    return {name: 1e6 * row["flops"] / time for name, time in times.items()}


def _lines(name: str, row: Row) -> list[list[str]]:
    """One for each way in which minitorch does it, and one for each library that could not."""
    times = row.get("microseconds", {})
    mine = [who for who in times if who.startswith(OURS)] or [*times]
    peers = {who: time for who, time in times.items() if who not in mine}
    best = min(peers, key=lambda who: peers[who], default=None)
    lines = []
    for who in mine:
        variant = who.removeprefix(OURS)
        against = (
            [best, f"{peers[best]:.1f}", f"{peers[best] / times[who]:.2f}"] if best else ["-"] * 3
        )
        share = row.get("share_of_copy", row.get("share_of_products")) if who == OURS else None
        floors_of = row.get("floors_microseconds", [])
        lines.append(
            [
                f"{name},{variant}" if variant else name,
                f"{times[who]:.1f}",
                *against,
                _rate(row, who),
                "-" if share is None else f"{100 * share:.0f} %",
                ", ".join(f"{floor:.1f}" for floor in floors_of) or "-",
            ]
        )
    said = {who: text.strip().splitlines()[-1] for who, text in row.get("errors", {}).items()}
    return [*lines, *([name, f"{who}: {text[:150]}"] for who, text in said.items())]


def _rate(row: Row, who: str) -> str:
    if who in row.get("flops_per_second", {}):
        return f"{row['flops_per_second'][who] / 1e12:.0f}"
    return f"{row['tokens'] / row['microseconds'][who] * 1e3:.0f}" if row.get("tokens") else "-"


@functools.cache
def hardware() -> dict[str, Any]:
    """The GPU, its driver, nvcc, Python."""
    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    found = _output("nvidia-smi", query, "--format=csv,noheader").splitlines() or [""]
    release = re.search(r"release (\S+),", _output("nvcc", "--version"))
    names = ("gpu", "driver", "memory", "compute capability")
    return {
        **dict(zip(names, map(str.strip, found[0].split(", ")))),
        "nvcc": release and release[1],
        "python": sys.version.split()[0],
    }


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
