"""What pipelines share: stages that train are measured, and each is a row of the table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.pipelines.stages import Stages
from models.recipes.recipe import Recipe


class Pipeline:
    """A pipeline at work. A subclass defines `run` and `measure`; folders are of checkpoints."""

    def __init__(self, config: Any, stages: Stages):
        self.config, self.stages = config, stages
        self.table: list[dict[str, Any]] = []

    def train(self, variant: str, stage: str, make: Callable[[], Recipe]) -> Path:
        """The checkpoint of a stage, which is measured too: a row of the table."""
        folder = self.stages.train(stage, make)
        found = self.stages.measured(stage, lambda: self.measure(folder))
        self.table.append({"variant": variant, **found})
        return folder

    def measure(self, model: Path) -> dict[str, Any]:
        """A row of the table."""
        raise NotImplementedError(f"{type(self).__name__} does not define measure()")
