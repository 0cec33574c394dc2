"""Looking at the tape: a picture of it, what it keeps, and where time and bytes go.

    graph(y)           the operations behind y, as SVG; shows itself in a notebook
    saved(y)           what each of them keeps for its derivative, in bytes
    with profile() as p: ...    time and bytes of every operation and of every derivative

Where a NaN comes from is `minitorch.detect_anomaly`.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from minitorch import autograd, modes
from minitorch.errors import GraphError, ShapeError
from minitorch.io import atomic_write
from minitorch.tape import OUT, Node, Recomputed
from minitorch.tensor import Tensor

_LARGEST_PICTURE = 2000  # nodes
_COLOURS = {
    "leaf": "#d9ead3",
    "elementwise": "#dbe8f8",
    "linear": "#fdebd0",
    "bilinear": "#f8d9d6",
    "general": "#e8dff5",
    "fused": "#fff2b8",
}
_BOX, _GAP, _LAYER = 150, 24, 74  # width of a box, space beside it, height of a layer


@dataclass(frozen=True)
class Graph:
    """A picture of a tape. In a notebook it shows itself; `save` writes it."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike) -> None:
        """Write the SVG, whole or not at all."""
        with atomic_write(path, "w") as file:
            file.write(self.svg)


def graph(t: Tensor) -> Graph:
    """The operations that t was computed from: the result at the bottom, leaves at the top.

    A box is an operation with the shape of its result, coloured by the structure of its Jacobian;
    a box with round corners is a leaf that receives a gradient. Raises GraphError for a tensor
    that is on no tape, and ShapeError for a tape too large to be looked at.
    """
    nodes = _nodes("graph", t)
    if len(nodes) > _LARGEST_PICTURE:
        raise ShapeError(
            f"graph: {len(nodes)} operations are too many for a picture (at most "
            f"{_LARGEST_PICTURE}); draw a smaller part of the computation"
        )
    items: list[Node | Tensor] = list(reversed(nodes))
    leaves = {id(e): e for n in nodes for e in n.edges if isinstance(e, Tensor)}
    items = [*leaves.values(), *items]
    edges = [(id(e), id(n)) for n in nodes for e in n.edges if e is not None]
    places = _places(items, edges)
    return Graph(_draw(items, edges, places))


def _nodes(operation: str, t: Tensor) -> list[Node]:
    if t.grad_fn is None:
        raise GraphError(f"{operation}: this tensor was not computed by a recorded operation")
    return autograd.ancestors([t.grad_fn])


def _places(
    items: list[Node | Tensor], edges: list[tuple[int, int]]
) -> dict[int, tuple[float, int]]:
    """x and layer of each item: as low as its users allow, and below what it was computed from.

    Within a layer boxes are ordered by the mean position of their neighbours above, so that few
    edges cross (the barycentre heuristic of Sugiyama et al. 1981).
    """
    above: dict[int, list[int]] = {id(item): [] for item in items}
    below: dict[int, list[int]] = {id(item): [] for item in items}
    for start, end in edges:
        above[end].append(start)
        below[start].append(end)
    layer: dict[int, int] = {}
    for item in items:
        layer[id(item)] = 1 + max((layer[key] for key in above[id(item)]), default=-1)
    for item in items:
        if isinstance(item, Tensor):
            layer[id(item)] = min(layer[key] for key in below[id(item)]) - 1
    rows: dict[int, list[int]] = {}
    for item in items:
        rows.setdefault(layer[id(item)], []).append(id(item))
    x: dict[int, float] = {}
    for depth in sorted(rows):
        row = rows[depth]

        def centre(key: int) -> float:
            known = [x[k] for k in above[key] if k in x]
            return sum(known) / len(known) if known else float("inf")

        row.sort(key=centre)
        for i, key in enumerate(row):
            x[key] = (i - (len(row) - 1) / 2) * (_BOX + _GAP)
    return {key: (x[key], layer[key]) for key in x}


def _draw(
    items: list[Node | Tensor],
    edges: list[tuple[int, int]],
    places: dict[int, tuple[float, int]],
) -> str:
    first = min(layer for _, layer in places.values())
    left = min(x for x, _ in places.values()) - _BOX - _GAP
    right = max(x for x, _ in places.values()) + _BOX + _GAP
    height = (max(layer for _, layer in places.values()) - first + 1) * _LAYER
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{right - left:.0f}" height="{height}" '
        f'viewBox="{left:.0f} 0 {right - left:.0f} {height}" font-family="sans-serif" '
        'font-size="12" text-anchor="middle">',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="3" orient="auto">'
        '<path d="M0,0 L7,3 L0,6 z" fill="#888"/></marker></defs>',
    ]
    for start, end in edges:
        (x1, layer1), (x2, layer2) = places[start], places[end]
        y1, y2 = (layer1 - first) * _LAYER + 52, (layer2 - first) * _LAYER + 9
        # An edge that passes other layers swings out, so that it does not run behind their boxes.
        swing = 0 if layer2 - layer1 == 1 else -_BOX if x1 < x2 else _BOX
        bend = min((y2 - y1) / 2, _LAYER)
        parts.append(
            f'<path d="M{x1:.0f},{y1} C{x1 + swing:.0f},{y1 + bend:.0f} '
            f'{x2 + swing:.0f},{y2 - bend:.0f} {x2:.0f},{y2}" '
            'fill="none" stroke="#888" marker-end="url(#tip)"/>'
        )
    for item in items:
        x, layer = places[id(item)]
        leaf = isinstance(item, Tensor)
        if isinstance(item, Tensor):
            name, kind, shape, dtype = "leaf", "leaf", item.shape, item.dtype
        else:
            name, kind = item.name, item.primitive.structure
            shape, dtype = item.out_shape, item.out_dtype
        top = (layer - first) * _LAYER + 10
        parts.append(
            f'<rect x="{x - _BOX / 2:.0f}" y="{top}" width="{_BOX}" height="42" '
            f'rx="{20 if leaf else 4}" fill="{_COLOURS.get(kind, "#eee")}" stroke="#666"/>'
            f'<text x="{x:.0f}" y="{top + 18}" font-weight="bold">{escape(_short(name))}</text>'
            f'<text x="{x:.0f}" y="{top + 34}" fill="#444">{escape(_shape(shape, dtype))}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"


def _shape(shape: tuple[int, ...], dtype: Any) -> str:
    return f"{'×'.join(map(str, shape)) or 'scalar'} {dtype}"


@dataclass(frozen=True)
class Kept:
    """What one operation keeps. bytes: of arrays that no operation before it keeps too.

    A checkpoint is a row as well: it keeps the tensors that its function was given. Its shape is
    that of the first.
    """

    operation: str
    shape: tuple[int, ...]
    kept: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class SavedReport:
    """What a tape keeps for its derivatives, operation by operation, the first computed first."""

    rows: list[Kept]

    @property
    def total(self) -> int:
        """Bytes, each array counted once. Arrays that a checkpoint will recompute count nothing."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        lines = [f"{'operation':24}{'result':>20}{'bytes':>14}  keeps"]
        for row in self.rows:
            shape = "×".join(map(str, row.shape)) or "scalar"
            lines.append(
                f"{row.operation:24}{shape:>20}{row.bytes:>14,}  {', '.join(row.kept) or '-'}"
            )
        return "\n".join([*lines, f"{'total':24}{'':20}{self.total:>14,}"])


def saved(t: Tensor) -> SavedReport:
    """What the tape behind t keeps. Parameters are counted where they are first kept.

    Of a checkpoint's function, what it was given counts, but not what it closes over.
    """
    seen: set[int] = set()
    segments: set[int] = set()
    rows = []

    def new(array: np.ndarray) -> int:
        """The bytes of an array that was not counted yet."""
        owner = array if array.base is None else array.base
        if id(owner) in seen:
            return 0
        seen.add(id(owner))
        return array.nbytes

    for node in reversed(_nodes("saved", t)):
        kept, size = [], 0
        entries = [
            ("result" if position == OUT else _input_name(node, position), entry)
            for position, entry in node.saved.items()
        ]
        for name, entry in [*entries, *(node.extras or {}).items()]:
            array = entry[0] if isinstance(entry, tuple) else entry
            if isinstance(array, Recomputed):
                kept.append(f"{name} (recomputed)")
                given = array.segment.given
                if given is not None and id(array.segment) not in segments:
                    segments.add(id(array.segment))
                    rows.append(
                        Kept(
                            "checkpoint",
                            given[0].shape if given else (),
                            ("its inputs",) if given else (),
                            sum(new(x.data) for x in given),
                        )
                    )
            elif isinstance(array, np.ndarray):
                kept.append(name)
                size += new(array)
        rows.append(Kept(node.name, node.out_shape, tuple(kept), size))
    return SavedReport(rows)


def _input_name(node: Node, position: int) -> str:
    names = node.primitive.inputs
    return names[position] if position < len(names) else f"input {position}"


@dataclass
class Event:
    """One operation, or one derivative (phase "backward"): start and length in seconds."""

    name: str
    phase: str
    start: float
    seconds: float
    bytes: int


@dataclass
class Profile:
    """What ran in a `profile` block."""

    events: list[Event] = field(default_factory=list)

    def call(self, primitive: Any, inputs: Any, meta: Any, run: Callable[[], Tensor]) -> Tensor:
        """One operation; see minitorch.modes.observe."""
        start = time.perf_counter()
        out = run()
        self._note(primitive.name, "forward", start, 0 if out._is_view else out.data.nbytes)
        return out

    def sweep(self, node: Node, run: Callable[[], Any]) -> Any:
        """One derivative; see minitorch.modes.observe."""
        start = time.perf_counter()
        gradients = run()
        size = sum(g.data.nbytes for g in gradients if g is not None)
        self._note(node.name, "backward", start, size)
        return gradients

    def _note(self, name: str, phase: str, start: float, size: int) -> None:
        self.events.append(Event(name, phase, start, time.perf_counter() - start, size))

    def summary(self) -> list[tuple[str, str, int, float, int]]:
        """(operation, phase, calls, seconds, bytes of results), the longest first."""
        totals: dict[tuple[str, str], list[float]] = {}
        for event in self.events:
            row = totals.setdefault((event.name, event.phase), [0, 0.0, 0])
            row[0] += 1
            row[1] += event.seconds
            row[2] += event.bytes
        rows = [
            (name, phase, int(calls), seconds, int(size))
            for (name, phase), (calls, seconds, size) in totals.items()
        ]
        return sorted(rows, key=lambda row: -row[3])

    def table(self) -> str:
        """The summary as text."""
        whole = sum(event.seconds for event in self.events) or 1.0
        lines = [f"{'operation':32}{'phase':10}{'calls':>7}{'ms':>10}{'share':>8}{'bytes':>16}"]
        for name, phase, calls, seconds, size in self.summary():
            lines.append(
                f"{name:32}{phase:10}{calls:>7}{1e3 * seconds:>10.2f}{seconds / whole:>8.1%}"
                f"{size:>16,}"
            )
        return "\n".join(lines)

    __str__ = table

    def save_chrome_trace(self, path: str | os.PathLike) -> None:
        """Write the events for chrome://tracing or ui.perfetto.dev."""
        origin = min((event.start for event in self.events), default=0.0)
        trace = [
            {
                "name": event.name,
                "cat": event.phase,
                "ph": "X",
                "ts": 1e6 * (event.start - origin),
                "dur": 1e6 * event.seconds,
                "pid": 0,
                "tid": event.phase,
                "args": {"bytes": event.bytes},
            }
            for event in self.events
        ]
        with atomic_write(path, "w") as file:
            json.dump({"traceEvents": trace, "displayTimeUnit": "ms"}, file)


@contextmanager
def profile() -> Iterator[Profile]:
    """Record time and bytes of every operation in the block, and of every derivative."""
    with modes.observe(Profile()) as result:
        yield result
