"""The length that GRPO's average prefers, and Dr. GRPO's does not.

    prompt  ?      completion  !+....   or   !-....

The model asks with "!", is told "+" or "-" by a coin, and writes as many dots as it likes. A plus
is rewarded and a minus is not, so there is nothing to be learnt: neither the coin nor the reward
looks at the dots. But GRPO divides a completion's loss by its length. After a minus it is pushed
down by less per token the longer it is, and after a plus pushed up by more the shorter it is. So
what follows a failure becomes longer than what follows a success. Dr. GRPO divides by a constant,
and is the control: after either it writes equally much. (Both models drift together after plus and
minus, which is chance; so the two are compared with each other, not with what they were.)

Expected (Liu et al. 2025, arXiv 2503.20783, section 3.1, of wrong and right answers).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from models.environments.rewards import Reward
from models.environments.tasks import Row, Task
from models.experiments.experiment import Claim, Experiment, by_name
from models.experiments.experiment import Row as Result
from models.experiments.policies import recipe, reinforced, shown
from models.recipes.grpo import Grpo
from models.rollouts import Rollout
from models.sampling import Sampler

LONGEST = 24
SIGNS = "+-"


@dataclass(frozen=True)
class Setup:
    """stop: the probability, in the demonstrations, that no further dot comes."""

    width: int = 32
    shown: int = 150
    stop: float = 0.2
    steps: int = 60
    prompts: int = 16
    group_size: int = 16
    learning_rate: float = 5e-4
    judged: int = 400


def plus() -> Reward:
    """1 where the coin fell so."""

    def plus(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        return [float("+" in completion) for completion in completions]

    return plus


def coin(setup: Setup, seed: int) -> Task:
    """Ask, be told, and write dots."""
    random = np.random.default_rng(seed)

    def demonstrate(row: Row, random: np.random.Generator) -> str:
        dots = min(int(random.geometric(setup.stop)) - 1, LONGEST - 3)
        return f"!{random.choice(list(SIGNS))}{'.' * dots}"

    return Task(
        name="coin",
        draw=lambda random: {"prompt": "?", "answer": ""},
        demonstrate=demonstrate,
        rewards=[(plus(), 1.0)],
        alphabet="?!.+-",
        longest_prompt=1,
        longest_completion=LONGEST,
        tool=lambda text: SIGNS[int(random.integers(2))],
        call="!",
    )


def run(setup: Setup, seed: int, console: Console) -> list[Result]:
    """The mean number of dots after a plus and after a minus."""
    base = shown(
        coin(setup, seed), width=setup.width, steps=setup.shown, seed=seed, console=console
    )
    rows = []
    for name, preset in (("base", "grpo"), ("GRPO", "grpo"), ("Dr. GRPO", "dr_grpo")):
        trained = recipe(
            base,
            coin(setup, seed),
            seed,
            preset=preset,
            steps=setup.steps,
            prompts=setup.prompts,
            group_size=setup.group_size,
            learning_rate=setup.learning_rate,
            beta=0.0,
            max_calls=1,
        )
        if name != "base":
            reinforced(trained, console, name)
        dots = {f"dots after {sign}": dots_after(trained, sign, setup.judged) for sign in SIGNS}
        rows.append({"variant": name, **dots})
    return rows


def dots_after(trained: Grpo, sign: str, count: int) -> float:
    """How many the model writes, drawn, after it was told so."""
    asked = tuple(trained.tokenizer.encode("?!" + sign))
    begun = [Rollout((1 << 65) + i, asked) for i in range(count)]
    written = trained.complete(begun, Sampler(), trained.max_tokens - 2)
    return float(np.mean([len(r.completion_ids) - r.finished for r in written]))


def claims(rows: Sequence[Result]) -> list[Claim]:
    """Of the dots after a minus, as a multiple of those after a plus."""
    found = by_name(rows)

    def ratio(name: str) -> float:
        return found[name]["dots after -"] / found[name]["dots after +"]

    return [
        Claim("GRPO: dots after a minus, to a plus's", ratio("GRPO"), ">=", 2.0),
        Claim("Dr. GRPO: the same, less 1", abs(ratio("Dr. GRPO") - 1), "<=", 0.2, control=True),
        Claim("the base: the same, less 1", abs(ratio("base") - 1), "<=", 0.2, control=True),
    ]


def draw(axes: Axes, rows: Sequence[Result]) -> None:
    """Bars: dots after either side of the coin."""
    places = np.arange(len(rows))
    for shift, sign in ((-0.2, "+"), (0.2, "-")):
        heights = [row[f"dots after {sign}"] for row in rows]
        axes.bar(places + shift, heights, 0.38, label=f"after {sign}")
    axes.set_xticks(places, [row["variant"] for row in rows])
    axes.set_ylabel("mean number of dots")
    axes.legend(frameon=False)


EXPERIMENT = Experiment(
    name="length_bias",
    question="Does what follows a failure grow long although no reward speaks of length?",
    setup=Setup(),
    quick=Setup(width=16, shown=2, steps=2, prompts=2, group_size=2, judged=10),
    run=run,
    claims=claims,
    draw=draw,
)
