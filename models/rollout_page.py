"""Rollouts to be read: one JSON object a line, and a page that shows them.

    {"step": 20, "group": 3, "prompt": "27+85=", "tokens": ["2", "1", "1", "<|endoftext|>"],
     "mask": [true, ...], "log_probs": [...], "advantages": [...], "reward": 1.0,
     "rewards": {"exact": 1.0}, "finished": true}

On the page a token is green where it is to become likelier and red where rarer, the more the
greater its advantage; what the model was told is grey and crossed by lines. Held over a token, the
pointer shows its log-probability and advantage. The page is one file and needs no network.
"""

import html
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from minitorch.errors import DataError
from minitorch.io import atomic_write

Record = dict[str, Any]
NEEDED = ("step", "group", "prompt", "tokens", "mask", "log_probs", "advantages", "reward")

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

UP, DOWN = "34, 160, 80", "215, 60, 60"


def record(
    step: int,
    group: int,
    prompt: str,
    tokens: Sequence[str],
    mask: Sequence[bool],
    log_probs: Sequence[float],
    advantages: Sequence[float],
    reward: float,
    rewards: dict[str, float | None],
    finished: bool,
) -> Record:
    """A rollout as a line has it."""
    return {
        "step": step,
        "group": group,
        "prompt": prompt,
        "tokens": list(tokens),
        "mask": [bool(x) for x in mask],
        "log_probs": [round(float(x), 5) for x in log_probs],
        "advantages": [round(float(x), 5) for x in advantages],
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
            complete = all(name in row for name in NEEDED)
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


def write_page(path: Path, records: Sequence[Record], title: str) -> None:
    """Write the page of rollouts, the newest step first, those of a prompt in one box."""
    ordered = sorted(records, key=lambda row: (-row["step"], row["group"]))
    steps = groupby(ordered, key=lambda row: row["step"])
    body = "".join(_step(step, list(rows)) for step, rows in steps)
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_escape(title)}</title>"
        "<meta name=viewport content='width=device-width'>"
        f"<style>{STYLE}</style><h1>{_escape(title)}</h1><p class=key>"
        f"<span style='background: rgba({UP}, .5)'>better than its group</span>"
        f"<span style='background: rgba({DOWN}, .5)'>worse</span>"
        "<span class=told>told, not written</span>… cut off</p>"
        f"{body or '<p>No rollouts yet.</p>'}</html>"
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def _step(step: int, rows: list[Record]) -> str:
    groups = groupby(rows, key=lambda row: row["group"])
    boxes = "".join(_group(list(group), opened=i == 0) for i, (_, group) in enumerate(groups))
    mean = sum(row["reward"] for row in rows) / len(rows)
    return f"<h2>step {step} · mean reward {mean:.3f}</h2>{boxes}"


def _group(rows: list[Record], opened: bool) -> str:
    names = list(rows[0].get("rewards") or {})
    head = "".join(f"<th>{_escape(name)}</th>" for name in ("reward", *names))
    largest = max((abs(a) for row in rows for a in row["advantages"]), default=0.0) or 1.0
    lines = "".join(_row(row, names, largest) for row in rows)
    mean = sum(row["reward"] for row in rows) / len(rows)
    return (
        f"<details{' open' * opened}><summary><b>{_escape(rows[0]['prompt'])}</b> · {len(rows)} "
        f"completions, mean reward {mean:.3f}</summary>"
        f"<table><tr><th>completion</th>{head}</tr>{lines}</table></details>"
    )


def _row(row: Record, names: list[str], largest: float) -> str:
    each = zip(row["tokens"], row["mask"], row["log_probs"], row["advantages"], strict=True)
    text = "".join(_token(*token, largest) for token in each)
    cut = "" if row.get("finished", True) else "<span class=cut>…</span>"
    rewards = row.get("rewards") or {}
    cells = "".join(f"<td>{_number(value)}</td>" for value in map(rewards.get, names))
    return f"<tr><td class=text>{text}{cut}</td><td>{_number(row['reward'])}</td>{cells}</tr>"


def _token(text: str, chosen: bool, log_prob: float, advantage: float, largest: float) -> str:
    shown = _escape(text) or "∅"
    if not chosen:
        return f"<span class=told title='told'>{shown}</span>"
    color, strength = UP if advantage > 0 else DOWN, 0.6 * abs(advantage) / largest
    title = f"log p {log_prob:.3f}, advantage {advantage:+.3f}"
    return f"<span style='background: rgba({color}, {strength:.2f})' title='{title}'>{shown}</span>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
