"""How many facts a feed-forward layer holds, for the units that a token computes: PEER and dense.

    (subject, relation) -> object,  all pairs once, objects drawn at random

Nothing generalises: each fact is in the weights or it is not. Of one layer between embeddings and a
head, with 32 units active for a token, there are three:

    dense             32 units, all active
    PEER              4,096 experts of one unit, of which 4 heads choose 8 each
    PEER, no norm     the same without the batch norm of its queries
    dense, wide       as many multiplications as PEER's units and its search together

Expected (He 2024, arXiv 2407.04153): PEER holds nearly all of the 16,384 facts. Neither the dense
layer with as many active units nor the one with as many multiplications does, which are the
controls: a fact takes 6 bits, and they have too few numbers. (Of 4,096 facts the wide one holds
all, and the two cannot be told apart.) What the norm of the queries is good for is not seen here,
where a token is the sum of two embeddings: models/experiments/query_norm.py.
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
from models.blocks.feed_forward import FeedForward
from models.blocks.peer import PEER, usage
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.experiments.learning import train


@dataclass(frozen=True)
class Setup:
    """subjects, relations: their product is the number of facts."""

    subjects: int = 128
    relations: int = 128
    objects: int = 64
    width: int = 64
    experts: int = 4096
    heads: int = 4
    per_head: int = 8
    key_dim: int = 32
    batch_size: int = 1024
    steps: int = 1000
    learning_rate: float = 5e-3

    @property
    def active(self) -> int:
        """The units that PEER computes for a token."""
        return self.heads * self.per_head

    @property
    def equal_cost(self) -> int:
        """The units of a dense layer with as many multiplications: queries, scores and units."""
        queries = self.heads * self.key_dim * self.width
        scores = self.heads * self.key_dim * round(self.experts**0.5)
        return self.active + (queries + scores) // (2 * self.width)


class Memory(nn.Module):
    """The sum of two embeddings, one feed-forward layer, a head."""

    def __init__(self, setup: Setup, layer: nn.Module, generator: Generator):
        width, dtype = setup.width, DEFAULT_FLOAT
        self.subject = nn.Embedding(setup.subjects, width, dtype, generator)
        self.relation = nn.Embedding(setup.relations, width, dtype, generator)
        self.layer = layer
        self.norm = nn.RMSNorm(width, dtype=dtype)
        self.head = nn.Linear(width, setup.objects, False, dtype, generator)

    def forward(self, questions: Tensor) -> Tensor:
        """questions: (batch, 2), subjects and relations. Returns logits (batch, objects)."""
        return self.head(self.norm(self.layer(self.asked(questions)).squeeze(1)))

    def asked(self, questions: Tensor) -> Tensor:
        """What the layer reads: (batch, 1, width)."""
        return (self.subject(questions[:, 0]) + self.relation(questions[:, 1])).unsqueeze(1)

    def loss(self, questions: Tensor, objects: Tensor) -> Tensor:
        """objects: (batch,)."""
        return F.cross_entropy(self(questions), objects)


def all_facts(setup: Setup, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Questions (facts, 2) and their objects (facts,)."""
    grid = np.indices((setup.subjects, setup.relations)).reshape(2, -1).T
    draw = Generator(seed).draw()
    return np.ascontiguousarray(grid), draw.integers(setup.objects, size=len(grid))


def batches(
    questions: np.ndarray, objects: np.ndarray, size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All facts in random order, again and again."""
    generator = Generator(seed)
    while True:
        order = generator.draw().permutation(len(questions))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            yield questions[chosen], objects[chosen]


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """The share of facts that each layer holds."""
    questions, objects = all_facts(setup, seed)
    rows = []
    for name in ("dense", "PEER", "PEER, no norm", "dense, wide"):
        generator = Generator(seed + 1)
        layer = make_layer(name, setup, generator)
        model = Memory(setup, layer, generator)
        stream = batches(questions, objects, setup.batch_size, seed + 2)
        train(model, stream, setup.steps, setup.learning_rate, console, name)
        model.eval()
        with mt.no_grad():
            logits = model(mt.from_numpy(questions))
            loss = F.cross_entropy(logits, mt.from_numpy(objects)).item()
            used, unevenness = usage_of_experts(model, mt.from_numpy(questions))
        active = setup.equal_cost if name == "dense, wide" else setup.active
        rows.append(
            {
                "variant": name,
                "active units": active,
                "parameters": layer.num_parameters(),
                "held": float((logits.numpy().argmax(-1) == objects).mean()),
                "loss": loss,
                "experts used": used,
                "unevenness": unevenness,
                "chance": 1 / setup.objects,
            }
        )
    return rows


def make_layer(name: str, setup: Setup, generator: Generator) -> nn.Module:
    """The feed-forward layer of a variant."""
    width, dtype = setup.width, DEFAULT_FLOAT
    if name.startswith("PEER"):
        sizes = setup.experts, setup.heads, setup.per_head, setup.key_dim
        return PEER(width, *sizes, name == "PEER", dtype=dtype, generator=generator)
    hidden = setup.active if name == "dense" else setup.equal_cost
    return FeedForward(width, hidden, "gelu", dtype=dtype, generator=generator)


def usage_of_experts(model: Memory, questions: Tensor) -> tuple[float, float]:
    """The share of experts that some fact reads, and how unevenly; all units of a dense layer."""
    if not isinstance(model.layer, PEER):
        return 1.0, 0.0
    weights, experts = model.layer.retrieve(model.asked(questions).squeeze(1))
    return usage(weights, experts, model.layer.num_experts)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of the share of facts."""
    found = by_name(rows)
    return [
        Claim(
            "dense, as many active units, holds", found["dense"]["held"], "<=", 0.3, control=True
        ),
        Claim(
            "dense, as many multiplications, holds",
            found["dense, wide"]["held"],
            "<=",
            0.6,
            control=True,
        ),
        Claim("PEER holds", found["PEER"]["held"], ">=", 0.95),
        Claim("PEER's experts used", found["PEER"]["experts used"], ">=", 0.9),
        Claim("the same, no norm", found["PEER, no norm"]["experts used"], ">=", 0.9),
    ]


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Bars: the facts that each layer holds."""
    names = [f"{row['variant']}\n{row['active units']} units active" for row in rows]
    axes.bar(names, [row["held"] for row in rows])
    axes.axhline(rows[0]["chance"], color="grey", linewidth=0.8, linestyle=":")
    axes.set_ylabel("facts held; dotted: chance")


EXPERIMENT = Experiment(
    name="facts",
    question="How many facts does a layer of tiny experts hold, beside a dense one?",
    setup=Setup(),
    quick=Setup(subjects=4, relations=4, objects=4, width=8, experts=16, per_head=2, steps=3),
    run=run,
    claims=claims,
    draw=draw,
)
