"""The loop around every recipe: steps, evaluations, the log, checkpoints, and stopping."""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from models import checkpoints
from models.display import Display
from models.machine import ask, peak_memory
from models.recipes.recipe import Metrics, Recipe
from models.runlog import RunLog

SMOOTHING = 20  # steps over which what is displayed is averaged


class Stopped(Exception):
    """The user asked to stop; the run is saved at `checkpoint`, None before its first step."""

    def __init__(self, checkpoint: Path | None):
        super().__init__(checkpoint)
        self.checkpoint = checkpoint


def fit(
    recipe: Recipe, log: RunLog, folder: Path, display: Display, stop: Callable[[], bool]
) -> Path:
    """Train to the last step; returns the last checkpoint.

    Evaluates, logs, and saves checkpoints into the folder, all as configured. Raises Stopped once
    stop() is true and the run is saved, DivergenceError for a loss that is not finite, and
    CheckpointError where the disk is full; the checkpoints before stay, whatever happens.
    """
    config = recipe.config
    begun, seconds, tokens = time.monotonic() - recipe.elapsed, 0.0, 0.0
    while True:
        step, done = recipe.step, recipe.step == config.steps
        due = step > 0 and (done or step % config.eval_interval == 0)
        evaluated, improved = not due or log.last_step == step, False
        if not evaluated:
            found = recipe.evaluate(stop)
            recipe.elapsed = time.monotonic() - begun
            if found is not None:
                before = log.best
                row = _row(recipe, found, since=log.last_step, speed=tokens / max(seconds, 1e-9))
                log.write(row)
                display.evaluated(row)
                improved = log.best != before
                evaluated, seconds, tokens = True, 0.0, 0.0
        stopping = stop() and not (done and evaluated)
        if stopping and step == 0:
            raise Stopped(None)
        if step > 0 and (stopping or done or improved or step % config.checkpoint_interval == 0):
            path = recipe.save(folder, log.best)
            checkpoints.prune(folder, config.keep_checkpoints, log.best["step"] if log.best else 0)
            if stopping:
                raise Stopped(path)
            if done:
                return path
        started = time.perf_counter()
        metrics = recipe.train_step()
        recipe.elapsed = time.monotonic() - begun
        seconds += time.perf_counter() - started
        tokens += metrics.get("tokens", 0)
        display.step(recipe.step, _means(recipe, recipe.step - SMOOTHING), tokens / seconds)


def _row(recipe: Recipe, found: Metrics, *, since: int, speed: float) -> dict[str, Any]:
    """What the log says of an evaluation; `since` is the step of the one before."""
    means = _means(recipe, since)
    grad_norm = {"grad_norm": means.pop("grad_norm")} if "grad_norm" in means else {}
    return {
        "step": recipe.step,
        **means,
        **found,
        "learning_rate": recipe.learning_rate,
        **grad_norm,
        "tokens_per_second": speed,
        "elapsed": recipe.elapsed,
        "peak_memory": ask(peak_memory),
    }


def _means(recipe: Recipe, since: int) -> Metrics:
    """The means over the steps after `since`, of what applied to any; "loss" is "train_loss"."""
    means = {
        "train_loss" if name == "loss" else name: _mean(values[max(since, 0) :])
        for name, values in recipe.history.items()
        if name != "tokens"
    }
    return {name: mean for name, mean in means.items() if mean is not None}


def _mean(values: Iterable[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else None
