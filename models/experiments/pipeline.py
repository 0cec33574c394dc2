"""How the experiments on pipelines run: in a folder that goes away."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
