"""What to keep in a cache of a given size: few heads, shared heads, or latents.

A model that writes keeps `kept` numbers for each token and layer. All models have equally many
parameters: what an attention saves, its feed-forward layer gets.

                    query heads   kept
    reference       all           keys and values of all heads, 4 times what the others keep
    few heads       a quarter     keys and values of each
    grouped         all           keys and values of a quarter as many heads, each for four
    multi-query     all           keys and values of one head for all, twice as large
    latent          all           a latent and a rotated key, from which all heads are made
    none            all           nothing: a token sees itself alone

Run number i of every kind reads the same texts in the same order, so differences between kinds are
taken run by run, and their standard error says which of them mean anything.

Expected (Ainslie et al. 2023, arXiv 2305.13245; DeepSeek-AI 2024, 2405.04434): grouped heads lose
little against the reference, and latents at least nothing against grouped heads. The negative
control keeps nothing: if it were as good, attention would not matter here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from minitorch import nn
from minitorch.backend import DEFAULT_FLOAT
from minitorch.data import BatchLoader
from minitorch.random import Generator
from models.blocks.attention import Attention, AttentionConfig
from models.blocks.feed_forward import GatedFeedForward
from models.blocks.latent import LatentAttention, LatentConfig, softmax_scale
from models.blocks.positions import Rotary
from models.decoder import Block, DecoderConfig
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.experiments.learning import embedded, mean_loss, train

SHARED = 4
"""How many times as much the reference keeps."""
KINDS = ("reference", "few heads", "grouped", "multi-query", "latent", "none")


@dataclass(frozen=True)
class Setup:
    """hidden: of the reference's feed-forward layer. runs: of each kind, each with its own seed."""

    length: int = 64
    width: int = 64
    layers: int = 2
    heads: int = 8
    hidden: int = 128
    batch_size: int = 16
    steps: int = 1500
    learning_rate: float = 3e-3
    runs: int = 4


@dataclass(frozen=True, kw_only=True)
class Config(DecoderConfig):
    """A decoder with attention of one of KINDS, and the parameters of the reference."""

    kind: str
    heads: int
    hidden: int

    def attention(
        self, kind: str, dtype: np.dtype, generator: Generator | None
    ) -> Attention | LatentAttention:
        """The attention of a layer."""
        width, heads = self.hidden_size, self.heads
        head_dim, few = width // heads, heads // SHARED
        if kind == "latent":
            kept = 2 * few * head_dim
            latent = LatentConfig(
                hidden_size=width,
                num_heads=heads,
                q_lora_rank=None,
                kv_lora_rank=kept - head_dim,
                qk_nope_head_dim=head_dim,
                qk_rope_head_dim=head_dim,
                v_head_dim=head_dim,
                rotary=Rotary(head_dim),
                scale=softmax_scale(2 * head_dim, None),
            )
            return LatentAttention(latent, dtype, generator)
        query_heads, kv_heads, size = {
            "reference": (heads, heads, head_dim),
            "few heads": (few, few, head_dim),
            "grouped": (heads, few, head_dim),
            "multi-query": (heads, 1, few * head_dim),
            "none": (heads, heads, head_dim),
        }[kind]
        config = AttentionConfig(
            hidden_size=width,
            num_heads=query_heads,
            num_kv_heads=kv_heads,
            head_dim=size,
            rotary=Rotary(size),
            window=1 if kind == "none" else None,
        )
        return Attention(config, dtype, generator)

    def block(self, layer: int, dtype: np.dtype, generator: Generator | None) -> Block:
        attention = self.attention(self.kind, dtype, generator)
        with nn.init.unallocated():
            reference = self.attention("reference", dtype, None)
        saved = reference.num_parameters() - attention.num_parameters()
        hidden = self.hidden + round(saved / (3 * self.hidden_size))
        return Block(
            attention,
            GatedFeedForward(self.hidden_size, hidden, dtype=dtype, generator=generator),
            (self.norm(dtype), self.norm(dtype)),
        )


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """One row for each kind: the mean loss over the runs, and the losses."""
    text = embedded(setup.length)
    rows: list[Row] = []
    for kind in KINDS:
        config = Config(
            vocab_size=text.vocab_size,
            hidden_size=setup.width,
            num_hidden_layers=setup.layers,
            max_position_embeddings=setup.length,
            kind=kind,
            heads=setup.heads,
            hidden=setup.hidden,
        )
        losses = []
        for number in range(seed * setup.runs, (seed + 1) * setup.runs):
            model = config.build(DEFAULT_FLOAT, Generator(number))
            batches = BatchLoader(text.train, setup.batch_size, setup.length, number)
            label = f"{kind}, seed {number}"
            train(model, batches, setup.steps, setup.learning_rate, console, label)
            losses.append(mean_loss(model, text.validation, setup.length))
        rows.append(
            {
                "variant": kind,
                "kept": kept_numbers(config),
                "parameters": config.num_parameters(),
                "loss": float(np.mean(losses)),
                "losses": losses,
            }
        )
    for row in rows:
        row["above reference"], row["error"] = difference(row["losses"], rows[0]["losses"])
    return rows


def difference(losses: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The mean of losses - others, run by run, and its standard error; 0 of a single run."""
    apart = np.subtract(losses, others)
    error = apart.std(ddof=1) / np.sqrt(len(apart)) if len(apart) > 1 else 0.0
    return float(apart.mean()), float(error)


def kept_numbers(config: Config) -> int:
    """The numbers that a layer keeps of a token for those that follow."""
    with nn.init.unallocated():
        attention = config.attention(config.kind, DEFAULT_FLOAT, None)
    if isinstance(attention, LatentAttention):
        return attention.config.kv_lora_rank + attention.config.qk_rope_head_dim
    sizes = attention.config
    return 0 if sizes.window == 1 else 2 * sizes.num_kv_heads * sizes.head_dim


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of mean losses in nats per character."""
    found = by_name(rows)
    loss = {name: row["loss"] for name, row in found.items()}
    return [
        Claim("none above reference", loss["none"] - loss["reference"], ">=", 0.3, control=True),
        Claim(
            "grouped above reference, share", loss["grouped"] / loss["reference"] - 1, "<=", 0.02
        ),
        Claim("latent above reference, share", loss["latent"] / loss["reference"] - 1, "<=", 0.02),
        Claim("latent above grouped", loss["latent"] - loss["grouped"], "<=", 0.02),
    ]


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Losses of all runs of each kind, and their means."""
    shown = [row for row in rows if row["variant"] != "none"]
    for place, row in enumerate(shown):
        axes.plot([place] * len(row["losses"]), row["losses"], "o", color="C1", alpha=0.5)
        axes.plot([place - 0.2, place + 0.2], [row["loss"]] * 2, color="C0")
    names = [f"{row['variant']}\n{row['kept']}" for row in shown]
    axes.set_xticks(range(len(shown)), names)
    axes.set_xlabel("kind of attention, and the numbers it keeps for a token and layer")
    axes.set_ylabel("loss, nats per character")


EXPERIMENT = Experiment(
    name="cache_diets",
    question="Which attention makes the most of a cache of a given size?",
    setup=Setup(),
    quick=Setup(length=16, width=32, layers=1, hidden=16, batch_size=2, steps=2, runs=1),
    run=run,
    claims=claims,
    draw=draw,
)
