"""Kimi's length reward: equally right in fewer tokens.

The base answers sums and goes on with some dots, as many as it likes, that add nothing. The reward
of the answer alone has no reason to change that. The length reward gives the shortest right
completion of a group a half more and the longest a half less, and a wrong one nothing for being
short.

Expected (Kimi Team 2025, arXiv 2501.12599, section 2.3.3): 40 % fewer tokens at equal accuracy. The
negative control is the same recipe without the length reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from models.environments.answers import whole
from models.environments.rewards import exact_match
from models.environments.tasks import Row, Task, addition
from models.experiments.experiment import Claim, Experiment, by_name
from models.experiments.experiment import Row as Result
from models.experiments.policies import recipe, reinforced, shown
from models.recipes.grpo import Grpo


@dataclass(frozen=True)
class Setup:
    """dots: the most that the demonstrations have. tau: of Kimi's mirror descent."""

    width: int = 64
    shown: int = 300
    wrong: float = 0.2
    dots: int = 12
    steps: int = 160
    prompts: int = 32
    group_size: int = 8
    learning_rate: float = 5e-4
    tau: float = 0.1
    length_weight: float = 0.3
    judged: int = 2000


def task(setup: Setup) -> Task:
    """Addition, with dots after the answer."""

    def before_dots(completion: str) -> str | None:
        return whole(completion.rstrip("."))

    def demonstrate(row: Row, random: np.random.Generator) -> str:
        wrong = random.random() < setup.wrong
        answer = str(random.integers(20, 199))[::-1] if wrong else row["answer"]
        return answer + "." * int(random.integers(setup.dots + 1))

    plain = addition()
    return replace(
        plain,
        name="wordy addition",
        demonstrate=demonstrate,
        rewards=[(exact_match(before_dots), 1.0)],
        alphabet=plain.alphabet + ".",
        longest_completion=plain.longest_completion + setup.dots + 4,
    )


def run(setup: Setup, seed: int, console: Console) -> list[Result]:
    """The share of right answers and the tokens of each model."""
    dotted = task(setup)
    base = shown(dotted, width=setup.width, steps=setup.shown, seed=seed, console=console)
    variants = {"base": 0.0, "without": 0.0, "with": setup.length_weight}
    rows = []
    for name, weight in variants.items():
        trained = recipe(
            base,
            dotted,
            seed,
            preset="kimi",
            steps=setup.steps,
            prompts=setup.prompts,
            group_size=setup.group_size,
            learning_rate=setup.learning_rate,
            tau=setup.tau,
            optimizer_interval=0,
            length_weight=weight,
            eval_prompts=setup.judged,
        )
        if name != "base":
            reinforced(trained, console, f"{name} the length reward")
        rows.append({"variant": name, **_judged(trained)})
    return rows


def _judged(trained: Grpo) -> dict[str, float]:
    found = trained.evaluate() or {}
    return {"right": found["val_first"], "tokens": found["val_length"]}


def claims(rows: Sequence[Result]) -> list[Claim]:
    """Of the tokens, as a share of those without the length reward, and of the right answers."""
    found = by_name(rows)
    base, without, length = (found[name] for name in ("base", "without", "with"))
    return [
        Claim("tokens, to those without", length["tokens"] / without["tokens"], "<=", 0.6),
        Claim("right answers, less those without", length["right"] - without["right"], ">=", -0.02),
        Claim(
            "without: tokens, to the base's", without["tokens"] / base["tokens"], ">=", 0.8,
            control=True,
        ),
    ]  # fmt: skip


def draw(axes: Axes, rows: Sequence[Result]) -> None:
    """Tokens against right answers."""
    for row in rows:
        axes.scatter(row["tokens"], row["right"])
        axes.annotate(
            row["variant"], (row["tokens"], row["right"]), (6, 4), textcoords="offset points"
        )
    axes.set_xlabel("tokens of a completion")
    axes.set_ylabel("share of right answers, drawn")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.05)


EXPERIMENT = Experiment(
    name="short_answers",
    question="Can a model be as right in fewer tokens?",
    setup=Setup(),
    quick=Setup(width=16, shown=2, steps=2, prompts=2, group_size=2, judged=4),
    run=run,
    claims=claims,
    draw=draw,
)
