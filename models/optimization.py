"""How weights are learnt: the settings of every run that trains, its optimizer, its schedule.

A subclass of `TrainingSettings` adds what its kind of run needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minitorch import nn, optim
from minitorch.backend import DEVICES
from minitorch.errors import ConfigError
from models.options import Settings, option


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Steps, optimizer, schedule, device, and when to evaluate and to save."""

    seed: int = option(
        1337, "of the weights, the order of the data, dropout", at_least=0, fixed=True
    )
    steps: int = option(1000, "optimizer steps", at_least=1)
    batch_size: int = option(12, "sequences in one forward pass", at_least=1, fixed=True)
    gradient_accumulation: int = option(
        1, "forward passes to one optimizer step", at_least=1, fixed=True
    )
    optimizer: str = option(
        "muon", "update rule", choices=("adamw", "muon", "lion", "adafactor", "sgd"), fixed=True
    )
    learning_rate: float = option(4e-3, "the highest learning rate", above=0)
    muon_learning_rate: float = option(
        0.02, "with `muon`, that of the matrices inside the blocks", above=0
    )
    schedule: str = option(
        "cosine", "of the learning rate", choices=("cosine", "linear", "wsd", "constant")
    )
    warmup_fraction: float = option(
        0.1, "share of the steps in which it rises to learning_rate", at_least=0, at_most=1
    )
    decay_fraction: float = option(
        0.2, "share of the steps, at the end, in which `wsd` falls", at_least=0, at_most=1
    )
    final_fraction: float = option(
        0.1, "where it ends, as a share of learning_rate", at_least=0, at_most=1
    )
    weight_decay: float = option(0.1, "of matrices and embeddings, not of vectors", at_least=0)
    muon_weight_decay: float = option(0.0, "with `muon`, that of the matrices", at_least=0)
    beta1: float = option(0.9, "decay of the first moment", at_least=0, below=1)
    beta2: float = option(0.99, "decay of the second moment", at_least=0, below=1)
    grad_clip: float = option(1.0, "greatest norm of the gradient; 0: no clipping", at_least=0)

    device: str = option(
        "cpu", "where it computes: `simt` runs the CUDA kernels in the emulator", choices=DEVICES
    )
    precision: str = option(
        "float32", "of matrix products and attention; weights and losses stay float32",
        choices=("float32", "bfloat16", "float8"),
    )  # fmt: skip

    eval_interval: int = option(100, "steps between evaluations", at_least=1)
    checkpoint_interval: int = option(100, "steps between checkpoints", at_least=1)
    keep_checkpoints: int = option(2, "newest checkpoints kept, besides the best", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ConfigError(
                f"decay_fraction: {self.decay_fraction} and warmup_fraction = "
                f"{self.warmup_fraction} are more than the whole run"
            )


def build_optimizer(config: TrainingSettings, model: nn.Module) -> optim.Optimizer:
    """The configured optimizer, of what is not frozen. Biases and norms are not decayed.

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
    """The group in two: its matrices, which are decayed, and its vectors, which are not.

    Without one that would be empty.
    """
    trained = [param for param in group["params"] if param.requires_grad]
    matrices = [param for param in trained if param.ndim >= 2]
    vectors = [param for param in trained if param.ndim < 2]
    parts = [
        {**group, "params": matrices, "weight_decay": weight_decay},
        {**group, "params": vectors, "weight_decay": 0.0},
    ]
    return [part for part in parts if part["params"]]


def build_schedule(config: TrainingSettings) -> Callable[[int], float]:
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
