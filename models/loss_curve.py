"""The picture of a training run: training and validation loss over the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.picture import picture

TRAINING, VALIDATION = "#4878a8", "#c44e52"


def draw_loss_curve(
    path: Path, losses: Sequence[float], rows: Sequence[dict[str, Any]], *, title: str, unit: str
) -> None:
    """Write a PNG of both curves.

    losses: the training loss of every step, drawn faintly, and smoothed.
    rows: those of the log, of which those without a "val_loss" are left out. unit: what the losses
    are measured in.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    with picture(path, 8, 4.5) as axes:
        steps = np.arange(1, len(losses) + 1)
        axes.plot(steps, losses, color=TRAINING, alpha=0.25, linewidth=0.7)
        axes.plot(steps, _smooth(np.asarray(losses)), color=TRAINING, label="training, smoothed")
        rows = [row for row in rows if "val_loss" in row]
        if rows:
            last, best = rows[-1], min(rows, key=lambda row: row["val_loss"])
            label = f"validation, {last['val_loss']:.3f} at the end"
            if best is not last:
                label += f", {best['val_loss']:.3f} at best"
            axes.plot(
                [row["step"] for row in rows],
                [row["val_loss"] for row in rows],
                color=VALIDATION,
                marker="o",
                markersize=3.5,
                label=label,
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


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean of each value's neighbourhood, 2 % of them all or 20, cut off at the ends."""
    reach = max(len(values) // 100, 10)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
