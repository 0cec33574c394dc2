"""What a model wrote or judged, to be read: one JSON object a line, and a page that shows them.

    {"step": 20, "group": 3, "prompt": "27+85=", "tokens": ["2", "1", "1", "<|endoftext|>"],
     "mask": [true, ...], "log_probs": [...], "advantages": [...], "reward": 1.0,
     "rewards": {"exact": 1.0}, "finished": true}

On the page a token is green where it is to become likelier and red where rarer, the more the
greater its advantage; what the model was told is grey and crossed by lines. Held over a token, the
pointer shows its log-probability and advantage. Another `Legend` has other numbers of each token.
The page is one file and needs no network.
"""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from minitorch.errors import DataError
from minitorch.io import atomic_write

Record = dict[str, Any]
NEEDED = ("step", "group", "prompt", "tokens", "mask", "reward")

STYLE = """
:root { color-scheme: light dark; --line: #8884; --grey: #8883; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0;
  padding: .3rem .8rem; }
summary { cursor: pointer; } summary b { font-weight: 600; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .2rem .6rem; text-align: right;
  border-top: 1px solid var(--line); vertical-align: top; font-variant-numeric: tabular-nums; }
td:first-child, th:first-child { text-align: left; width: 60%; }
.text { font: 14px/1.7 ui-monospace, monospace; overflow-wrap: anywhere; }
.text span { border-radius: 3px; padding: 1px 1px; white-space: pre-wrap; }
.told { background: repeating-linear-gradient(135deg, var(--grey) 0 3px, transparent 3px 6px); }
.cut { opacity: .6; } .key span { margin-right: 1rem; padding: 1px 6px; border-radius: 3px; }
"""

GREEN, RED = "34, 160, 80", "215, 60, 60"


@dataclass(frozen=True)
class Legend:
    """The numbers of each token, by their keys and what the pointer calls them, and its colour.

    colored_by: the key whose numbers color. above, below: the color where they are above 0, and
    where below, with what it means; None where they never are. of: what the completion is.
    """

    values: Mapping[str, str]
    colored_by: str
    above: tuple[str, str]
    below: tuple[str, str] | None
    of: str = "completion"
    reward: str = "reward"


ROLLOUTS = Legend(
    {"log_probs": "log p", "advantages": "advantage"},
    "advantages",
    (GREEN, "better than its group"),
    (RED, "worse"),
)


def record(
    step: int,
    group: int,
    prompt: str,
    tokens: Sequence[str],
    mask: Sequence[bool],
    values: Mapping[str, Sequence[float]],
    reward: float,
    rewards: dict[str, float | None],
    finished: bool,
) -> Record:
    """A rollout as a line has it. values: the numbers of each token, as a legend names them."""
    return {
        "step": step,
        "group": group,
        "prompt": prompt,
        "tokens": list(tokens),
        "mask": [bool(x) for x in mask],
        **{name: [round(float(x), 5) for x in numbers] for name, numbers in values.items()},
        "reward": round(float(reward), 6),
        "rewards": rewards,
        "finished": finished,
    }


def read_rollouts(path: Path) -> list[Record]:
    """The rollouts of a file; DataError for a line that is none. A missing file has none.

    A last line that a killed run has left unfinished is left out.
    """
    *lines, _unfinished = path.read_text("utf-8").split("\n") if path.is_file() else [""]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            complete = all(name in row for name in (*NEEDED, *ROLLOUTS.values))
        except (ValueError, TypeError):
            complete = False
        if not complete:
            raise DataError(f"{path}:{number}: not a rollout; correct or delete the line")
        found.append(row)
    return found


def write_rollouts(path: Path, records: Iterable[Record]) -> None:
    """Replace a file by these rollouts."""
    with atomic_write(path) as file:
        file.writelines(_line(row) for row in records)


def append_rollouts(path: Path, records: Iterable[Record]) -> None:
    """Add rollouts to a file."""
    with open(path, "ab") as file:
        file.writelines(_line(row) for row in records)


def _line(row: Record) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_both(out: Path, records: Sequence[Record], what: str, legend: Legend) -> None:
    """Write OUT/rollouts.jsonl and OUT/rollouts.html of these. what: they are, for the title."""
    write_rollouts(out / "rollouts.jsonl", records)
    write_page(out / "rollouts.html", records, f"{out.name}: {what}", legend)


def write_page(
    path: Path, records: Sequence[Record], title: str, legend: Legend = ROLLOUTS
) -> None:
    """Write the page of rollouts, the newest step first, those of a prompt in one box."""
    ordered = sorted(records, key=lambda row: (-row["step"], row["group"]))
    steps = groupby(ordered, key=lambda row: row["step"])
    body = "".join(_step(step, list(rows), legend) for step, rows in steps)
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_escape(title)}</title>"
        "<meta name=viewport content='width=device-width'>"
        f"<style>{STYLE}</style><h1>{_escape(title)}</h1><p class=key>{_key(legend)}"
        "<span class=told>told, not written</span>… cut off</p>"
        f"{body or '<p>No rollouts yet.</p>'}</html>"
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def _key(legend: Legend) -> str:
    return "".join(
        f"<span style='background: rgba({color}, .5)'>{_escape(meaning)}</span>"
        for color, meaning in filter(None, (legend.above, legend.below))
    )


def _step(step: int, rows: list[Record], legend: Legend) -> str:
    groups = groupby(rows, key=lambda row: row["group"])
    boxes = "".join(
        _group(list(group), legend, opened=i == 0) for i, (_, group) in enumerate(groups)
    )
    mean = sum(row["reward"] for row in rows) / len(rows)
    return f"<h2>step {step} · mean {legend.reward} {mean:.3f}</h2>{boxes}"


def _group(rows: list[Record], legend: Legend, opened: bool) -> str:
    names = list(rows[0].get("rewards") or {})
    head = "".join(f"<th>{_escape(name)}</th>" for name in (legend.reward, *names))
    largest = max((abs(x) for row in rows for x in row[legend.colored_by]), default=0.0) or 1.0
    lines = "".join(_row(row, names, legend, largest) for row in rows)
    mean = sum(row["reward"] for row in rows) / len(rows)
    count = f"{len(rows)} {legend.of}{'s' * (len(rows) != 1)}"
    return (
        f"<details{' open' * opened}><summary><b>{_escape(rows[0]['prompt'])}</b> · {count}, "
        f"mean {legend.reward} {mean:.3f}</summary>"
        f"<table><tr><th>{legend.of}</th>{head}</tr>{lines}</table></details>"
    )


def _row(row: Record, names: list[str], legend: Legend, largest: float) -> str:
    numbers = zip(*(row[key] for key in legend.values), strict=True)
    each = zip(row["tokens"], row["mask"], numbers, row[legend.colored_by], strict=True)
    text = "".join(
        _token(token, chosen, dict(zip(legend.values.values(), found, strict=True)),
               *_shade(value, legend, largest))
        for token, chosen, found, value in each
    )  # fmt: skip
    cut = "" if row.get("finished", True) else "<span class=cut>…</span>"
    rewards = row.get("rewards") or {}
    cells = "".join(f"<td>{_number(value)}</td>" for value in map(rewards.get, names))
    return f"<tr><td class=text>{text}{cut}</td><td>{_number(row['reward'])}</td>{cells}</tr>"


def _shade(value: float, legend: Legend, largest: float) -> tuple[str, float]:
    """The color of a token and how strong it is."""
    color, _ = legend.above if value > 0 or legend.below is None else legend.below
    return color, 0.6 * abs(value) / largest


def _token(
    text: str, chosen: bool, numbers: Mapping[str, float], color: str, strength: float
) -> str:
    shown = _escape(text) or "∅"
    if not chosen:
        return f"<span class=told title='told'>{shown}</span>"
    title = _escape(", ".join(f"{name} {number:+.3f}" for name, number in numbers.items()))
    return f"<span style='background: rgba({color}, {strength:.2f})' title='{title}'>{shown}</span>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
