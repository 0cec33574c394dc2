r"""A pole on a cart, balanced by pushing the cart: PPO and TRPO on the physics of 1983.

    theta'' = (g sin theta - cos theta u) / (l (4/3 - m cos² theta / M))
    x''     = u - m l theta'' cos theta / M,      u = (F + m l theta'² sin theta) / M

M = 1.1 kg cart and pole together, m = 0.1 kg the pole, l = 0.5 m half its length, F = ±10 N the
push, g = 9.8 m/s²; friction, which the paper has, is left out, as Gymnasium's CartPole-v1 does. A
step is 0.02 s by Euler's rule, positions first. An episode ends when the cart leaves ±2.4 m or the
pole ±12 degrees, and is cut off after 500 steps; each step earns 1, so 500 is the most there is.

An episode that was cut off has not failed: what would have come is V of its last state. The
negative control is PPO whose advantages have been shuffled among the steps: it is as noisy, and
knows nothing of what was good. Sources: Barto, Sutton and Anderson 1983, "Neuronlike adaptive
elements that can solve difficult learning control problems", appendix; PPO, Schulman et al. 2017
(arXiv 1707.06347); TRPO, 2015 (1502.05477). Expected: both solve it within 100,000 steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import track

import minitorch as mt
from minitorch import optim, rl
from minitorch.tensor import Tensor
from models.experiments.experiment import Claim, Experiment, Row, by_name

GRAVITY, CART, POLE, HALF_LENGTH, PUSH = 9.8, 1.0, 0.1, 0.5, 10.0
SECONDS, TRACK, TILT, LONGEST = 0.02, 2.4, np.radians(12), 500


def accelerations(
    angle: np.ndarray, spin: np.ndarray, force: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(of the cart, of the pole's angle), m/s² and rad/s². All (...)."""
    mass = CART + POLE
    u = (force + POLE * HALF_LENGTH * spin**2 * np.sin(angle)) / mass
    inertia = HALF_LENGTH * (4 / 3 - POLE * np.cos(angle) ** 2 / mass)
    tilting = (GRAVITY * np.sin(angle) - np.cos(angle) * u) / inertia
    return u - POLE * HALF_LENGTH * tilting * np.cos(angle) / mass, tilting


class CartPole:
    """Several carts at once. state: (carts, 4), position, speed, angle and spin of each."""

    def __init__(self, carts: int, rng: np.random.Generator):
        self.rng = rng
        self.state = self._fresh(carts)
        self.steps = np.zeros(carts, int)

    def _fresh(self, carts: int) -> np.ndarray:
        return self.rng.uniform(-0.05, 0.05, (carts, 4))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Push left (0) or right (1): (states reached, which failed, which were cut off).

        Those that failed or were cut off start anew in `state`. actions: (carts,).
        """
        position, speed, angle, spin = self.state.T
        sliding, tilting = accelerations(angle, spin, np.where(actions == 1, PUSH, -PUSH))
        reached = np.stack(
            [
                position + SECONDS * speed,
                speed + SECONDS * sliding,
                angle + SECONDS * spin,
                spin + SECONDS * tilting,
            ],
            axis=1,
        )
        self.steps += 1
        failed = (np.abs(reached[:, 0]) > TRACK) | (np.abs(reached[:, 2]) > TILT)
        cut = (self.steps >= LONGEST) & ~failed
        over = failed | cut
        self.state = reached.copy()
        self.state[over] = self._fresh(int(over.sum()))
        self.steps[over] = 0
        return reached, failed, cut


@dataclass(frozen=True)
class Setup:
    """carts * horizon steps are played between updates; seeds: runs of each variant."""

    seeds: int = 3
    steps: int = 100_000
    carts: int = 8
    horizon: int = 128
    hidden: int = 64
    gamma: float = 0.99
    lam: float = 0.95
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 1e-3
    clip: float = 0.2
    max_divergence: float = 0.01
    checkpoints: int = 10
    test_carts: int = 32


Weights = list[Tensor]


def network(inputs: int, hidden: int, outputs: int, last: float, rng: Any) -> Weights:
    """Matrices and biases of two hidden layers. last: how large the last matrix starts."""
    sizes = [inputs, hidden, hidden, outputs]
    weights = []
    for rows, columns, gain in zip(sizes, sizes[1:], (2**0.5, 2**0.5, last)):
        q, _ = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        matrix = gain * (q if q.shape == (rows, columns) else q.T)
        weights += [matrix, np.zeros(columns)]
    return [mt.tensor(w.astype(np.float32), requires_grad=True) for w in weights]


def apply(weights: Weights, x: Tensor) -> Tensor:
    """(..., inputs) -> (..., outputs), tanh between the layers."""
    for i in range(0, len(weights), 2):
        x = x @ weights[i] + weights[i + 1]
        x = x.tanh() if i + 2 < len(weights) else x
    return x


class Batch(NamedTuple):
    """What was played, step by step: states (1, steps, 4), the others (1, steps)."""

    states: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor

    def parts(self, setup: Setup, rng: Any) -> Iterator["Batch"]:
        """All steps in random order, a minibatch at a time, again and again for all epochs."""
        for _ in range(setup.epochs):
            order = rng.permutation(self.actions.numel())
            for chosen in np.array_split(order, setup.minibatches):
                index = mt.from_numpy(chosen)
                yield Batch(*(x[:, index] for x in self))


def play(
    carts: CartPole,
    policy: Weights,
    critic: Callable[[np.ndarray], np.ndarray],
    setup: Setup,
    rng: Any,
) -> Batch:
    """Let the policy push for `horizon` steps, and judge each of its pushes by the critic.

    The pieces of episodes in between are sequences of their own, as `rl.gae` takes them.
    """
    shape = (carts.steps.size, setup.horizon)
    states, reached = np.empty((2, *shape, 4), np.float32)
    actions = np.empty(shape, np.int64)
    ended, failed = np.zeros((2, *shape), bool)
    for t in range(setup.horizon):
        states[:, t] = carts.state
        actions[:, t] = drawn(policy, carts.state, rng)
        reached[:, t], failed[:, t], cut = carts.step(actions[:, t])
        ended[:, t] = failed[:, t] | cut
    ended[:, -1] = True
    values, after = critic(states), critic(reached)
    with mt.no_grad():
        log_probs = rl.token_log_probs(apply(policy, mt.from_numpy(states)), mt.from_numpy(actions))
    pieces = [
        (cart, start, end + 1)
        for cart in range(shape[0])
        for ends in [np.flatnonzero(ended[cart])]
        for start, end in zip([0, *(ends[:-1] + 1)], ends)
    ]
    rows = np.zeros((2, len(pieces), setup.horizon), np.float32)
    for row, (cart, start, end) in enumerate(pieces):
        rows[0, row, : end - start] = 1.0
        rows[1, row, : end - start] = values[cart, start:end]
    last = [0.0 if failed[c, e - 1] else float(after[c, e - 1]) for c, _, e in pieces]
    rewards, believed = mt.from_numpy(rows[0]), mt.from_numpy(rows[1])
    mask = rewards > 0
    found = rl.gae(
        rewards,
        believed,
        mask,
        gamma=setup.gamma,
        lam=setup.lam,
        last_value=mt.tensor(last, dtype=mt.float32),
    )
    return Batch(
        mt.from_numpy(states.reshape(1, -1, 4)),
        mt.from_numpy(actions.reshape(1, -1)),
        log_probs.reshape(1, -1),
        rl.whiten(found.advantages, mask).masked_select(mask).unsqueeze(0),
        found.returns.masked_select(mask).unsqueeze(0),
    )


def drawn(policy: Weights, state: np.ndarray, rng: Any) -> np.ndarray:
    """An action for each state, as likely as the policy has it."""
    with mt.no_grad():
        logits = apply(policy, mt.from_numpy(state.astype(np.float32))).numpy()
    return (logits + rng.gumbel(size=logits.shape)).argmax(-1)


def score(policy: Weights, carts: int, rng: Any) -> float:
    """How long its favourite actions keep the pole up, on average, of 500 steps."""
    world = CartPole(carts, rng)
    alive, lasted = np.ones(carts, bool), np.zeros(carts)
    while alive.any():
        with mt.no_grad():
            logits = apply(policy, mt.from_numpy(world.state.astype(np.float32))).numpy()
        _, failed, cut = world.step(logits.argmax(-1))
        lasted += alive
        alive &= ~(failed | cut)
    return float(lasted.mean())


class Critic:
    """What a state is worth, in units of 1 / (1 - gamma), the most that there can be."""

    def __init__(self, setup: Setup, rng: Any):
        self.weights, self.setup, self.rng = network(4, setup.hidden, 1, 1.0, rng), setup, rng
        self.unit = 1 / (1 - setup.gamma)
        self.optimizer = optim.Adam(self.weights, setup.learning_rate)

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """(..., 4) -> (...)."""
        with mt.no_grad():
            return self.unit * apply(self.weights, mt.from_numpy(states)).numpy()[..., 0]

    def update(self, batch: Batch) -> None:
        """Learn the returns of a batch."""
        for part in batch.parts(self.setup, self.rng):
            values = apply(self.weights, part.states).squeeze(-1)
            self.optimizer.zero_grad()
            loss = rl.value_loss(values, part.returns / self.unit, mt.ones(*values.shape))
            loss.backward()
            self.optimizer.step()


class PPO:
    """Epochs of clipped steps over what was played."""

    def __init__(self, policy: Weights, setup: Setup, updates: int, rng: Any):
        self.policy, self.setup, self.rng = policy, setup, rng
        self.optimizer = optim.Adam(policy, setup.learning_rate, eps=1e-5)
        self.scheduler = optim.LRScheduler(self.optimizer, lambda step: 1 - step / updates)

    def update(self, batch: Batch) -> float:
        """Learn from a batch; returns the mean divergence from the policy that played."""
        for part in batch.parts(self.setup, self.rng):
            loss = rl.ppo_loss(
                rl.token_log_probs(apply(self.policy, part.states), part.actions),
                part.log_probs,
                part.advantages,
                mt.ones(*part.actions.shape),
                clip_low=self.setup.clip,
                clip_high=self.setup.clip,
            )
            self.optimizer.zero_grad()
            loss.backward()
            _, scale = optim.clip_grad_scale(self.policy, 0.5)
            self.optimizer.step(scale)
        self.scheduler.step()
        with mt.no_grad():
            log_probs = rl.token_log_probs(apply(self.policy, batch.states), batch.actions)
            return rl.k3(batch.log_probs, log_probs).mean().item()


class Shuffled(PPO):
    """The negative control: which step earned which advantage is forgotten."""

    def update(self, batch: Batch) -> float:
        order = mt.from_numpy(self.rng.permutation(batch.actions.numel()))
        return super().update(batch._replace(advantages=batch.advantages[:, order]))


class TRPO:
    """One step of the policy within a fixed divergence."""

    def __init__(self, policy: Weights, setup: Setup, updates: int, rng: Any):
        self.policy, self.setup = policy, setup

    def update(self, batch: Batch) -> float:
        """Learn from a batch; returns the mean divergence from the policy that played."""
        with mt.no_grad():
            old = apply(self.policy, batch.states).log_softmax(-1)

        def surrogate(weights: Any) -> Tensor:
            log_probs = rl.token_log_probs(apply(weights, batch.states), batch.actions)
            return ((log_probs - batch.log_probs).exp() * batch.advantages).mean()

        def divergence(weights: Any) -> Tensor:
            return rl.kl_divergence(old, apply(weights, batch.states).log_softmax(-1)).mean()

        limit = self.setup.max_divergence
        step = rl.trpo_step(surrogate, divergence, self.policy, max_divergence=limit)
        for weight, new in zip(self.policy, step.parameters, strict=True):
            weight.data[...] = new.data
            weight.bump_version()
        with mt.no_grad():
            return divergence(self.policy).item()


VARIANTS: dict[str, type[PPO] | type[TRPO]] = {
    "PPO": PPO,
    "TRPO": TRPO,
    "PPO, advantages shuffled": Shuffled,
}


def learn(
    kind: type[PPO] | type[TRPO], setup: Setup, seed: int, console: Console, label: str
) -> tuple[list[float], list[float]]:
    """(scores at the checkpoints, divergences of all updates)."""
    rng = np.random.default_rng(seed)
    policy = network(4, setup.hidden, 2, 0.01, rng)
    critic = Critic(setup, rng)
    carts = CartPole(setup.carts, rng)
    updates = setup.steps // (setup.carts * setup.horizon)
    learner = kind(policy, setup, updates, rng)
    marks = set(np.linspace(0, updates, setup.checkpoints + 1).round().astype(int)[1:])
    scores, divergences = [], []
    for update in track(range(1, updates + 1), label, console=console):
        batch = play(carts, policy, critic, setup, rng)
        divergences.append(learner.update(batch))
        critic.update(batch)
        if update in marks:
            scores.append(score(policy, setup.test_carts, np.random.default_rng(seed + 1)))
    return scores, divergences


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """How long each variant keeps the pole up, over the steps that it has played."""
    rows = []
    for name, kind in VARIANTS.items():
        seeds = [100 * seed + i for i in range(setup.seeds)]
        found = [learn(kind, setup, s, console, f"{name}, seed {s}") for s in seeds]
        curves = np.array([scores for scores, _ in found])
        played = np.linspace(0, setup.steps, len(curves[0]) + 1)[1:]
        rows.append(
            {
                "variant": name,
                "at the end": float(curves[:, -1].mean()),
                "best checkpoint": float(curves.max(1).mean()),
                "largest divergence": float(max(max(d) for _, d in found)),
                "steps": played.tolist(),
                "curves": curves.tolist(),
            }
        )
    return rows


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of steps out of 500, means over the seeds."""
    found = by_name(rows)
    control = found["PPO, advantages shuffled"]
    return [
        Claim("PPO at the end", found["PPO"]["at the end"], ">=", 400),
        Claim("PPO's best checkpoints", found["PPO"]["best checkpoint"], ">=", 475),
        Claim("TRPO at the end", found["TRPO"]["at the end"], ">=", 400),
        Claim("TRPO's best checkpoints", found["TRPO"]["best checkpoint"], ">=", 475),
        Claim("TRPO's largest divergence", found["TRPO"]["largest divergence"], "<=", 0.01),
        Claim("shuffled, at the end", control["at the end"], "<=", 150, control=True),
    ]


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """Each variant's mean over the seeds, and between which scores they lie."""
    for row in rows:
        curves = np.array(row["curves"])
        (line,) = axes.plot(row["steps"], curves.mean(0), "o-", markersize=3, label=row["variant"])
        axes.fill_between(
            row["steps"], curves.min(0), curves.max(0), color=line.get_color(), alpha=0.15, lw=0
        )
    axes.set(xlabel="steps played", ylabel="steps balanced, of 500", ylim=(0, 520))
    axes.legend()


EXPERIMENT = Experiment(
    name="cartpole",
    question="Do PPO and TRPO learn to balance a pole?",
    setup=Setup(),
    quick=Setup(
        seeds=2, steps=64, carts=2, horizon=8, hidden=8, epochs=2, minibatches=2, checkpoints=2
    ),
    run=run,
    claims=claims,
    draw=draw,
)
