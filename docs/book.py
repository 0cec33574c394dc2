"""What the cells of the chapters share: tables, pictures of Jacobians, compiling, timing."""

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

SIGNED = LinearSegmentedColormap.from_list(
    "signed", [(0.12, 0.42, 0.65, 1), (0.5, 0.6, 0.7, 0), (0.85, 0.35, 0.1, 1)]
)
"""Negative blue, positive orange, and zero as nothing, so that it suits a light and a dark page."""


class table:
    """Rows under headings: an HTML table in a notebook and in the book, aligned text elsewhere.

    headings: one a column. They and the rows hold strings, or numbers, shown to three digits.
    """

    def __init__(self, headings: Sequence[Any], rows: Sequence[Sequence[Any]]):
        self.headings = [_show(heading) for heading in headings]
        self.rows = [[_show(value) for value in row] for row in rows]

    def __repr__(self) -> str:
        columns = zip(self.headings, *self.rows, strict=True)
        widths = [max(map(len, column)) for column in columns]
        return "\n".join(
            "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()
            for row in [self.headings, *self.rows]
        )

    def _repr_html_(self) -> str:
        numeric = [all(map(_NUMBER.fullmatch, column)) for column in zip(*self.rows, strict=True)]
        kinds = [' class="number"' if kind else "" for kind in numeric]
        head = _cells("th", self.headings, kinds)
        body = "".join(f"<tr>{_cells('td', row, kinds)}</tr>" for row in self.rows)
        return (
            '<div class="table-wrapper docutils container"><table class="docutils measured">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


_NUMBER = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?\D{0,3})|inf|nan")


def _cells(tag: str, values: list[str], kinds: list[str]) -> str:
    return "".join(
        f"<{tag}{kind}>{escape(value)}</{tag}>" for value, kind in zip(values, kinds, strict=True)
    )


def _show(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.3g}"
    return str(value)


def heatmap(matrix: Any, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw a matrix, (rows, columns), with zero invisible and the same scale for both signs."""
    matrix = np.asarray(matrix, dtype=float)
    if ax is None:
        _, ax = plt.subplots(figsize=(2.6, 2.6))
    limit = np.abs(matrix[np.isfinite(matrix)]).max(initial=0) or 1
    ax.imshow(matrix, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="none", aspect="equal")
    ax.set(title=title, xticks=[], yticks=[])
    ax.spines[["top", "right"]].set_visible(True)
    return ax


def compiled(name: str, *flags: str) -> ctypes.CDLL | None:
    """docs/kernels/`name` as a library, for this processor; None where there is no C++ compiler.

    The compiler is CXX, or the first of the usual names. Its errors are raised as RuntimeError.
    """
    asked = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    compilers = [words for words in map(shlex.split, asked) if shutil.which(words[0])]
    if not compilers:
        return None
    source = Path(__file__).parent / "kernels" / name
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library.so"
        options = ["-std=c++20", "-O3", *flags, "-shared", "-fPIC", str(source), "-o", str(library)]
        for processor in (["-march=native"], ["-mcpu=native"], []):
            done = subprocess.run(
                [*compilers[0], *processor, *options], capture_output=True, text=True
            )
            if done.returncode == 0:
                return ctypes.CDLL(str(library))
        raise RuntimeError(f"{shlex.join(compilers[0])} does not compile {name}:\n{done.stderr}")


def fastest(run: Callable[[], object], budget: float = 0.1) -> float:
    """Seconds of the fastest of several calls, which are repeated until the budget is spent.

    The fastest, since what disturbs a call, other programs, say, only ever makes it slower.
    """
    seconds: list[float] = []
    while sum(seconds) < budget:
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
