"""Fine-tuning on eight operations on words: from no answer to right ones, and what is forgotten.

A character model that has read the embedded corpus is fine-tuned on questions such as

    rev abcd=  ->  dcba            up, sort, first, last, twice, rot, len are the others

no question of which is in both parts. Expected: no answer of the base is exact, and almost all are
afterwards; meanwhile the corpus is forgotten (its loss rises), and a tenth of plain text among the
rows keeps most of it. Control: the same without the token that ends an answer in the mask. That
model knows the answers and never stops, so that none of them is exact.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import track

from models.chat import end_id
from models.config import TrainConfig
from models.corpus import prepare
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.recipes import data
from models.recipes.recipe import Recipe
from models.recipes.sft import SFT, SFTConfig
from models.training import Run


@dataclass(frozen=True)
class Setup:
    """base_steps: of reading the corpus; steps: of fine-tuning."""

    layers: int = 3
    heads: int = 4
    width: int = 96
    base_steps: int = 300
    rows: int = 6000
    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 3e-3
    replay: float = 0.1
    questions: int = 300


class WithoutEnds(SFT):
    """Fine-tuning that does not learn the token which ends an answer."""

    def _example(self, row: data.Row) -> data.Example:
        item = super()._example(row)
        return dataclasses.replace(item, mask=item.mask & (item.ids != end_id(self.tokenizer)))


def steps(recipe: Recipe, label: str, console: Console) -> None:
    """All steps of a recipe, without evaluations or checkpoints."""
    for _ in track(range(recipe.config.steps), label, console=console):
        recipe.train_step()


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """Exact answers, and the loss on the corpus, of the base and of three ways to go on."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        sizes = {"n_layer": setup.layers, "n_head": setup.heads, "n_embd": setup.width}
        config = TrainConfig(**sizes, steps=setup.base_steps, seed=seed)  # type: ignore[arg-type]
        reader = Run(config, prepare(config))
        steps(reader, "base", console)
        reader.export(base)
        common = SFTConfig(
            model=str(base),
            template="turns",
            task_rows=setup.rows,
            val_fraction=setup.questions / setup.rows,
            eval_rows=setup.questions,
            text="embedded",
            steps=setup.steps,
            batch_size=setup.batch_size,
            learning_rate=setup.learning_rate,
            seed=seed,
        )
        replayed = dataclasses.replace(common, replay=setup.replay)
        rows = [_row("base", SFT(common))]
        for name, recipe in (
            ("fine-tuned", SFT(common)),
            ("with plain text", SFT(replayed)),
            ("ends not learnt", WithoutEnds(common)),
        ):
            steps(recipe, name, console)
            rows.append(_row(name, recipe))
    return rows


def _row(name: str, recipe: SFT) -> Row:
    found = recipe.evaluate()
    assert found is not None
    return {
        "variant": name,
        "exact answers": found["exact_match"],
        "loss of answers": found["val_loss"],
        "loss of the corpus": found["text_loss"],
    }


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of exact answers and of what is forgotten."""
    found = by_name(rows)
    exact = {name: row["exact answers"] for name, row in found.items()}
    lost = {
        name: row["loss of the corpus"] - found["base"]["loss of the corpus"]
        for name, row in found.items()
    }
    return [
        Claim("exact answers of the base", exact["base"], "<=", 0.02, control=True),
        Claim("exact answers, ends not learnt", exact["ends not learnt"], "<=", 0.02, control=True),
        Claim("exact answers, fine-tuned", exact["fine-tuned"], ">=", 0.95),
        Claim("exact answers, with plain text", exact["with plain text"], ">=", 0.95),
        Claim("nats per character forgotten, fine-tuned", lost["fine-tuned"], ">=", 1.0),
        Claim(
            "share of that with plain text",
            lost["with plain text"] / lost["fine-tuned"],
            "<=",
            0.5,
        ),
    ]


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Bars: exact answers, and the loss on the corpus beside them."""
    places = np.arange(len(rows))
    axes.bar(places - 0.2, [row["exact answers"] for row in rows], 0.38)
    axes.set_xticks(places, [row["variant"] for row in rows])
    axes.set_ylabel("exact answers", color="C0")
    loss = axes.twinx()
    loss.bar(places + 0.2, [row["loss of the corpus"] for row in rows], 0.38, color="C1")
    loss.set_ylabel("nats per character of the corpus", color="C1")


EXPERIMENT = Experiment(
    name="instructions",
    question="What does fine-tuning teach, and what is forgotten meanwhile?",
    setup=Setup(),
    quick=Setup(layers=1, width=16, base_steps=2, rows=40, steps=2, batch_size=10, questions=5),
    run=run,
    claims=claims,
    draw=draw,
)
