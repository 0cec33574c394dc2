"""DAPO's clip-higher: whose room the upper bound of the clip is, and what it does to the entropy.

PPO's clip stops a ratio p / p_old at 1 - eps and 1 + eps. What is likely never comes near 1 + eps;
what is rare does with each success, so that the upper bound is the rare's (Yu et al. 2025, DAPO,
arXiv 2503.14476, section 3.1, where 1.28 takes the place of 1.2). Here a policy is a table: in each
state the logits of 16 answers, the first of which has most of the probability. Nothing is shared
between states and the entropy is that of the distribution itself, so that only the clip remains to
tell two runs apart. What is right is drawn for each answer that is written:

    noisy    the common answer is right 6 times in 10, eight of the rare 9 times, the others never
    coin     all answers are right every other time: there is nothing to learn
    sure     the common answer and seven of the rare are never right, eight are always

Expected: with clip-higher the rare but better answers are found sooner, and the entropy, which
falls even where nothing can be learnt, falls less. Negative control: one update for each batch, in
which every ratio is 1 and nothing is clipped, so that the two are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import track

import minitorch as mt
from minitorch import optim, rl
from minitorch.random import Generator
from models.experiments.experiment import Claim, Experiment, Row, by_name

ANSWERS, BETTER = 16, 8


class Kind(NamedTuple):
    """common: the first answer's probability at first. chances: of each answer to be right."""

    common: float
    chances: list[float]


KINDS = {
    "noisy": Kind(0.85, [0.6, *[0.0] * (ANSWERS - 1 - BETTER), *[0.9] * BETTER]),
    "coin": Kind(0.5, [0.5] * ANSWERS),
    "sure": Kind(0.85, [0.0] * (ANSWERS - BETTER) + [1.0] * BETTER),
}

CLIPS = {"symmetric": 0.2, "higher": 0.28}
ONE = "noisy, one update"
GOOD = 0.8
"""The mean reward of which it is counted after how many steps it is reached."""


@dataclass(frozen=True)
class Setup:
    """states: tables, of which nothing is shared. updates: from one batch."""

    states: int = 200
    group_size: int = 8
    steps: int = 200
    updates: int = 8
    learning_rate: float = 0.2


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """Rewards and entropies of all steps, by what is right, and by the clip."""
    kinds = {**{kind: (kind, setup.updates) for kind in KINDS}, ONE: ("noisy", 1)}
    rows = []
    for name, (kind, updates) in kinds.items():
        for clip, high in CLIPS.items():
            label = f"{name}, {clip}"
            steps = track(range(setup.steps), label, console=console)
            random = Generator(seed).draw()
            table = _Table(setup, KINDS[kind], high, random)
            curves = [table.learn(updates) for _ in steps]
            rewards, entropies = (list(curve) for curve in zip(*curves, strict=True))
            rows.append(
                {
                    "variant": label,
                    "reward": rewards[-1],
                    "entropy at first": entropies[0],
                    "entropy": entropies[-1],
                    "steps to 0.8": next(
                        (i for i, reward in enumerate(rewards) if reward >= GOOD), setup.steps
                    ),
                    "rewards": rewards,
                    "entropies": entropies,
                }
            )
    return rows


class _Table:
    """A policy without a network, and what it learns from."""

    def __init__(self, setup: Setup, kind: Kind, clip_high: float, random: np.random.Generator):
        self.setup, self.clip_high, self.random = setup, clip_high, random
        self.chances = np.array(kind.chances)
        first = np.full(ANSWERS, (1 - kind.common) / (ANSWERS - 1))
        first[0] = kind.common
        logits = np.tile(np.log(first), (setup.states, 1))
        self.logits = mt.tensor(logits, dtype=mt.float64, requires_grad=True)
        self.optimizer = optim.SGD([self.logits], setup.learning_rate)

    def learn(self, updates: int) -> tuple[float, float]:
        """The expected reward and the entropy, before GRPO's updates from a group in each state."""
        probs = self.logits.detach().softmax(-1).numpy()
        found = float((probs * self.chances).sum(-1).mean()), self._entropy()
        answers, advantages = self._group(probs)
        old = self._log_probs(answers).detach()
        aggregate = rl.share_of(self.setup.group_size)
        for _ in range(updates):
            self.optimizer.zero_grad()
            rl.ppo_loss(
                self._log_probs(answers),
                old,
                advantages,
                mt.ones(*old.shape),
                clip_high=self.clip_high,
                aggregate=aggregate,
            ).backward()
            self.optimizer.step()
        return found

    def _group(self, probs: np.ndarray) -> tuple[mt.Tensor, mt.Tensor]:
        """Answers in each state, and their advantages: (states, group_size)."""
        size = (self.setup.states, self.setup.group_size)
        drawn = self.random.random((*size, 1)) > probs.cumsum(-1)[:, None, :-1]
        answers = drawn.sum(-1)
        rewards = (self.random.random(size) < self.chances[answers]).astype(float)
        return mt.from_numpy(answers), rl.grpo_advantages(mt.from_numpy(rewards))

    def _log_probs(self, answers: mt.Tensor) -> mt.Tensor:
        return self.logits.log_softmax(-1).gather(1, answers)

    def _entropy(self) -> float:
        return rl.entropy(self.logits.detach()).mean().item()


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of entropies in nats, and of steps."""
    found = by_name(rows)

    def apart(name: str, key: str) -> float:
        return found[f"{name}, higher"][key] - found[f"{name}, symmetric"][key]

    symmetric, higher = (found[f"noisy, {clip}"]["steps to 0.8"] for clip in CLIPS)
    coin = found["coin, symmetric"]
    lost = coin["entropy"] / coin["entropy at first"]
    return [
        Claim("noisy: steps to 0.8, higher to symmetric", higher / symmetric, "<=", 0.8),
        Claim("noisy: reward, higher less symmetric", apart("noisy", "reward"), ">=", 0.0),
        Claim("coin, symmetric: entropy, to that at first", lost, "<=", 0.7),
        Claim("coin: entropy, higher less symmetric", apart("coin", "entropy"), ">=", 0.3),
        Claim("one update: entropy, apart", abs(apart(ONE, "entropy")), "<=", 0.0, control=True),
        Claim("sure: entropy, higher less symmetric", apart("sure", "entropy"), "<=", 0.0),
    ]  # fmt: skip


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Entropies by step, and dotted the rewards where there is something to learn."""
    found = by_name(rows)
    for clip, color in zip(CLIPS, ("C0", "C1"), strict=True):
        noisy, coin = (found[f"{kind}, {clip}"] for kind in ("noisy", "coin"))
        axes.plot(noisy["entropies"], color=color, label=f"{clip}: entropy, noisy")
        axes.plot(coin["entropies"], "--", color=color, label=f"{clip}: entropy, coin")
        axes.plot(noisy["rewards"], ":", color=color, label=f"{clip}: reward, noisy")
    axes.set_xlabel("step")
    axes.set_ylabel("nats; mean reward")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7, ncols=2)


EXPERIMENT = Experiment(
    name="clip_higher",
    question="What does a clip with more room above do to a policy's entropy?",
    setup=Setup(),
    quick=Setup(states=4, steps=3),
    run=run,
    claims=claims,
    draw=draw,
)
