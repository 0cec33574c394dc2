"""The stages of a pipeline: each has a folder of its own, and what is done is not done again.

    OUT/config.toml            the settings of the pipeline
    OUT/STAGE/checkpoints/     a recipe that trains, as `models.recipes.loop` saves it
    OUT/STAGE/rows.jsonl       rows that a stage wrote
    OUT/STAGE/measured.json    what a stage measured

A stage is a name and a function that is called only where the stage is not done. A recipe that was
stopped goes on from its last checkpoint; rows and measurements are files that are whole or absent.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from minitorch.errors import ConfigError
from minitorch.io import atomic_write, read_json, write_json
from models import checkpoints
from models.display import display
from models.options import Settings, read_toml
from models.recipes.loop import Stopped, fit
from models.recipes.recipe import Recipe
from models.runlog import RunLog

DONE = "done.json"


class Stages:
    """The folder of a pipeline, what it shows, and when it stops.

    stop() is asked between steps and between stages; once it is true, Stopped is raised and all
    that was done is saved. Raises ConfigError for a folder that was begun with other settings.
    """

    def __init__(
        self,
        out: Path,
        config: Settings,
        console: Console,
        stop: Callable[[], bool] = lambda: False,
    ):
        self.out, self.console, self.stop = out, console, stop
        out.mkdir(parents=True, exist_ok=True)
        _take_settings(out / "config.toml", config)

    def train(self, name: str, make: Callable[[], Recipe]) -> Path:
        """The last checkpoint of the recipe that make() gives, trained to its last step."""
        folder = self._folder(name)
        if (folder / DONE).is_file():
            return folder / "checkpoints" / read_json(folder / DONE)["checkpoint"]
        recipe = make()
        if checkpoints.steps(folder / "checkpoints"):
            recipe.restore(checkpoints.load(checkpoints.newest(folder)))
        self.console.rule(f"{name}, from step {recipe.step}" if recipe.step else name)
        with RunLog(folder, recipe.step, recipe.best_by, recipe.higher_is_better) as log:
            show = display(self.console, recipe.step, recipe.config.steps, recipe.columns)
            try:
                path = fit(recipe, log, folder / "checkpoints", show, self.stop)
            finally:
                show.close()
        write_json(folder / DONE, {"checkpoint": path.name})
        return path

    def rows(self, name: str, make: Callable[[], Iterable[dict[str, Any]]]) -> Path:
        """The JSONL file of the rows that make() gives."""
        path = self._folder(name) / "rows.jsonl"
        if not path.is_file():
            rows = list(make())
            if not rows:
                raise ConfigError(f"{name}: no row came of it; the stage before has learnt nothing")
            with atomic_write(path) as file:
                file.writelines(f"{json.dumps(row)}\n".encode() for row in rows)
            self.console.print(f"{name}: {len(rows):,} rows")
        return path

    def measured(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What make() gives, as JSON holds it."""
        path = self._folder(name) / "measured.json"
        if not path.is_file():
            write_json(path, make())
        return read_json(path)

    def _folder(self, name: str) -> Path:
        if self.stop():
            raise Stopped(None)
        folder = self.out / name
        folder.mkdir(exist_ok=True)
        return folder


def _take_settings(path: Path, config: Settings) -> None:
    """Write the settings, or see that those that are there are the same."""
    if not path.is_file():
        config.save(path)
        return
    before = type(config).resolve(file=path, overrides=None)
    if before != config:
        ours, theirs = config.toml(), before.toml()
        other = next(f"{b}, now {a}" for a, b in zip(ours, theirs, strict=True) if a != b)
        raise ConfigError(
            f"{path.parent}: this pipeline was begun with {other}; go on with it as it was, or "
            "choose another --out"
        )


def settings_of(out: Path, kind: type[Settings]) -> Any:
    """The settings that a pipeline's folder was begun with; ConfigError where it was not."""
    return kind(**read_toml(out / "config.toml"))


def joined(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The rows of several files."""
    return (json.loads(line) for path in paths for line in path.read_text().splitlines())
