r"""Long to short: what a model has learnt to say at length, said briefly.

A model that thinks for long is right more often and costs more. Kimi k1.5 (arXiv 2501.12599,
section 2.4) has four ways to shorten it:

    merging               the mean of the weights of the long model and of a short one
    shortest              fine-tuning on the shortest right one of n answers
    DPO                   the shortest right answer preferred to wrong and to much longer ones
    second reinforcement  a reward for being short, and fewer tokens to write

Here the thinking about a sum is its result, written one to `longest` times over. Once is enough;
the long model has learnt from all numbers of times alike, with misprints. The control is tuned on
a right answer of the n that is drawn, not chosen for its length: it learns from as many rows.

DPO's loss is satisfied once log(p / p_ref) of the two answers is a few 1 / beta apart. Here they
part at one token, the one that ends the thinking or goes on; what follows it is in both alike. That
token yields a nat or two: with beta 2 enough. With the usual 0.1 the loss asks for tens, and has
nowhere to take them from but the tokens that both answers share: a second control.

Expected: all but the merging save at least 40 % of the tokens and cost at most two points; the
merging saves some; the first control saves nothing, the second is no longer right.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from minitorch.kernels.philox import stream
from minitorch.tokenizers import CharTokenizer
from models.chat import Message, content_ids
from models.environments.answers import TAGS, tagged_answer
from models.environments.rewards import exact_match
from models.environments.tasks import SMALL, Row, bilingual
from models.experiments.experiment import Claim, Experiment, by_name
from models.generate import END_OF_TEXT
from models.merging import merge_folders
from models.options import Settings, option
from models.pipelines.mixture import Mixture
from models.pipelines.stages import Stages
from models.pipelines.toys import fine_tuning, misprinted, steps_of, write_untrained
from models.pipelines.written import Written, write
from models.recipes.dpo import DPO, DPOConfig
from models.recipes.grpo import Grpo
from models.recipes.grpo_config import GrpoConfig
from models.recipes.prompts import Prompt
from models.recipes.recipe import Recipe
from models.recipes.start import load_base

TIME = "."
SHORT = 12  # tokens, the most of the second reinforcement
LONGER = 1.5  # times the shortest, where an answer is rejected
PAIRS = 64  # in a batch of DPO
LOOSE = "DPO, small beta"
SAMPLED, MEASURED = 1 << 40, 1 << 41
"""Prompts that are sampled from, and those that are measured, are drawn with numbers from here."""


@dataclass(frozen=True, kw_only=True)
class Setup(Settings):
    """Sizes of models, rows, and trainings."""

    command: ClassVar[str] = "long_to_short"

    seed: int = option(0, "of all that is drawn", at_least=0)
    width: int = option(64, "of the model", at_least=8)
    layers: int = option(2, "of the model", at_least=1)
    rows: int = option(24000, "sums that the long model learns from", at_least=2)
    longest: int = option(8, "times that a result is thought of", at_least=2)
    right: float = option(0.9, "share of its results that are right", above=0, at_most=1)
    steps: int = option(350, "of the long model", at_least=1)
    short_rows: int = option(2000, "sums that the short model learns from", at_least=2)
    sampled_prompts: int = option(800, "sums that the long model is asked", at_least=1)
    samples: int = option(8, "answers to each", at_least=2)
    epochs: int = option(6, "of what it answers", at_least=1)
    beta: float = option(2.0, "of DPO", above=0)
    loose_beta: float = option(0.1, "of the DPO that is its control", above=0)
    dpo_epochs: int = option(3, "of the pairs", at_least=1)
    rl_steps: int = option(60, "of the second reinforcement", at_least=1)
    prompts: int = option(32, "of a step of it", at_least=1)
    measured_prompts: int = option(1000, "for the table", at_least=1)


def run(setup: Setup, seed: int, console: Console) -> list[dict[str, Any]]:
    """A row for the long model, and for each way to shorten it."""
    setup = Setup(**{**vars(setup), "seed": seed})
    with tempfile.TemporaryDirectory() as folder:
        return shortened(setup, Stages(Path(folder), setup, console))


def shortened(setup: Setup, stages: Stages) -> list[dict[str, Any]]:
    """The table, from stages that go on where they were."""
    toy = _Toy(setup, stages)
    found: list[dict[str, Any]] = []

    def measured(variant: str, stage: str, folder: Path) -> Path:
        found.append({"variant": variant, **stages.measured(stage, lambda: toy.measure(folder))})
        return folder

    def trained(variant: str, stage: str, make: Callable[[], Recipe]) -> Path:
        return measured(variant, stage, stages.train(stage, make))

    rows = stages.rows("01-rows", lambda: toy.rows(setup.rows, setup.longest))
    long = trained("long", "02-long", lambda: toy.pretrained(rows))
    brief = stages.rows("03-brief-rows", lambda: toy.rows(setup.short_rows, 1))
    short = trained("short", "04-short", lambda: toy.tuned(long, brief, 1))
    measured("merged", "05-merged", toy.merged(long, short))
    answers = stages.rows("06-answers", lambda: toy.answers(long))
    groups = grouped(answers)
    drawn = stages.rows("07-drawn", lambda: chosen(groups, lambda group: group[0]))
    trained("drawn", "08-drawn", lambda: toy.tuned(long, drawn, setup.epochs))
    shortest = stages.rows("09-shortest", lambda: chosen(groups, _shortest))
    trained("shortest", "10-shortest", lambda: toy.tuned(long, shortest, setup.epochs))
    preferred = stages.rows("11-pairs", lambda: pairs(groups))
    trained("DPO", "12-dpo", lambda: toy.dpo(long, preferred, setup.beta))
    trained(LOOSE, "13-loose-dpo", lambda: toy.dpo(long, preferred, setup.loose_beta))
    trained("second RL", "14-rl", lambda: toy.rl(long))
    return found


class _Toy:
    """The models, and the recipes that make one of another."""

    def __init__(self, setup: Setup, stages: Stages):
        self.setup, self.stages = setup, stages
        self.task = bilingual(mixed=0.0)
        alphabet = sorted(set(self.task.alphabet + TIME))
        self.tokenizer = CharTokenizer(alphabet, [END_OF_TEXT, *TAGS])
        self.max_tokens = self.task.longest_completion + 4 * (setup.longest - 1) + 1

    def rows(self, count: int, longest: int) -> Iterator[Row]:
        """Sums, thought of 1 to `longest` times."""
        random = stream(self.setup.seed, longest)
        for _ in range(count):
            row = self.task.draw(random)
            if random.random() >= self.setup.right:
                row["answer"] = misprinted(row["answer"], random)
            yield self._thought(row, int(random.integers(1, longest + 1)))

    def _thought(self, row: Row, times: int) -> Row:
        """A sum with its answer, thought of so often."""
        spelt = "".join(SMALL[int(digit)] for digit in row["answer"])
        thinking = TIME.join([spelt] * times)
        completion = f"<think>{thinking}</think><answer>{row['answer']}</answer>"
        return {"prompt": row["prompt"], "completion": completion}

    def pretrained(self, rows: Path) -> Recipe:
        setup = self.setup
        untrained = write_untrained(
            self.stages.out / "untrained",
            self.tokenizer,
            width=setup.width,
            layers=setup.layers,
            heads=4,
            positions=self.task.longest_prompt + self.max_tokens + 1,
            seed=setup.seed,
        )
        return fine_tuning(untrained, rows, steps=setup.steps, learning_rate=4e-3, seed=setup.seed)

    def tuned(self, model: Path, rows: Path, epochs: int) -> Recipe:
        """Fine-tuning of a model on rows."""
        steps, seed = steps_of(rows, epochs), self.setup.seed
        return fine_tuning(model, rows, steps=steps, learning_rate=5e-4, seed=seed)

    def merged(self, long: Path, short: Path) -> Path:
        """The mean of two models."""
        out = self.stages.out / "05-merged" / "model"
        if not (out / "config.json").is_file():
            merge_folders("linear", [long, short], out)
        return out

    def dpo(self, model: Path, rows: Path, beta: float) -> Recipe:
        """Preferences for what is right and short."""
        settings = DPOConfig(
            model=str(model),
            data=str(rows),
            template="plain",
            beta=beta,
            batch_size=PAIRS,
            steps=max(self.setup.dpo_epochs * len(rows.read_text().splitlines()) // PAIRS, 1),
            learning_rate=1e-4,
            seed=self.setup.seed,
        )
        return DPO(settings)

    def rl(self, model: Path) -> Recipe:
        """Reinforcement with Kimi's reward for lengths, and few tokens to write."""
        setup = self.setup
        settings = GrpoConfig.resolve(
            "kimi",
            None,
            {
                "advantage": "grpo",
                "loss": "clip",
                "optimizer_interval": 0,
                "model": str(model),
                "steps": setup.rl_steps,
                "prompts": setup.prompts,
                "max_tokens": SHORT,
                "learning_rate": 5e-4,
                "eval_interval": 50,
                "eval_prompts": setup.prompts,
                "seed": setup.seed,
            },
        )
        policy, tokenizer = load_base(model, setup.seed)
        source = Mixture({"sums": self.task}, tokenizer, setup.seed)
        return Grpo(settings, policy, tokenizer, source, [(exact_match(tagged_answer), 1.0)])

    def answers(self, model: Path) -> Iterator[Row]:
        """What the model says to the sums that are sampled, and whether it is right.

        Where it never is, the answer that it should have given is put beside them, at a length that
        is drawn.
        """
        setup, random = self.setup, stream(self.setup.seed, 0)
        written = self.write(model, SAMPLED, setup.sampled_prompts, setup.samples)
        for start in range(0, len(written), setup.samples):
            group = written[start : start + setup.samples]
            for one in group:
                yield {
                    "prompt": one.prompt.text,
                    "completion": one.text,
                    "length": one.length,
                    "right": _is_right(one),
                }
            if not any(map(_is_right, group)):
                row = {"prompt": group[0].prompt.text, **group[0].prompt.columns}
                given = self._thought(row, int(random.integers(1, setup.longest + 1)))
                length = len(content_ids(Message("assistant", given["completion"]), self.tokenizer))
                yield {**given, "length": length + 1, "right": True}

    def write(self, model: Path, first: int, count: int, samples: int = 1) -> list[Written]:
        prompts: list[Prompt] = Mixture({"sums": self.task}, self.tokenizer, self.setup.seed).take(
            first, count
        )
        seed, limit = self.setup.seed, self.max_tokens
        return write(model, prompts, max_tokens=limit, seed=seed, samples=samples)

    def measure(self, model: Path) -> dict[str, Any]:
        """The share of right answers, and their mean length, at temperature 1."""
        written = self.write(model, MEASURED, self.setup.measured_prompts)
        right = float(np.mean([_is_right(one) for one in written]))
        return {"right": right, "length": float(np.mean([one.length for one in written]))}


def _is_right(written: Written) -> bool:
    return tagged_answer(written.text) == written.prompt.columns["answer"]


def grouped(answers: Path) -> list[list[Row]]:
    """The answers to each prompt."""
    found: dict[str, list[Row]] = {}
    for line in answers.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["prompt"], []).append(row)
    return list(found.values())


def chosen(groups: Sequence[Sequence[Row]], choose: Callable[[list[Row]], Row]) -> Iterator[Row]:
    """One right answer to each prompt that has any."""
    for group in groups:
        right = [row for row in group if row["right"]]
        if right:
            best = choose(right)
            yield {"prompt": best["prompt"], "completion": best["completion"]}


def _shortest(rows: Sequence[Row]) -> Row:
    return min(rows, key=lambda row: row["length"])


def pairs(groups: Sequence[Sequence[Row]]) -> Iterator[Row]:
    """The shortest right answer, with each that is wrong or at least 1.5 times as long."""
    for group in groups:
        right = [row for row in group if row["right"]]
        if not right:
            continue
        best = _shortest(right)
        for row in group:
            if row["completion"] and (not row["right"] or row["length"] >= LONGER * best["length"]):
                yield {
                    "prompt": best["prompt"],
                    "chosen": best["completion"],
                    "rejected": row["completion"],
                }


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Of the tokens that are saved, and of what that costs."""
    found = by_name(rows)  # type: ignore[arg-type]
    long = found["long"]

    def saved(variant: str) -> float:
        return 1 - found[variant]["length"] / long["length"]

    def lost(variant: str) -> float:
        return long["right"] - found[variant]["right"]

    ways = ("shortest", "DPO", "second RL")
    return [
        Claim("drawn: tokens saved", saved("drawn"), "<=", 0.1, control=True),
        Claim(f"{LOOSE}: right, lost", lost(LOOSE), ">=", 0.2, control=True),
        Claim("merged: tokens saved", saved("merged"), ">=", 0.1),
        *(Claim(f"{way}: tokens saved", saved(way), ">=", 0.4) for way in ways),
        *(Claim(f"{way}: right, lost", lost(way), "<=", 0.02) for way in ways),
    ]


def draw(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Each model at its length and its share of right answers."""
    for i, row in enumerate(rows):
        axes.plot(row["length"], row["right"], "o", color=f"C{i}", label=row["variant"])
    axes.set_xlabel("tokens of an answer")
    axes.set_ylabel("right")
    axes.legend(frameon=False)


EXPERIMENT = Experiment(
    name="long_to_short",
    question="How can long thinking be made short without being wrong more often?",
    setup=Setup(),
    quick=Setup(
        width=16, layers=1, rows=40, longest=2, steps=2, short_rows=20, sampled_prompts=20,
        samples=2, epochs=1, rl_steps=1, prompts=4, measured_prompts=8,
    ),
    run=run,
    claims=claims,
    draw=draw,
)  # fmt: skip
