"""Does a batch norm of PEER's queries spread the tokens over more experts, and more evenly?

Two character models whose feed-forward layers are PEER, 4,096 experts of one unit each, of which 4
heads choose 8. Nothing keeps experts busy but, in one of them, the norm of the queries:

    norm       every feature of a query has mean 0 and variance 1 over the tokens of the batch
    no norm    queries as they are, the control

Measured on the validation text, as the mean over the layers: the share of experts that some token
reads; the unevenness, KL(share of all weights ‖ uniform) in nats; and the loss.

Expected (He 2024, arXiv 2407.04153, section 3.3): with the norm more experts are used, more evenly,
and the loss is lower. (Of the facts of models/experiments/facts.py no such thing is to be seen.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from minitorch.backend import DEFAULT_FLOAT
from minitorch.data import BatchLoader
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.peer import PEER, usage
from models.decoder import Decoder
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.experiments.learning import embedded, mean_loss, train
from models.llama import LlamaConfig, size


@dataclass(frozen=True)
class Setup:
    """per_head, key_dim: the experts that a head chooses, and the size of its query.

    tokens: of the validation text that are read.
    """

    length: int = 128
    width: int = 64
    layers: int = 2
    heads: int = 4
    experts: int = 4096
    expert_heads: int = 4
    per_head: int = 8
    key_dim: int = 32
    batch_size: int = 16
    steps: int = 300
    learning_rate: float = 3e-3
    tokens: int = 40_000


class Watched(PEER):
    """PEER that notes which experts it chose while it was not training, and their weights."""

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self.chosen: list[tuple[np.ndarray, np.ndarray]] = []

    def retrieve(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weights, experts = super().retrieve(x, real)
        if not self.training:
            self.chosen.append((weights.numpy(), experts.numpy()))
        return weights, experts

    def usage(self) -> tuple[float, float]:
        """Of what it chose: the share of experts, and how unevenly."""
        weights, experts = (Tensor(np.concatenate(part)) for part in zip(*self.chosen))
        return usage(weights, experts, self.num_experts)


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """With the norm and without."""
    text = embedded(setup.length)
    rows = []
    for name in ("norm", "no norm"):
        model = build(setup, text.vocab_size, name == "norm", Generator(seed))
        batches = BatchLoader(text.train, setup.batch_size, setup.length, seed)
        train(model, batches, setup.steps, setup.learning_rate, console, name)
        loss = mean_loss(model, text.validation, setup.length, setup.tokens)
        watched = [module for module in model.modules() if isinstance(module, Watched)]
        used, unevenness = zip(*(layer.usage() for layer in watched))
        rows.append(
            {
                "variant": name,
                "loss": loss,
                "experts used": float(np.mean(used)),
                "unevenness": float(np.mean(unevenness)),
                "used by layer": list(used),
                "unevenness by layer": list(unevenness),
            }
        )
    return rows


def build(setup: Setup, vocab_size: int, query_norm: bool, generator: Generator) -> Decoder:
    """A Llama with PEER in every layer, whose weights are as PEER draws them."""
    config = LlamaConfig(
        **size(setup.width, setup.layers, setup.heads, setup.heads, setup.width),
        vocab_size=vocab_size,
        max_position_embeddings=setup.length,
    )
    model = config.build(DEFAULT_FLOAT, generator)
    sizes = setup.experts, setup.expert_heads, setup.per_head, setup.key_dim
    for layer in model.layers:
        layer.mlp = Watched(setup.width, *sizes, query_norm, DEFAULT_FLOAT, generator)
    return model


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of experts and of nats. The limits are from a run with another seed than those recorded."""
    norm, none = (by_name(rows)[name] for name in ("norm", "no norm"))
    return [
        Claim("norm: experts used", norm["experts used"], ">=", 0.75),
        Claim("no norm: experts used", none["experts used"], "<=", 0.65, control=True),
        Claim("norm: unevenness", norm["unevenness"], "<=", 1.6),
        Claim("no norm: unevenness", none["unevenness"], ">=", 2.2, control=True),
        Claim("validation loss, no norm above norm", none["loss"] - norm["loss"], ">=", 0.05),
    ]


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Bars: the experts used in each layer."""
    for shift, row in zip((-0.2, 0.2), rows, strict=True):
        used = row["used by layer"]
        axes.bar(np.arange(1, len(used) + 1) + shift, used, 0.38, label=row["variant"])
    axes.set_xticks(np.arange(1, len(rows[0]["used by layer"]) + 1))
    axes.set_xlabel("layer")
    axes.set_ylabel("share of experts used")
    axes.legend(frameon=False)


EXPERIMENT = Experiment(
    name="query_norm",
    question="Does a batch norm of its queries make PEER use more experts, and more evenly?",
    setup=Setup(),
    quick=Setup(
        length=16,
        width=16,
        heads=2,
        experts=16,
        per_head=2,
        key_dim=4,
        batch_size=2,
        steps=3,
        tokens=64,
    ),
    run=run,
    claims=claims,
    draw=draw,
)
