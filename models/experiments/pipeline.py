"""How the experiments on pipelines run, in a folder that goes away, and how they are drawn."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from models.experiments.experiment import Row
from models.pipelines.stages import Stages


def in_passing(pipeline: Callable[[Any, Stages], list[Row]]) -> Callable[..., list[Row]]:
    """The pipeline as `Experiment.run`, with its stages nowhere."""

    def run(setup: Any, seed: int, console: Console) -> list[Row]:
        config = type(setup)(**{**vars(setup), "seed": seed})
        with tempfile.TemporaryDirectory() as folder:
            return pipeline(config, Stages(Path(folder), config, console))

    return run


def bars_of_stages(*columns: str) -> Callable[[Axes, Sequence[Row]], None]:
    """`Experiment.draw`: a group of bars for each stage, of shares. None, where there is none."""

    def draw(axes: Axes, rows: Sequence[Row]) -> None:
        places, width = np.arange(len(rows)), 0.8 / len(columns)
        for i, column in enumerate(columns):
            heights = [row[column] or 0.0 for row in rows]
            left = places + width * (i - (len(columns) - 1) / 2)
            axes.bar(left, heights, width, label=column)
        axes.set_xticks(places, [row["variant"] for row in rows], rotation=30, ha="right")
        axes.set_ylabel("share")
        axes.set_ylim(0, 1.2)
        axes.legend(frameon=False, ncols=len(columns), loc="upper center", fontsize=8)

    return draw
