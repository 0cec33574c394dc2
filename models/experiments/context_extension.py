"""Reading four times as far as one was trained, without any further training.

A character model learns from texts of 128 characters and reads 512. Beyond 128 its rotations have
angles it has never seen. What is changed is the rotations alone, or what is visible:

    plain           nothing
    linear          all frequencies divided by 4
    ntk             a larger base
    yarn            the slow pairs divided by 4, the fast ones kept, logits sharpened
    dual chunk      distances to other chunks of the text cut off at 127
    sliding window  the last 128 characters visible, so that no distance is new

Expected (Chen et al. 2023, arXiv 2306.15595; Peng et al. 2023, 2309.00071; An et al. 2024,
2402.17463): plain breaks down; linear keeps the level but blurs neighbours, near and far alike; NTK
helps up to somewhat less than its factor; YaRN stays nearly flat; dual chunks lose nothing near and
little far; the window is flat and cannot gain from more text. It is the control of the others: what
is no better than the window has not read farther, it has only not broken down.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

import minitorch as mt
from minitorch.backend import DEFAULT_FLOAT
from minitorch.data import BatchLoader, sequential_batches
from minitorch.nn import functional as F
from minitorch.random import Generator
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.experiments.learning import embedded, train
from models.llama import size
from models.qwen import Qwen2Config

FACTOR = 4


@dataclass(frozen=True)
class Setup:
    """length: of the texts it learns from, in characters; it reads FACTOR times as many."""

    length: int = 128
    width: int = 96
    layers: int = 3
    heads: int = 4
    hidden: int = 256
    batch_size: int = 16
    steps: int = 700
    learning_rate: float = 3e-3


def variants(length: int) -> dict[str, dict[str, Any]]:
    """What is changed in the configuration of a model that was trained on texts of a length."""
    chunks = {"chunk_size": length, "local_size": length // 4}
    return {
        "plain": {},
        **{
            kind: {"rope_scaling": {"rope_type": kind, "factor": FACTOR}}
            for kind in ("linear", "ntk", "yarn")
        },
        "dual chunk": {"dual_chunk_attention_config": chunks},
        "sliding window": {"sliding_window": length},
    }


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """Losses by position: before the trained length, up to twice of it, up to four times."""
    text = embedded(FACTOR * setup.length)
    config = Qwen2Config(
        **size(setup.width, setup.layers, setup.heads, setup.heads, setup.hidden),
        vocab_size=text.vocab_size,
        max_position_embeddings=setup.length,
    )
    trained = config.build(DEFAULT_FLOAT, Generator(seed))
    batches = BatchLoader(text.train, setup.batch_size, setup.length, seed)
    train(trained, batches, setup.steps, setup.learning_rate, console, "training")
    weights = trained.state_dict()
    rows = []
    for name, changes in variants(setup.length).items():
        model = dataclasses.replace(config, **changes).build(DEFAULT_FLOAT, Generator(seed))
        model.load_state_dict(weights)
        losses = losses_by_position(model, text.validation, FACTOR * setup.length)
        near, middle, far = np.split(losses, [setup.length, 2 * setup.length])
        parts = 4 * FACTOR
        rows.append(
            {
                "variant": name,
                "near": float(near.mean()),
                "middle": float(middle.mean()),
                "far": float(far.mean()),
                "positions": np.arange(len(losses)).reshape(parts, -1).mean(1).tolist(),
                "curve": losses.reshape(parts, -1).mean(1).tolist(),
            }
        )
    return rows


def losses_by_position(model: Any, ids: np.ndarray, length: int) -> np.ndarray:
    """The mean loss at each position of the blocks of a length: (length,) in nats."""
    model.eval()
    losses = []
    with mt.no_grad():
        for inputs, targets in sequential_batches(ids, 8, length):
            logits, _ = model(mt.from_numpy(inputs))
            log_probs = F.log_softmax(logits, -1).numpy()
            losses.append(-np.take_along_axis(log_probs, targets[..., None], -1)[..., 0])
    return np.concatenate(losses).mean(0)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of losses in nats per character, near (within the trained length) and far (beyond twice)."""
    found = by_name(rows)
    near, far = ({name: row[key] for name, row in found.items()} for key in ("near", "far"))
    known = near["plain"]
    return [
        Claim("plain, far, above near", far["plain"] - known, ">=", 0.8, control=True),
        Claim("linear, near, above plain", near["linear"] - known, ">=", 0.5, control=True),
        Claim("linear, far over near", far["linear"] / near["linear"], "<=", 1.1),
        Claim("ntk, far, below plain", far["ntk"] - far["plain"], "<=", -0.3),
        Claim("yarn, far, above plain near", far["yarn"] - known, "<=", 0.3),
        Claim("yarn, far over near", far["yarn"] / near["yarn"], "<=", 1.1),
        Claim("dual chunk, near, above plain", near["dual chunk"] - known, "<=", 0.01),
        Claim("dual chunk, far, above plain near", far["dual chunk"] - known, "<=", 0.1),
        Claim("window, far, above plain near", far["sliding window"] - known, "<=", 0.05),
    ]


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Loss over position."""
    for row in rows:
        axes.plot(row["positions"], row["curve"], label=row["variant"])
    first, *_, last = rows[0]["positions"]
    axes.axvline((first + last) / FACTOR, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("position; trained up to the dotted line")
    axes.set_ylabel("loss, nats per character")
    axes.legend(frameon=False)


EXPERIMENT = Experiment(
    name="context_extension",
    question="How far does a model read beyond its training, by how its rotations are scaled?",
    setup=Setup(),
    quick=Setup(length=16, width=16, layers=1, heads=2, hidden=16, batch_size=2, steps=3),
    run=run,
    claims=claims,
    draw=draw,
)
