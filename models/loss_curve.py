"""The picture of a training run: training and validation loss over the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitorch.io import atomic_write

TRAINING, VALIDATION = "#4878a8", "#c44e52"


def draw_loss_curve(
    path: Path, losses: Sequence[float], rows: Sequence[dict[str, Any]], *, title: str, unit: str
) -> None:
    """Write a PNG of both curves.

    losses: the training loss of every step, drawn faintly, and averaged between evaluations.
    rows: those of the log. unit: what the losses are measured in.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(losses) + 1), losses, color=TRAINING, alpha=0.25, linewidth=0.7)
    steps = [row["step"] for row in rows]
    for name, key, color in (
        ("training", "train_loss", TRAINING),
        ("validation", "val_loss", VALIDATION),
    ):
        values = [row[key] for row in rows]
        label = f"{name}, {values[-1]:.3f} at the end" if values else name
        axes.plot(steps, values, color=color, marker="o", markersize=3.5, label=label)
    if rows:
        best = min(rows, key=lambda row: row["val_loss"])
        axes.annotate(
            f"{best['val_loss']:.3f}",
            (best["step"], best["val_loss"]),
            xytext=(0, -12),
            textcoords="offset points",
            ha="center",
            va="top",
            color=VALIDATION,
        )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss ({unit})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(losses) >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(0, max(len(losses), 1))
    axes.margins(y=0.1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
