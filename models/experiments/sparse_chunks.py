"""Dual chunks with a quarter of all pairs read: by which distances are columns to be chosen?

The model and the passkeys of models/experiments/passkey.py: it learns from texts of 128 characters
and is asked in texts of 512, by dual chunk attention, with no training at that length. Prompts are
read sparsely, chunk by chunk. Columns and diagonals are chosen by the last queries of a chunk, from
scores

    as read    of the distances that dual chunks show
    in line    of distances that go on from chunk to chunk, so that diagonals stay diagonals
    plain      of true distances, most of them beyond those known

Expected (Qwen team 2025, arXiv 2501.15383, section 5.2): plain distances, the negative control,
choose worse, and find fewer digits; with the others as many are found as with all pairs, and those
in line are better than those as read. The last is not so in models as small as these.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from minitorch.random import Generator
from minitorch.tensor import Tensor
from models.blocks.attention import Attention
from models.blocks.context import Context
from models.blocks.dual_chunk import Chunks
from models.blocks.sparse_chunks import SparseDualChunkAttention
from models.blocks.vertical_slash import Budget
from models.experiments import passkey
from models.experiments.context_extension import variants
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.experiments.learning import embedded
from models.experiments.passkey import configured, found, learned
from models.qwen import Qwen2Config


@dataclass(frozen=True)
class Setup(passkey.Setup):
    """last: the queries of a chunk that its estimate is from."""

    tuning: int = 0
    last: int = 16

    @property
    def budget(self) -> Budget:
        """Of a chunk."""
        return dataclasses.replace(super().budget, last=self.last)


Shift = Callable[[Chunks, np.ndarray], np.ndarray]

ESTIMATES: dict[str, Shift | None] = {
    "as read": None,
    "in line": lambda chunks, between: np.where(between > 1, chunks.trained, between * chunks.size),
    "plain": lambda chunks, between: between * chunks.size,
}
"""What is added to the distance within a chunk, from how many chunks lie between."""


@dataclass(frozen=True, kw_only=True)
class Config(Qwen2Config):
    """estimate: one of ESTIMATES."""

    estimate: str

    def attention_block(
        self, layer: int, dtype: np.dtype, generator: Generator | None
    ) -> Attention:
        chunks, budget = self.dual_chunk_attention_config, self.sparse_prefill
        assert chunks is not None
        assert budget is not None
        sizes = Chunks(trained=chunks["chunk_size"], local=chunks["local_size"])
        made = Measured(self.attention(layer), sizes, Budget(**budget), dtype, generator)
        made.shift = ESTIMATES[self.estimate]
        return made


class Measured(passkey.Noted, SparseDualChunkAttention):
    """Sparse attention by chunks, noted. shift: one of ESTIMATES."""

    shift: Shift | None

    def blockwise(
        self, queries: list[Tensor], key: Tensor, value: Tensor, context: Context
    ) -> Tensor:
        self.notes = passkey.Notes()
        return super().blockwise(queries, key, value, context)

    def of_chunk(self, together: Tensor, keys: Tensor, value: Tensor) -> Tensor:
        query, groups = together.numpy(), self.config.num_heads // self.config.num_kv_heads
        every = keys.repeat_interleave(groups, 1).numpy()
        dense = query.shape[2] <= self.budget.last
        self.notes.take(self.scale * query, every, None if dense else self.choice(query, every))
        return super().of_chunk(together, keys, value)

    def choice(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        if self.shift is None:
            return super().choice(query, key)
        own, rotary = query[..., : self.config.head_dim], self.config.rotary
        assert rotary is not None
        chunk = np.arange(key.shape[2]) // self.chunks.size
        cos, sin = rotary.tables(-self.shift(self.chunks, chunk[-1] - chunk), len(chunk))
        a, b = np.split(key.reshape(*key.shape[:-1], 3, -1).sum(-2), 2, -1)
        turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
        return super().choice(own, turned)


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """The share of digits found with all pairs, and with those that each estimate chooses."""
    text = embedded(setup.far)
    config = configured(setup, text, Qwen2Config)
    weights = learned(setup, text, config, seed, console)
    dense = dataclasses.replace(config, **variants(setup.length)["dual chunk"])
    sparse = {**vars(dense), "sparse_prefill": dataclasses.asdict(setup.budget)}
    cases: list[tuple[str, Qwen2Config]] = [
        ("all pairs", dense),
        *((name, Config(**sparse, estimate=name)) for name in ESTIMATES),
    ]
    return [found(setup, text, *case, weights, seed) for case in cases]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of the share of digits found in the long texts, of pairs, and of the probability.

    The limits are from runs with seeds 2 and 0, so that only another seed tests them. That 0.95 of
    the probability is read was hoped for, and is not claimed.
    """
    dense, sparse, in_line, plain = (by_name(rows)[n] for n in ("all pairs", *ESTIMATES))
    read = "probability read"
    return [
        Claim("pairs read", sparse["pairs read"], "<=", 0.25),
        Claim("digits, below all pairs", dense["far"] - sparse["far"], "<=", 0.01),
        Claim("digits, plain below all pairs", dense["far"] - plain["far"], ">=", 0.02, True),
        Claim("probability read, above plain", sparse[read] - plain[read], ">=", 0.03, True),
        Claim("probability read, above in line", sparse[read] - in_line[read], ">=", 0.03),
    ]


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Bars: what is read, and the digits found, by the way of choosing."""
    places, sparse = np.arange(len(rows) - 1), rows[1:]
    for shift, key in ((-0.27, "pairs read"), (0.0, "probability read"), (0.27, "far")):
        label = "digits found" if key == "far" else key
        axes.barh(places + shift, [row[key] for row in sparse], 0.25, label=label)
    axes.axvline(rows[0]["far"], color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(places, [row["variant"] for row in sparse])
    axes.invert_yaxis()
    axes.set_xlabel("share; dotted: digits found with all pairs")
    axes.legend(frameon=False)


EXPERIMENT = Experiment(
    name="sparse_chunks",
    question="Dual chunks with a quarter of all pairs read: chosen by which distances?",
    setup=Setup(),
    quick=Setup(
        length=32,
        width=16,
        layers=1,
        heads=2,
        hidden=16,
        batch_size=2,
        steps=1,
        writing=1,
        last=4,
        asked=2,
    ),
    run=run,
    claims=claims,
    draw=draw,
)
