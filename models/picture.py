"""A picture written as a PNG, without a window; matplotlib is imported with the first one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minitorch.io import atomic_write


@contextlib.contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Any]:
    """Axes to draw on; at the end of the block they are the file. width, height: in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", facecolor="white")
