"""Two fine-tuned models made into one, without training: six ways of merging (models/merging.py).

A base has read sums of two digits and words after one of eight operations, most of them misprinted.
One model is fine-tuned from it on right sums, another on right words; each gets better at the one
and not at the other. Their weights are then merged, by every method.

Expected: a merged model can do both, as its parents have moved away from one base by little and in
different directions (Ilharco et al. 2022, arXiv 2212.04089, who scale down the sum of what was
learnt, too; Yadav et al. 2023, 2306.01708; Yu et al. 2023, 2311.03099). The negative control is the
mean of the model of sums and of one of words whose base was another, trained on the same rows from
other random weights: of two models without a common ancestor there is nothing to be averaged.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from minitorch.kernels.philox import stream
from minitorch.tokenizers import CharTokenizer
from models.environments.tasks import Row, addition, strings
from models.experiments.experiment import Claim, Experiment, by_name
from models.experiments.experiment import Row as Result
from models.generate import END_OF_TEXT
from models.merging import METHODS, WITHOUT_BASE, merge_folders
from models.options import Settings, option
from models.pipelines.mixture import Mixture
from models.pipelines.stages import Stages
from models.pipelines.toys import fine_tuning, misprinted, write_untrained
from models.pipelines.written import write

SUMS, WORDS = "sums", "words"
MEASURED = 1 << 41
"""Prompts that are measured are drawn with numbers from here."""

STRANGERS = "linear, two bases"
FROM_BASE = [method for method in METHODS if method not in WITHOUT_BASE]


@dataclass(frozen=True, kw_only=True)
class Setup(Settings):
    """Sizes of the models, of their rows and of their trainings."""

    command: ClassVar[str] = "merging"

    seed: int = option(0, "of all that is drawn", at_least=0)
    width: int = option(64, "of the model", at_least=8)
    layers: int = option(2, "of the model", at_least=1)
    rows: int = option(24000, "that a base learns from", at_least=2)
    right: float = option(0.3, "share of them that are right", above=0, at_most=1)
    steps: int = option(300, "of a base", at_least=1)
    tuned_rows: int = option(4000, "that a model is fine-tuned on", at_least=2)
    tuned_steps: int = option(150, "of the fine-tuning", at_least=1)
    learning_rate: float = option(1e-3, "of the fine-tuning", above=0)
    density: float = option(0.7, "share that ties and dare keep", above=0, at_most=1)
    scale: float = option(0.6, "of what was learnt, beside all of it", above=0, at_most=1)
    measured_prompts: int = option(400, "of either task", at_least=1)


def run(setup: Setup, seed: int, console: Console) -> list[Result]:
    """A row for the base, for its two children, and for each way to merge these."""
    setup = Setup(**{**vars(setup), "seed": seed})
    with tempfile.TemporaryDirectory() as folder:
        return merged(setup, Stages(Path(folder), setup, console))


def merged(setup: Setup, stages: Stages) -> list[Result]:
    """The table, from stages that go on where they were."""
    toy = _Toy(setup, stages)
    text = stages.rows("rows", lambda: toy.rows(setup.rows, list(TASKS), setup.right))
    base, stranger = (toy.base(text, seed) for seed in (setup.seed, setup.seed + 1))
    sums, words = toy.tuned(base, SUMS, "sums"), toy.tuned(base, WORDS, "words")
    other = toy.tuned(stranger, WORDS, "other-words")
    folders = {"base": base, SUMS: sums, WORDS: words}
    for name, (method, settings) in _ways(setup).items():
        folders[name] = stages.out / "merged" / name.replace(" ", "-")
        start = None if method in WITHOUT_BASE else base
        merge_folders(method, [sums, words], folders[name], start, **settings)
    folders[STRANGERS] = stages.out / "merged" / "strangers"
    merge_folders("linear", [sums, other], folders[STRANGERS])
    return [{"variant": name, **toy.measure(folder)} for name, folder in folders.items()]


def _ways(setup: Setup) -> dict[str, tuple[str, dict[str, float]]]:
    """Methods and their settings, by the names of the rows."""
    ways: dict[str, tuple[str, dict[str, float]]] = {name: (name, {}) for name in WITHOUT_BASE}
    for method in FROM_BASE:
        settings = {} if method == "task_arithmetic" else {"density": setup.density}
        ways[method] = method, settings
        ways[f"{method}, scaled"] = method, {**settings, "scale": setup.scale}
    return ways


TASKS = {SUMS: addition(digits=1), WORDS: strings()}


class _Toy:
    """The models, and what makes one of another."""

    def __init__(self, setup: Setup, stages: Stages):
        self.setup, self.stages = setup, stages
        alphabet = "".join(task.alphabet for task in TASKS.values())
        self.tokenizer = CharTokenizer(sorted(set(alphabet)), [END_OF_TEXT])
        self.max_tokens = max(task.longest_completion for task in TASKS.values())

    def rows(self, count: int, names: Sequence[str], right: float = 1.0) -> Iterator[Row]:
        """Rows of these tasks; all but a share have one character misprinted."""
        random = stream(self.setup.seed, sum(map(len, names)))
        for i in range(count):
            row = TASKS[names[i % len(names)]].draw(random)
            if random.random() >= right:
                row["answer"] = misprinted(row["answer"], random)
            yield {"prompt": row["prompt"], "completion": row["answer"]}

    def base(self, rows: Path, seed: int) -> Path:
        setup = self.setup
        untrained = write_untrained(
            self.stages.out / f"untrained-{seed}",
            self.tokenizer,
            width=setup.width,
            layers=setup.layers,
            heads=4,
            positions=max(task.longest_prompt for task in TASKS.values()) + self.max_tokens,
            seed=seed,
        )
        return self.stages.train(
            f"base-{seed}",
            lambda: fine_tuning(
                untrained, rows, steps=setup.steps, learning_rate=4e-3, seed=setup.seed
            ),
        )

    def tuned(self, model: Path, task: str, stage: str) -> Path:
        """A model after fine-tuning on right rows of a task."""
        setup = self.setup
        rows = self.stages.rows(f"rows-{task}", lambda: self.rows(setup.tuned_rows, [task]))
        return self.stages.train(
            stage,
            lambda: fine_tuning(
                model,
                rows,
                steps=setup.tuned_steps,
                learning_rate=setup.learning_rate,
                seed=setup.seed,
            ),
        )

    def measure(self, model: Path) -> dict[str, Any]:
        """The shares of right answers, sampled at temperature 1."""
        setup, found = self.setup, {}
        for name, task in TASKS.items():
            prompts = Mixture({name: task}, self.tokenizer, setup.seed).take(
                MEASURED, setup.measured_prompts
            )
            written = write(model, prompts, max_tokens=self.max_tokens, seed=setup.seed)
            right = [one.text == one.prompt.columns["answer"] for one in written]
            found[name] = float(np.mean(right))
        return found


def claims(rows: Sequence[Result]) -> list[Claim]:
    """Of the shares of right answers, mostly of the task at which a model is worse."""
    found = by_name(rows)
    lower = {name: min(row[SUMS], row[WORDS]) for name, row in found.items()}
    better = max(found[STRANGERS][SUMS], found[STRANGERS][WORDS])
    short = [*WITHOUT_BASE, *(f"{method}, scaled" for method in FROM_BASE)]
    apart = lower["ties"] - lower["task_arithmetic"]
    return [
        *(
            Claim(f"{name}: right at the worse task, above the base", lower[name] - lower["base"],
                  ">=", 0.3)
            for name in short
        ),
        Claim("ties over task_arithmetic, neither scaled", apart, ">=", 0.05),
        *(
            Claim(f"{name} alone: right at the worse task", lower[name], "<=", 0.5, control=True)
            for name in TASKS
        ),
        Claim("of two bases: right at the better task", better, "<=", 0.2, control=True),
    ]  # fmt: skip


def draw(axes: Axes, rows: Sequence[Result]) -> None:
    """Every model by what it can do of either task."""
    for i, row in enumerate(rows):
        axes.plot(row[SUMS], row[WORDS], "o", color=f"C{i}", label=row["variant"])
    axes.set_xlabel("sums right")
    axes.set_ylabel("words right")
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.05, 1.05)
    axes.legend(frameon=False, fontsize=8)


EXPERIMENT = Experiment(
    name="merging",
    question="Can two models that were fine-tuned from one base be made into one that does both?",
    setup=Setup(),
    quick=Setup(
        width=16, layers=1, rows=40, steps=2, tuned_rows=20, tuned_steps=2, measured_prompts=2
    ),
    run=run,
    claims=claims,
    draw=draw,
)
