"""What all recipes share: a model, its optimizer, its history, and how they are saved.

A recipe says what one step learns from (`update`) and how the model is judged (`evaluate`). It is
a value that can be saved: everything that a later step depends on is in its checkpoint, and one
restored from there computes the same bits as one that never stopped. What is only a function of the
step (learning rate, when to evaluate) is not saved. A checkpoint knows nothing of the device: what
began on one goes on, up to rounding, on another.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import minitorch as mt
from minitorch import nn, optim
from minitorch.errors import CheckpointError, MinitorchError
from minitorch.tokenizers import Tokenizer
from models import checkpoints
from models.blocks.routing import update_biases
from models.families import from_pretrained
from models.optimization import TrainingSettings, build_optimizer, build_schedule

Metrics = dict[str, float]


class DivergenceError(MinitorchError, ArithmeticError):
    """A loss or a gradient that is not finite."""


class Recipe:
    """Model, optimizer and history of a run: at step 0, or where `restore` says.

    A subclass defines `update`, and what of `evaluate`, `fingerprint`, `state`, `arrays`, `export`
    and `load_model` it has to. Of the class: `columns` are the metrics that are shown while it
    runs, with their formats; `best_by` is the metric of `evaluate` that decides which checkpoint is
    the best, `higher_is_better` which way.
    """

    columns: ClassVar[Mapping[str, str]] = {
        "train_loss": "train {:.4f}",
        "val_loss": "val {:.4f}",
    }
    best_by: ClassVar[str] = "val_loss"
    higher_is_better: ClassVar[bool] = False

    def __init__(self, config: TrainingSettings, model: nn.Module, tokenizer: Tokenizer):
        self.config = config
        self.model: Any = model.to(config.device)
        self.tokenizer = tokenizer
        self.optimizer = build_optimizer(config, self.model)
        self.scheduler = optim.LRScheduler(self.optimizer, build_schedule(config))
        self.history: dict[str, list[float]] = {}
        self.step = 0
        self.elapsed = 0.0

    def update(self) -> Metrics:
        """Learn once; what it was like, by name: "loss", and "tokens", the number learnt from.

        Metrics that do not apply to a step are left out. Raises DivergenceError before the weights
        are spoilt.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define update()")

    def evaluate(self, stop: Callable[[], bool] = lambda: False) -> Metrics | None:
        """Judge the model; None where stop() said so. Changes nothing that a step depends on."""
        return {}

    @property
    def fingerprint(self) -> Any:
        """Two sets of data that differ differ in this; JSON can hold it."""
        return None

    def state(self) -> dict[str, Any]:
        """What a later step depends on besides model, optimizer and random numbers, for JSON."""
        return {}

    def arrays(self) -> dict[str, np.ndarray]:
        """The same, of arrays."""
        return {}

    def export(self, folder: Path) -> None:
        """Write the model and its tokenizer under the names that Hugging Face uses."""
        self.model.save_pretrained(folder)
        self.tokenizer.save(folder / "tokenizer.json")

    def load_model(self, saved: checkpoints.Checkpoint) -> None:
        """Take the weights that `export` wrote."""
        self.model.load_state_dict(from_pretrained(saved.path).state_dict())

    def train_step(self) -> Metrics:
        """One step; returns what `update` did."""
        self.model.train()
        metrics = self.update()
        update_biases(self.model)
        self.scheduler.step()
        for name in {**self.history, **metrics}:
            earlier = self.history.setdefault(name, [math.nan] * self.step)
            earlier.append(metrics.get(name, math.nan))
        self.step += 1
        return metrics

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return self.history.get("loss", [])

    @property
    def learning_rate(self) -> float:
        """That of the step to come; Muon's is in proportion."""
        return self.config.learning_rate * self.scheduler.schedule(self.step)

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Within the block the model computes in the precision of the run."""
        name = self.config.precision
        return contextlib.nullcontext() if name == "float32" else mt.autocast(name)

    def descend(self, loss: float) -> float:
        """Change the weights by the gradients that are there; returns the gradients' norm.

        loss: what the gradients are of. Raises DivergenceError, and changes nothing, where it or
        the norm is not finite.
        """
        norm, scale = self.clipping()
        self.check(loss, norm.item())
        self.optimizer.step(scale)
        return norm.item()

    def clipping(self) -> tuple[mt.Tensor, mt.Tensor]:
        """The norm of the gradients, and the factor that clips them to grad_clip."""
        max_norm = self.config.grad_clip or math.inf
        return optim.clip_grad_scale(self.model.parameters(), max_norm)

    def check(self, loss: float, grad_norm: float) -> None:
        """DivergenceError unless both are finite."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise DivergenceError(
                f"step {self.step + 1}: the loss is {loss:g} and the gradient's norm "
                f"{grad_norm:g}, at a learning rate of {self.learning_rate:.3g}"
            )

    def save(self, folder: Path, best: Mapping[str, Any] | None) -> Path:
        """Write a checkpoint into the folder; returns it. best: its step, to be looked up."""
        state = {
            "command": self.config.command,
            "config": dataclasses.asdict(self.config),
            "data": self.fingerprint,
            "random": mt.random.get_rng_state(),
            "elapsed": self.elapsed,
            "best": best,
            **self.state(),
        }
        parts = {"history": self.history, "optimizer": self.optimizer.state_dict()["state"]}
        arrays = checkpoints.named(parts) | self.arrays()
        return checkpoints.save(folder, self.step, state, arrays, self.export)

    def restore(self, saved: checkpoints.Checkpoint) -> None:
        """Go on from a checkpoint of this run; CheckpointError where it is of another one.

        What is in `config` stays as it is now, also where the run had something else before.
        """
        if saved.state["data"] != self.fingerprint:
            raise CheckpointError(
                f"checkpoint {saved.path}: the text has changed since: it was "
                f"{saved.state['data']}, it is {self.fingerprint}. Restore it, or start a "
                "new run with another --out"
            )
        self.load_model(saved)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": saved.part("optimizer"), "param_groups": groups})
        self.history = {name: x.tolist() for name, x in saved.part("history").items()}
        self.step, self.elapsed = saved.step, saved.state["elapsed"]
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), "last_step": self.step})
        mt.random.set_rng_state(saved.state["random"])
