"""What a memory of fixed size cannot hold: linear, softmax and hybrid attention on recall.

    k1:v1  k2:v2  ...  kn:vn   k5?  k2?  ...      answers: v5, v2, ...

A token is a key with its value, or with none where it asks, so that one look-up answers. Softmax
attention keeps all n pairs and looks one up. Lightning attention keeps a matrix of head_dim ×
head_dim numbers for each head, in which more pairs than it has room for run into one another. A
hybrid of a lightning and a softmax layer needs only one that looks up.

Expected (MiniMax 2025, arXiv 2501.08313: linear attention alone is weak at retrieval, and one
softmax layer in eight restores it): with few pairs all three answer; with many, lightning alone
fails. That failure is the negative control, and chance is 1 in as many as there are values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

import minitorch as mt
from minitorch import nn
from minitorch.backend import DEFAULT_FLOAT
from minitorch.nn import functional as F
from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.context import place
from models.blocks.feed_forward import GatedFeedForward
from models.blocks.lightning import LightningAttention, decay_slopes
from models.decoder import Block
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.experiments.learning import train

KINDS = {
    "softmax": ("softmax", "softmax"),
    "lightning": ("lightning", "lightning"),
    "hybrid": ("lightning", "softmax"),
}
"""The attention of each layer."""


@dataclass(frozen=True)
class Setup:
    """few, many: pairs in a text. queries: how many of them it asks for."""

    few: int = 8
    many: int = 64
    keys: int = 64
    values: int = 16
    queries: int = 16
    width: int = 32
    heads: int = 4
    batch_size: int = 16
    steps: int = 600
    learning_rate: float = 5e-3


class Recaller(nn.Module):
    """Decoder blocks between a sum of two embeddings and a head over the values."""

    def __init__(self, setup: Setup, kinds: Sequence[str], generator: Generator):
        width, dtype = setup.width, DEFAULT_FLOAT
        self.key = nn.Embedding(setup.keys, width, dtype, generator)
        self.value = nn.Embedding(setup.values + 1, width, dtype, generator)
        self.layers = nn.ModuleList(
            Block(
                attention(kind, layer, len(kinds), setup, generator),
                GatedFeedForward(width, 2 * width, dtype=dtype, generator=generator),
                (nn.RMSNorm(width, dtype=dtype), nn.RMSNorm(width, dtype=dtype)),
            )
            for layer, kind in enumerate(kinds)
        )
        self.norm = nn.RMSNorm(width, dtype=dtype)
        self.head = nn.Linear(width, setup.values, False, dtype, generator)

    def forward(self, pairs: Tensor) -> Tensor:
        """pairs: (batch, time, 2), keys and values. Returns logits (batch, time, values)."""
        x = self.key(pairs[..., 0]) + self.value(pairs[..., 1])
        context = place(x.shape[1], None, np.empty((1, 0), np.int64), None, x.device)
        for layer in self.layers:
            x = layer(x, context)
        return self.head(self.norm(x))

    def loss(self, pairs: Tensor, answers: Tensor) -> Tensor:
        """answers: (batch, queries), of the last tokens."""
        logits = self(pairs)[:, -answers.shape[1] :]
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), answers.reshape(-1))


def attention(
    kind: str, layer: int, layers: int, setup: Setup, generator: Generator
) -> Attention | LightningAttention:
    """A layer's attention, of either kind, without positions."""
    width, heads = setup.width, setup.heads
    if kind == "lightning":
        slopes = decay_slopes(heads, layer, layers)
        return LightningAttention(width, width // heads, slopes, 256, DEFAULT_FLOAT, generator)
    config = AttentionConfig(
        hidden_size=width, num_heads=heads, num_kv_heads=heads, head_dim=width // heads
    )
    return Attention(config, DEFAULT_FLOAT, generator)


def texts(setup: Setup, pairs: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of (batch, pairs + queries, 2) and their answers (batch, queries), without end."""
    generator = Generator(seed)
    while True:
        draw = generator.draw()
        shape = setup.batch_size, pairs
        keys = draw.permuted(np.tile(np.arange(setup.keys), (setup.batch_size, 1)), axis=1)
        keys, values = keys[:, :pairs], draw.integers(setup.values, size=shape)
        asked = draw.integers(pairs, size=(setup.batch_size, setup.queries))
        told = np.stack([keys, values], -1)
        questions = np.take_along_axis(keys, asked, 1)
        blank = np.full_like(questions, setup.values)
        batch = np.concatenate([told, np.stack([questions, blank], -1)], 1)
        yield batch, np.take_along_axis(values, asked, 1)


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """The share of right answers of each kind, for few pairs and for many."""
    rows = []
    for name, kinds in KINDS.items():
        row: Row = {"variant": name}
        for amount, pairs in (("few", setup.few), ("many", setup.many)):
            model = Recaller(setup, kinds, Generator(seed))
            label = f"{name}, {pairs} pairs"
            batches = texts(setup, pairs, seed)
            train(model, batches, setup.steps, setup.learning_rate, console, label)
            row[amount] = accuracy(model, texts(setup, pairs, seed + 1), batches=20)
        rows.append({**row, "chance": 1 / setup.values})
    return rows


def accuracy(
    model: Recaller, stream: Iterator[tuple[np.ndarray, np.ndarray]], batches: int
) -> float:
    """The share of right answers in so many batches."""
    model.eval()
    right = []
    with mt.no_grad():
        for _ in range(batches):
            pairs, answers = next(stream)
            logits = model(mt.from_numpy(pairs)).numpy()[:, -answers.shape[1] :]
            right.append((logits.argmax(-1) == answers).mean())
    return float(np.mean(right))


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of the share of right answers."""
    found = by_name(rows)
    return [
        Claim("softmax, many pairs", found["softmax"]["many"], ">=", 0.95),
        Claim("hybrid, many pairs", found["hybrid"]["many"], ">=", 0.95),
        Claim("lightning, many pairs", found["lightning"]["many"], "<=", 0.4, control=True),
        Claim("lightning, few pairs", found["lightning"]["few"], ">=", 0.85),
    ]


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Bars: right answers for few pairs and for many."""
    places = np.arange(len(rows))
    for shift, amount in ((-0.2, "few"), (0.2, "many")):
        heights = [row[amount] for row in rows]
        axes.bar(places + shift, heights, 0.38, label=f"{amount} pairs")
    axes.axhline(rows[0]["chance"], color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(places, [row["variant"] for row in rows])
    axes.set_ylabel("right answers; dotted: chance")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


EXPERIMENT = Experiment(
    name="recall",
    question="Can attention with a memory of fixed size look up what it read?",
    setup=Setup(),
    quick=Setup(few=2, many=4, keys=8, values=4, queries=2, width=8, heads=2, steps=3),
    run=run,
    claims=claims,
    draw=draw,
)
