"""A training run on a text: what it consists of, one step of it, and its evaluation.

One step, for the micro-batches b of one batch with n_b tokens each, N = Σ n_b:

    loss = Σ_b (n_b / N) · cross-entropy(b)       so that accumulation changes nothing but memory
    g    = ∇ loss, scaled to a norm of at most grad_clip
    w    = optimizer(w, g, lr(step))
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import minitorch as mt
from minitorch import optim
from minitorch.backend import DEFAULT_FLOAT
from minitorch.data import BatchLoader, sequential_batches
from models import checkpoints
from models.config import LanguageModelSettings, ModelSettings
from models.corpus import Corpus
from models.families import FAMILIES, Model
from models.recipes.recipe import DivergenceError, Metrics, Recipe


class Run(Recipe):
    """The recipe that learns to predict the next token of a text."""

    columns: ClassVar[Mapping[str, str]] = {
        **Recipe.columns,
        "bits_per_byte": "{:.3f} bits/byte",
    }
    config: LanguageModelSettings

    def __init__(self, config: LanguageModelSettings, corpus: Corpus, model: Model | None = None):
        """model: what to begin with; by default one of the configured size with random weights."""
        mt.manual_seed(config.seed)
        model = model or build_model(config, corpus.tokenizer.vocab_size)
        super().__init__(config, model, corpus.tokenizer)
        self.corpus = corpus
        self.ema = (
            optim.EMA(self.model.parameters(), config.ema_decay) if config.ema_decay else None
        )
        self.loader = BatchLoader(corpus.train, config.batch_size, config.block_size, config.seed)
        self._graph = self._graphed()

    def update(self) -> Metrics:
        """One optimizer step; the loss before it is in nats per token."""
        ids, targets = map(mt.from_numpy, self.batches())
        if self._graph is not None:
            found, norm = self._graph(ids, targets)
            loss, grad_norm = found.item(), norm.item()
            self.check(loss, grad_norm)
        else:
            here = self.config.device
            loss = self._gradient(ids.to(here), targets.to(here)).item()
            grad_norm = self.descend(loss)
        if self.ema is not None:
            self.ema.update()
        return {"loss": loss, "grad_norm": grad_norm, "tokens": targets.numel()}

    def batches(self) -> tuple[np.ndarray, np.ndarray]:
        """What the next step learns from: ids and targets, (micro-batches, batch, time)."""
        found = [next(self.loader) for _ in range(self.config.gradient_accumulation)]
        ids, targets = (np.stack(arrays) for arrays in zip(*found, strict=True))
        return ids, targets

    def _graphed(self) -> mt.cuda.GraphedStep | None:
        """Gradient and update as a CUDA graph: on a GPU, where the optimizer can be part of it."""
        config = self.config
        if config.device != "cuda" or not config.cuda_graph or not self.optimizer.capturable:
            return None

        def update(ids: mt.Tensor, targets: mt.Tensor) -> tuple[mt.Tensor, mt.Tensor]:
            loss = self._gradient(ids, targets)
            norm, scale = self.clipping()
            self.optimizer.step(scale)
            return loss, norm

        return mt.cuda.GraphedStep(update)

    def _gradient(self, ids: mt.Tensor, targets: mt.Tensor) -> mt.Tensor:
        """Fill the gradients; the loss.

        ids, targets: (micro-batches, batch, time), on the device.
        """
        self.optimizer.zero_grad()
        losses = []
        for part, wanted in zip(ids, targets, strict=True):
            loss = self.objective(part, wanted) * (wanted.numel() / targets.numel())
            loss.backward()
            losses.append(loss.detach())
        return sum(losses[1:], start=losses[0])

    def objective(self, ids: mt.Tensor, targets: mt.Tensor) -> mt.Tensor:
        """What a step makes smaller, on a micro-batch, in the precision of the run."""
        with self.precision():
            return self.model.loss(ids, targets)

    def evaluate(self, stop: Callable[[], bool] = lambda: False) -> Metrics | None:
        """The mean loss on the validation text, in nats per token and bits per byte.

        With an average of the weights where there is one.
        """
        with self.averaged_weights():
            loss = self.validation_loss(self.model, stop)
        if loss is None:
            return None
        if not math.isfinite(loss):
            raise DivergenceError(f"step {self.step}: the validation loss is {loss:g}")
        return {
            "val_loss": loss,
            "bits_per_byte": loss / math.log(2) * self.corpus.tokens_per_byte,
        }

    def validation_loss(
        self, model: Model, stop: Callable[[], bool] = lambda: False
    ) -> float | None:
        """A model's mean loss on the validation text, in nats per token; None if stopped."""
        model.eval()
        total = tokens = 0.0
        with mt.no_grad(), self.precision():
            for ids, targets in sequential_batches(
                self.corpus.validation,
                self.config.batch_size,
                self.config.block_size,
                self.config.eval_tokens or None,
            ):
                if stop():
                    return None
                batch = (mt.from_numpy(x).to(self.config.device) for x in (ids, targets))
                total += model.loss(*batch).item() * targets.size
                tokens += targets.size
        return total / tokens

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within the block the model has the weights to evaluate, sample with and export."""
        return contextlib.nullcontext() if self.ema is None else self.ema.applied()

    @property
    def fingerprint(self) -> dict[str, int]:
        """That of the text."""
        return self.corpus.fingerprint

    def state(self) -> dict[str, Any]:
        """The position in the text."""
        return {"position": self.loader.state_dict()}

    def arrays(self) -> dict[str, np.ndarray]:
        """The average of the weights, and the weights: those of the exported model are averaged."""
        if self.ema is None:
            return {}
        weights = dict(self.model.named_parameters())
        return checkpoints.named({"ema": self.ema.state_dict(), "weights": weights})

    def export(self, folder: Path) -> None:
        """Write the model and its tokenizer under the names that Hugging Face uses."""
        with self.averaged_weights():
            super().export(folder)

    def restore(self, saved: checkpoints.Checkpoint) -> None:
        """Go on from a checkpoint of this run; CheckpointError where it is of another one."""
        super().restore(saved)
        if self.ema is not None:
            self.ema.load_state_dict(saved.part("ema"))
            self.model.load_state_dict(saved.part("weights"), strict=False)
        self.loader.load_state_dict(saved.state["position"])
        self._graph = self._graphed()


def build_model(config: ModelSettings, vocab_size: int) -> Model:
    """A model of the configured family and size with random weights."""
    sizes = FAMILIES[config.model].sized(
        vocab_size=vocab_size,
        positions=config.block_size,
        width=config.n_embd,
        layers=config.n_layer,
        heads=config.n_head,
        dropout=config.dropout,
        bias=config.bias,
    )
    return sizes.build(DEFAULT_FLOAT, None)
