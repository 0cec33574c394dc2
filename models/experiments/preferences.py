"""Seven losses of preferences, on words of which those with more "a" are preferred.

A model writes random words. Of two that it has written the one with more "a" is chosen; each loss
goes on from there, on the same pairs and for as many steps. A model is held against the one that
all began with: a word of its own wins over a word of that model's if it has more "a", and half
where there are as many, so that the first one stands at 0.5. Expected: DPO and its relatives reach
0.9, and order pairs right that they have not seen. Control: DPO, with a coin choosing.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import track

from minitorch.random import Generator
from models.chat import Message, end_id, render_prompt
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.experiments.words import PROMPT, draw_word, write_rows, write_untrained
from models.generate import generate_batch
from models.recipes.dpo import DPO, LOSSES, DPOConfig
from models.recipes.post_training import PostTraining
from models.recipes.sft import SFT, SFTConfig
from models.sampling import Sampler

BETA = {"ipo": 1.0, "simpo": 2.0, "orpo": 1.0}
"""Where it is not 0.1: of means over tokens, which are smaller than sums, or a weight."""


@dataclass(frozen=True)
class Setup:
    """base_steps: of learning to write words. sampled: words that two models are compared by."""

    layers: int = 2
    width: int = 32
    words: int = 4000
    base_steps: int = 300
    pairs: int = 1500
    steps: int = 150
    batch_size: int = 32
    learning_rate: float = 1e-3
    sampled: int = 500


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """Win rate, right pairs and what happened to log-probabilities, for every loss."""
    random = Generator(seed).draw()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_untrained(folder, layers=setup.layers, width=setup.width, seed=seed)
        rows = ({"prompt": PROMPT, "completion": draw_word(random)} for _ in range(setup.words))
        writer = SFT(
            SFTConfig(
                model=str(folder),
                data=write_rows(folder / "words.jsonl", rows),
                template="plain",
                steps=setup.base_steps,
                batch_size=setup.batch_size,
                learning_rate=3e-3,
                seed=seed,
            )
        )
        _train(writer, "base", console)
        (folder / "base").mkdir()
        writer.export(folder / "base")
        base = _words(writer, setup.sampled, seed)
        written = _words(writer, 3 * setup.pairs, seed + 1)
        fair = write_rows(folder / "fair.jsonl", _pairs(written, setup.pairs, None))
        coins = write_rows(folder / "coins.jsonl", _pairs(written, setup.pairs, random))
        found = [_row("before", base, base, {})]
        for variant, loss, data in [
            *((loss, loss, fair) for loss in LOSSES),
            ("coins", "dpo", coins),
        ]:
            recipe = DPO(
                DPOConfig(
                    model=str(folder / "base"),
                    data=data,
                    loss=loss,
                    beta=BETA.get(loss, 0.1),
                    steps=setup.steps,
                    batch_size=setup.batch_size,
                    learning_rate=setup.learning_rate,
                    seed=seed,
                )
            )
            before = recipe.evaluate() or {}
            _train(recipe, variant, console)
            after = recipe.evaluate() or {}
            changes = {
                "right": after["val_accuracy"],
                "chosen": after["val_chosen"] - before["val_chosen"],
                "rejected": after["val_rejected"] - before["val_rejected"],
            }
            found.append(_row(variant, _words(recipe, setup.sampled, seed + 2), base, changes))
    return found


def _train(recipe: PostTraining, label: str, console: Console) -> None:
    for _ in track(range(recipe.config.steps), label, console=console):
        recipe.train_step()


def _words(recipe: PostTraining, count: int, seed: int) -> list[str]:
    """What the model writes, drawn at temperature 1."""
    tokenizer = recipe.tokenizer
    prompt = render_prompt([Message("user", PROMPT)], tokenizer)
    written = generate_batch(
        recipe.model,
        [prompt] * count,
        max_tokens=recipe.context - len(prompt) - 1,
        sampler=Sampler(),
        generator=Generator(seed),
        vocab_size=tokenizer.vocab_size,
        stop_ids=[end_id(tokenizer)],
    )
    return [tokenizer.decode(ids) for ids in written]


def _pairs(words: Sequence[str], count: int, random: np.random.Generator | None) -> list[Row]:
    """Neighbours of which one has more "a", that one chosen; or chosen by a coin."""
    rows: list[Row] = []
    for one, other in zip(words[::2], words[1::2]):
        if not (one and other) or one.count("a") == other.count("a"):
            continue
        first = one.count("a") > other.count("a") if random is None else random.random() < 0.5
        chosen, rejected = (one, other) if first else (other, one)
        rows.append({"prompt": PROMPT, "chosen": chosen, "rejected": rejected})
    return rows[:count]


def _row(variant: str, words: Sequence[str], base: Sequence[str], changes: Row) -> Row:
    ours, theirs = (np.array([word.count("a") for word in x]) for x in (words, base))
    gaps = ours[:, None] - theirs[None]
    return {
        "variant": variant,
        "win rate": float(np.mean((gaps > 0) + 0.5 * (gaps == 0))),
        "length": float(np.mean([len(word) for word in words])),
        "right": 0.5,
        "chosen": 0.0,
        "rejected": 0.0,
        **changes,
    }


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of win rates."""
    found = by_name(rows)
    coins = found["coins"]["win rate"]
    lowest = min(found[loss]["win rate"] for loss in LOSSES)
    return [
        Claim("win rate of DPO", found["dpo"]["win rate"], ">=", 0.9),
        Claim("pairs that DPO orders right", found["dpo"]["right"], ">=", 0.9),
        Claim("lowest win rate of all losses", lowest, ">=", 0.7),
        Claim("win rate, a coin choosing", coins, "<=", 0.65, control=True),
        Claim("win rate, a coin choosing", coins, ">=", 0.35, control=True),
    ]


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Bars: win rates."""
    axes.bar([row["variant"] for row in rows], [row["win rate"] for row in rows])
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_ylabel("win rate; dotted: before")


EXPERIMENT = Experiment(
    name="preferences",
    question="Do the losses of preferences make the preferred likelier, and what else?",
    setup=Setup(),
    quick=Setup(layers=1, width=16, words=20, base_steps=2, pairs=10, steps=2, sampled=30),
    run=run,
    claims=claims,
    draw=draw,
)
