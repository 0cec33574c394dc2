"""A training run: what it consists of, one step of it, its evaluation, and the loop around them.

One step, for the micro-batches b of one batch with n_b tokens each, N = Σ n_b:

    loss = Σ_b (n_b / N) · cross-entropy(b)       so that accumulation changes nothing but memory
    g    = ∇ loss, scaled to a norm of at most grad_clip
    w    = optimizer(w, g, lr(step))

`Run` is a value that can be saved: everything that a later step depends on is in `Run.state` and
`Run.arrays`, and a run restored from them computes the same bits as one that never stopped. What
is only a function of the step (learning rate, when to evaluate) is not saved. A checkpoint knows
nothing of the device: what began on one goes on, up to rounding, on another.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import minitorch as mt
from minitorch import optim
from minitorch.backend import DEFAULT_FLOAT
from minitorch.data import BatchLoader, sequential_batches
from minitorch.errors import CheckpointError, MinitorchError
from models import checkpoints
from models.blocks.routing import update_biases
from models.config import TrainConfig
from models.corpus import Corpus
from models.display import Display
from models.families import FAMILIES, Model, from_pretrained
from models.machine import ask, peak_memory
from models.runlog import RunLog

SMOOTHING = 20  # steps over which the displayed loss is averaged


class DivergenceError(MinitorchError, ArithmeticError):
    """A loss or a gradient that is not finite."""


class Stopped(Exception):
    """The user asked to stop; the run is saved at `checkpoint`, None before its first step."""

    def __init__(self, checkpoint: Path | None):
        super().__init__(checkpoint)
        self.checkpoint = checkpoint


class Run:
    """Model, optimizer, data position and history of a run: at step 0, or where `restore` says."""

    def __init__(self, config: TrainConfig, corpus: Corpus):
        mt.manual_seed(config.seed)
        self.config = config
        self.corpus = corpus
        self.model = build_model(config, corpus.tokenizer.vocab_size).to(config.device)
        self.optimizer = build_optimizer(config, self.model)
        self.scheduler = optim.LRScheduler(self.optimizer, build_schedule(config))
        self.ema = (
            optim.EMA(self.model.parameters(), config.ema_decay) if config.ema_decay else None
        )
        self.loader = BatchLoader(corpus.train, config.batch_size, config.block_size, config.seed)
        self._graph = self._graphed()
        self.losses: list[float] = []
        self.grad_norm = 0.0
        self.elapsed = 0.0

    @property
    def step(self) -> int:
        """The number of optimizer steps done."""
        return len(self.losses)

    @property
    def tokens_per_step(self) -> int:
        """The targets that one optimizer step learns from."""
        config = self.config
        return config.batch_size * config.gradient_accumulation * config.block_size

    def train_step(self) -> float:
        """One optimizer step; returns the loss before it, in nats per token."""
        self.model.train()
        batches = [next(self.loader) for _ in range(self.config.gradient_accumulation)]
        ids, targets = (mt.from_numpy(np.stack(arrays)) for arrays in zip(*batches, strict=True))
        if self._graph is not None:
            found, norm = self._graph(ids, targets)
            scale = None
        else:
            here = self.config.device
            found, norm, scale = self._gradient(ids.to(here), targets.to(here))
        loss, self.grad_norm = found.item(), norm.item()
        if not (math.isfinite(loss) and math.isfinite(self.grad_norm)):
            raise DivergenceError(
                f"step {self.step + 1}: the loss is {loss:g} and the gradient's norm "
                f"{self.grad_norm:g}, at a learning rate of {self.learning_rate:.3g}"
            )
        if scale is not None:
            self.optimizer.step(scale)
        update_biases(self.model)
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update()
        self.losses.append(loss)
        return loss

    def _graphed(self) -> mt.cuda.GraphedStep | None:
        """Gradient and update as a CUDA graph: on a GPU, where the optimizer can be part of it."""
        config = self.config
        if config.device != "cuda" or not config.cuda_graph or not self.optimizer.capturable:
            return None

        def update(ids: mt.Tensor, targets: mt.Tensor) -> tuple[mt.Tensor, mt.Tensor]:
            loss, norm, scale = self._gradient(ids, targets)
            self.optimizer.step(scale)
            return loss, norm

        return mt.cuda.GraphedStep(update)

    def _gradient(
        self, ids: mt.Tensor, targets: mt.Tensor
    ) -> tuple[mt.Tensor, mt.Tensor, mt.Tensor]:
        """Fill the gradients; the loss, their norm, and the factor that clips them.

        ids, targets: (micro-batches, batch, time), on the device.
        """
        self.optimizer.zero_grad()
        losses = []
        for part, wanted in zip(ids, targets, strict=True):
            loss = self._mean_loss(part, wanted) * (wanted.numel() / targets.numel())
            loss.backward()
            losses.append(loss.detach())
        max_norm = self.config.grad_clip or math.inf
        norm, scale = optim.clip_grad_scale(self.model.parameters(), max_norm)
        return sum(losses[1:], start=losses[0]), norm, scale

    def _mean_loss(self, ids: mt.Tensor, targets: mt.Tensor) -> mt.Tensor:
        """The model's loss on a batch, in the precision of the run."""
        precision = self.config.precision
        with contextlib.nullcontext() if precision == "float32" else mt.autocast(precision):
            return self.model.loss(ids, targets)

    @property
    def learning_rate(self) -> float:
        """That of the step to come; Muon's is in proportion."""
        return self.config.learning_rate * self.scheduler.schedule(self.step)

    def evaluate(self, stop: Callable[[], bool] = lambda: False) -> float | None:
        """The mean loss on the validation text, in nats per token; None where stop() said so.

        With an average of the weights where there is one. Changes nothing that a later step
        depends on.
        """
        self.model.eval()
        total = tokens = 0.0
        with mt.no_grad(), self.averaged_weights():
            for ids, targets in sequential_batches(
                self.corpus.validation,
                self.config.batch_size,
                self.config.block_size,
                self.config.eval_tokens or None,
            ):
                if stop():
                    return None
                batch = (mt.from_numpy(x).to(self.config.device) for x in (ids, targets))
                total += self._mean_loss(*batch).item() * targets.size
                tokens += targets.size
        if not math.isfinite(total):
            raise DivergenceError(f"step {self.step}: the validation loss is {total / tokens:g}")
        return total / tokens

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within the block the model has the weights to evaluate, sample with and export."""
        return contextlib.nullcontext() if self.ema is None else self.ema.applied()

    def save(self, folder: Path, best: dict[str, Any] | None) -> Path:
        """Write a checkpoint into the folder; returns it. best: step and loss, to be looked up."""
        state = {
            "config": dataclasses.asdict(self.config),
            "data": self.corpus.fingerprint,
            "position": self.loader.state_dict(),
            "random": mt.random.get_rng_state(),
            "grad_norm": self.grad_norm,
            "elapsed": self.elapsed,
            "best": best,
        }
        arrays = {"losses": np.array(self.losses)}
        parts = {"optimizer": self.optimizer.state_dict()["state"]}
        if self.ema is not None:
            parts["ema"] = self.ema.state_dict()
            parts["weights"] = dict(self.model.named_parameters())
        for part, values in parts.items():
            arrays.update({f"{part}.{name}": value for name, value in values.items()})
        return checkpoints.save(folder, self.step, state, arrays, self.export)

    def export(self, folder: Path) -> None:
        """Write the model and its tokenizer under the names that Hugging Face uses."""
        with self.averaged_weights():
            self.model.save_pretrained(folder)
        self.corpus.tokenizer.save(folder / "tokenizer.json")

    def restore(self, saved: checkpoints.Checkpoint) -> None:
        """Go on from a checkpoint of this run; CheckpointError where it is of another one.

        What is in `config` stays as it is now, also where the run had something else before.
        """
        if saved.state["data"] != self.corpus.fingerprint:
            raise CheckpointError(
                f"checkpoint {saved.path}: the text has changed since: it was "
                f"{saved.state['data']}, it is {self.corpus.fingerprint}. Restore it, or start a "
                "new run with another --out"
            )
        arrays = saved.arrays
        self.model.load_state_dict(from_pretrained(saved.path).state_dict())
        if self.ema is not None:
            self.ema.load_state_dict(_part(arrays, "ema"))
            self.model.load_state_dict(_part(arrays, "weights"), strict=False)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(
            {"state": _part(arrays, "optimizer"), "param_groups": groups}
        )
        self.losses = arrays["losses"].tolist()
        self.grad_norm, self.elapsed = saved.state["grad_norm"], saved.state["elapsed"]
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), "last_step": self.step})
        self.loader.load_state_dict(saved.state["position"])
        mt.random.set_rng_state(saved.state["random"])
        self._graph = self._graphed()


def _part(arrays: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    start = f"{part}."
    return {name[len(start) :]: value for name, value in arrays.items() if name.startswith(start)}


def build_model(config: TrainConfig, vocab_size: int) -> Model:
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


def build_optimizer(config: TrainConfig, model: Model) -> optim.Optimizer:
    """The configured optimizer. Biases and norms, being vectors, are not decayed.

    With Muon the matrices inside the blocks have a learning rate and a decay of their own; AdamW
    updates the rest.
    """
    lr, decay, betas = config.learning_rate, config.weight_decay, (config.beta1, config.beta2)
    if config.optimizer == "muon":
        matrices, *rest = optim.muon_groups(model, adamw_lr=lr)
        matrices["weight_decay"] = config.muon_weight_decay
        groups = [matrices, *(part for group in rest for part in _by_decay(group, decay))]
        return optim.Muon(groups, config.muon_learning_rate, betas=betas)
    groups = _by_decay({"params": list(model.parameters())}, decay)
    match config.optimizer:
        case "lion":
            return optim.Lion(groups, lr, betas)
        case "adafactor":
            return optim.Adafactor(groups, lr)
        case "sgd":
            return optim.SGD(groups, lr, momentum=config.beta1)
        case _:
            return optim.AdamW(groups, lr, betas)


def _by_decay(group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    """The group in two: its matrices, which are decayed, and its vectors, which are not."""
    matrices = [param for param in group["params"] if param.ndim >= 2]
    vectors = [param for param in group["params"] if param.ndim < 2]
    return [
        {**group, "params": matrices, "weight_decay": weight_decay},
        {**group, "params": vectors, "weight_decay": 0.0},
    ]


def build_schedule(config: TrainConfig) -> Callable[[int], float]:
    """Step, from 0 → factor of the learning rate."""
    steps, final = config.steps, config.final_fraction
    warmup = round(config.warmup_fraction * steps)
    match config.schedule:
        case "cosine":
            return optim.schedules.cosine(steps, warmup, final)
        case "linear":
            return optim.schedules.linear(steps, warmup, final)
        case "wsd":
            decay = min(round(config.decay_fraction * steps), steps - warmup)
            return optim.schedules.wsd(steps, warmup, decay, final)
        case _:
            return optim.schedules.constant(warmup)


def fit(run: Run, log: RunLog, folder: Path, display: Display, stop: Callable[[], bool]) -> Path:
    """Train to the last step; returns the last checkpoint.

    Evaluates, logs, and saves checkpoints into the folder, all as configured. Raises Stopped once
    stop() is true and the run is saved, DivergenceError for a loss that is not finite, and
    CheckpointError where the disk is full; the checkpoints before stay, whatever happens.
    """
    config = run.config
    begun, seconds, steps = time.monotonic() - run.elapsed, 0.0, 0
    while True:
        step, done = run.step, run.step == config.steps
        due = step > 0 and (done or step % config.eval_interval == 0)
        evaluated, improved = not due or log.last_step == step, False
        if not evaluated:
            val_loss = run.evaluate(stop)
            run.elapsed = time.monotonic() - begun
            if val_loss is not None:
                improved = log.best is None or val_loss < log.best["val_loss"]
                speed = steps * run.tokens_per_step / max(seconds, 1e-9)
                log.write(_row(run, val_loss, since=log.last_step, tokens_per_second=speed))
                display.evaluated(log.rows[-1])
                evaluated, seconds, steps = True, 0.0, 0
        stopping = stop() and not (done and evaluated)
        if stopping and step == 0:
            raise Stopped(None)
        if step > 0 and (stopping or done or improved or step % config.checkpoint_interval == 0):
            path = run.save(folder, log.best)
            checkpoints.prune(folder, config.keep_checkpoints, log.best["step"] if log.best else 0)
            if stopping:
                raise Stopped(path)
            if done:
                return path
        before = time.perf_counter()
        run.train_step()
        run.elapsed = time.monotonic() - begun
        seconds, steps = seconds + time.perf_counter() - before, steps + 1
        display.step(
            run.step,
            float(np.mean(run.losses[-SMOOTHING:])),
            steps * run.tokens_per_step / seconds,
        )


def _row(run: Run, val_loss: float, *, since: int, tokens_per_second: float) -> dict[str, Any]:
    """What the log says of an evaluation; `since` is the step of the one before."""
    return {
        "step": run.step,
        "train_loss": float(np.mean(run.losses[since:])),
        "val_loss": val_loss,
        "bits_per_byte": val_loss / math.log(2) * run.corpus.tokens_per_byte,
        "learning_rate": run.learning_rate,
        "grad_norm": run.grad_norm,
        "tokens_per_second": tokens_per_second,
        "elapsed": run.elapsed,
        "peak_memory": ask(peak_memory),
    }
