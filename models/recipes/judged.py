"""What recipes share that judge rows one by one: reward models, and preferences without one."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import minitorch as mt
from minitorch.tensor import Tensor
from models.checkpoints import Checkpoint
from models.recipes.data import Row, Shuffled, fingerprint
from models.recipes.post_training import PostTraining
from models.recipes.recipe import DivergenceError, Metrics


class Judged(PostTraining):
    """A recipe whose loss is a mean over items, each made of a row.

    A subclass calls `learn_from` and defines `judge`.
    """

    def learn_from(self, rows: Sequence[Row], training: Sequence[Any], validation: Any) -> None:
        """rows: all of the file. training, validation: the items that were made of them."""
        self.rows, self.training, self.validation = rows, training, validation
        count = self.config.batch_size * self.config.gradient_accumulation
        self.loader = Shuffled(len(training), count, self.config.seed)

    def judge(self, items: Sequence[Any]) -> tuple[Tensor, Metrics, list[Tensor]]:
        """The mean loss of items, what it was like ("loss", "tokens"), what blocks add to it."""
        raise NotImplementedError(f"{type(self).__name__} does not define judge()")

    def update(self) -> Metrics:
        """One optimizer step on the next items."""
        chosen = [self.training[i] for i in next(self.loader)]
        parts = self._parts(chosen)
        self.optimizer.zero_grad()
        found: list[Metrics] = []
        for part in parts:
            with self.precision():
                loss, metrics, extra = self.judge(part)
            (sum(extra, loss) / len(parts)).backward()
            found.append(metrics)
        mean = _means(found, [len(part) for part in parts])
        mean["tokens"] = sum(metrics["tokens"] for metrics in found)
        return {**mean, "grad_norm": self.descend(mean["loss"])}

    def evaluate(self, stop: Callable[[], bool] = lambda: False) -> Metrics | None:
        """The same of the validation items."""
        self.model.eval()
        parts = self._parts(self.validation)
        found: list[Metrics] = []
        for part in parts:
            if stop():
                return None
            with mt.no_grad(), self.precision():
                found.append(self.judge(part)[1])
        if not all(math.isfinite(metrics["loss"]) for metrics in found):
            raise DivergenceError(f"step {self.step}: the validation loss is not finite")
        means = _means(found, [len(part) for part in parts])
        return {f"val_{name}": mean for name, mean in means.items() if name != "tokens"}

    def _parts(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        size = self.config.batch_size
        return [items[start : start + size] for start in range(0, len(items), size)]

    @property
    def fingerprint(self) -> dict[str, int]:
        """That of the rows."""
        return fingerprint(self.rows)

    def state(self) -> dict[str, Any]:
        """The position in the rows."""
        return {"position": self.loader.state_dict()}

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint of this run."""
        super().restore(saved)
        self.loader.load_state_dict(saved.state["position"])


def _means(found: Sequence[Metrics], weights: Sequence[int]) -> Metrics:
    return {
        name: float(np.average([metrics[name] for metrics in found], weights=weights))
        for name in found[0]
    }
