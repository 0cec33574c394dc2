"""GRPO on two-digit addition: what a model can do now and then, it comes to do always.

The base has seen sums of which more than half were wrong. Drawn at temperature 1 it is seldom
right, since it has learnt to be wrong as well, but what it writes is right more often than chance.
Then it is told of each of its answers whether it was right, and nothing else.

    base          demonstrations only
    grpo          the rewards are those of the answers
    shuffled      the same numbers, dealt out to other completions of the same prompt

Expected (Shao et al. 2024, arXiv 2402.03300: reinforcement sharpens what the model can do): right
at least 0.95 of the time when drawn, and 0.98 when greedy. The negative control has rewards that
say nothing of the completions, and must not get better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from models.environments.rewards import exact_match
from models.environments.tasks import Row, addition
from models.experiments.experiment import Claim, Experiment, by_name
from models.experiments.experiment import Row as Result
from models.experiments.policies import recipe, reinforced, shown, shuffled
from models.recipes.grpo import Grpo


@dataclass(frozen=True)
class Setup:
    """wrong: the share of wrong demonstrations. steps: of the reinforcement."""

    width: int = 64
    shown: int = 300
    wrong: float = 0.6
    steps: int = 250
    prompts: int = 32
    group_size: int = 8
    epochs: int = 2
    learning_rate: float = 1e-3
    judged: int = 500


def run(setup: Setup, seed: int, console: Console) -> list[Result]:
    """The share of right answers of each model, drawn and greedy."""
    task = addition()

    def demonstrate(row: Row, random: np.random.Generator) -> str:
        wrong = random.random() < setup.wrong
        return str(random.integers(20, 199))[::-1] if wrong else row["answer"]

    base = shown(
        task,
        width=setup.width,
        steps=setup.shown,
        seed=seed,
        console=console,
        demonstrate=demonstrate,
    )
    settings: dict[str, Any] = {
        "preset": "dr_grpo",
        "steps": setup.steps,
        "prompts": setup.prompts,
        "group_size": setup.group_size,
        "epochs": setup.epochs,
        "learning_rate": setup.learning_rate,
        "schedule": "cosine",
        "eval_prompts": setup.judged,
    }
    first = recipe(base, task, seed, **settings)
    rows = [{"variant": "base", **_judged(first), "rewards": []}]
    rewards = {"grpo": exact_match(), "shuffled": shuffled(exact_match(), setup.group_size, seed)}
    for name, reward in rewards.items():
        trained = recipe(base, task, seed, rewards=[(reward, 1.0)], **settings)
        reinforced(trained, console, name)
        trained.rewards = task.rewards
        rows.append({"variant": name, **_judged(trained), "rewards": trained.history["reward"]})
    return rows


def _judged(trained: Grpo) -> dict[str, float]:
    found = trained.evaluate() or {}
    return {"drawn": found["val_first"], "greedy": found["greedy"]}


def claims(rows: Sequence[Result]) -> list[Claim]:
    """Of the share of right answers."""
    found = by_name(rows)
    return [
        Claim("the base, drawn", found["base"]["drawn"], "<=", 0.45),
        Claim("after GRPO, drawn", found["grpo"]["drawn"], ">=", 0.95),
        Claim("after GRPO, greedy", found["grpo"]["greedy"], ">=", 0.98),
        Claim("with shuffled rewards, drawn", found["shuffled"]["drawn"], "<=", 0.5, control=True),
    ]


def draw(axes: Axes, rows: Sequence[Result]) -> None:
    """The mean reward of every step."""
    for row in rows:
        if row["rewards"]:
            rewards = np.array(row["rewards"])
            axes.plot(np.arange(1, len(rewards) + 1), rewards, label=row["variant"], linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("share of right answers, drawn")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False)


EXPERIMENT = Experiment(
    name="grpo_addition",
    question="Does a model that is right now and then come to be right always, told no answer?",
    setup=Setup(),
    quick=Setup(width=16, shown=2, steps=2, prompts=2, group_size=2, judged=4),
    run=run,
    claims=claims,
    draw=draw,
)
