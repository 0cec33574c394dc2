"""What becomes of the true reward while a policy is trained on a model of it.

    gold = 1 - |letters "a" - 4| / 4        of a text of 12 letters, of which there are 12

Texts of the base model have one "a" on average and hardly ever five. A reward model learns from
pairs of such texts which of two is better by the gold reward; as far as it can see, more is better.
PPO then follows the reward model, with next to no KL penalty and with one. The negative control
follows the gold reward itself, without a penalty.

Expected (Gao, Schulman and Hilton 2022, arXiv 2210.10760): the reward model's score rises
throughout, while the gold reward rises and then falls below where it began; with the penalty the
policy stays where the reward model has seen texts, and keeps its gain. The control gains and does
not fall: it is the model of the reward that is overdone, not the reward. (With three letters wanted
and more pairs the reward model had seen enough texts past the best to know better, and nothing
fell.)
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import track

import minitorch as mt
from minitorch import nn, optim
from minitorch.backend import DEFAULT_FLOAT
from minitorch.random import Generator
from minitorch.rl import last_token_scores, reward_model_loss
from minitorch.tokenizers import Tokenizer
from models.decoder import Decoder
from models.environments.tasks import Row as Columns
from models.environments.tasks import Task
from models.experiments.experiment import Claim, Experiment, Row, by_name
from models.experiments.learning import train
from models.llama import LlamaConfig
from models.recipes.judging import by_model
from models.recipes.ppo import Ppo, PpoConfig
from models.recipes.prompts import TaskSource
from models.reward_model import RewardModel
from models.rollouts import begin, extend
from models.sampling import Sampler

LETTERS, LENGTH, WANTED, START = string.ascii_lowercase[:12], 12, 4, ">"
WINDOW = 4
"""Updates that are averaged."""

MEASURED = 1e-6
"""A penalty that is next to none: with it the divergence is measured."""


@dataclass(frozen=True)
class Setup:
    """pairs: that the reward model sees; updates: of the policy."""

    width: int = 32
    layers: int = 2
    heads: int = 4
    base_steps: int = 200
    pairs: int = 600
    judge_steps: int = 300
    batch_size: int = 64
    updates: int = 110
    prompts: int = 64
    learning_rate: float = 1e-3
    beta: float = 0.2


def gold(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """What is really wanted: four letters "a"."""
    return [1 - abs(text.count("a") - WANTED) / WANTED for text in completions]


def draw_row(random: np.random.Generator) -> Columns:
    """The prompt is always the same."""
    return {"prompt": START}


def demonstrate(row: Columns, random: np.random.Generator) -> str:
    """A text at random."""
    return "".join(random.choice(list(LETTERS), LENGTH))


TASK = Task(
    name="letters",
    draw=draw_row,
    demonstrate=demonstrate,
    rewards=[(gold, 1.0)],
    alphabet=LETTERS + START,
    longest_prompt=1,
    longest_completion=LENGTH,
)


def build(setup: Setup, tokenizer: Tokenizer, seed: int) -> Decoder:
    """A Llama with random weights."""
    sizes = LlamaConfig.sized(
        vocab_size=tokenizer.vocab_size,
        layers=setup.layers,
        heads=setup.heads,
        width=setup.width,
        positions=LENGTH + 1,
    )
    return sizes.build(DEFAULT_FLOAT, Generator(seed))


def copied(model: Decoder, setup: Setup, tokenizer: Tokenizer) -> Decoder:
    """Another model with the same weights."""
    other = build(setup, tokenizer, 0)
    other.load_state_dict(model.state_dict())
    return other


def written(model: Decoder, tokenizer: Tokenizer, count: int, seed: int) -> list[tuple[int, ...]]:
    """Texts of a model, with their prompt."""
    prompt = tokenizer.encode(START)
    rollouts = extend(
        model,
        begin([prompt], count),
        max_tokens=LENGTH,
        sampler=Sampler(),
        seed=seed,
        vocab_size=tokenizer.vocab_size,
    )
    return [rollout.ids for rollout in rollouts]


def train_base(setup: Setup, tokenizer: Tokenizer, seed: int, console: Console) -> Decoder:
    """A model of texts at random."""
    model, random = build(setup, tokenizer, seed), Generator(seed).draw()

    def batches() -> Any:
        while True:
            texts = [START + demonstrate({}, random) for _ in range(setup.batch_size)]
            ids = np.array([tokenizer.encode(text) for text in texts])
            yield ids[:, :-1].copy(), ids[:, 1:].copy()

    train(model, batches(), setup.base_steps, 3e-3, console, "base")
    return model


def train_judge(
    base: Decoder, setup: Setup, tokenizer: Tokenizer, seed: int, console: Console
) -> tuple[RewardModel, float]:
    """A reward model of pairs of the base's texts, and how often it is right on others."""
    texts = np.array(written(base, tokenizer, 2 * setup.pairs, seed))
    truth = np.array(gold([], [tokenizer.decode(text) for text in texts[:, 1:]]))
    pairs = texts.reshape(-1, 2, LENGTH + 1)
    order = np.argsort(-truth.reshape(-1, 2), 1, kind="stable")
    pairs = np.take_along_axis(pairs, order[:, :, None], 1)
    pairs = pairs[np.ptp(truth.reshape(-1, 2), axis=1) > 0]
    held_out, pairs = np.split(pairs, [len(pairs) // 5])
    judge = RewardModel(copied(base, setup, tokenizer), Generator(seed))
    optimizer = optim.AdamW(judge.parameters(), 1e-3, weight_decay=0.01)
    random = Generator(seed).draw()
    for _ in track(range(setup.judge_steps), "reward model", console=console):
        chosen = pairs[random.integers(len(pairs), size=setup.batch_size)]
        optimizer.zero_grad()
        scores, _ = judge(np.concatenate([chosen[:, 0], chosen[:, 1]]))
        last = last_token_scores(scores, mt.ones(*scores.shape))
        half = len(chosen)
        reward_model_loss(last[:half], last[half:], centring=0.01).backward()
        optimizer.step()
    better, worse = (judge.rewards(held_out[:, i].tolist()) for i in (0, 1))
    return judge, float((better > worse).mean())


def follow(
    beta: float,
    judge: RewardModel | None,
    base: Decoder,
    setup: Setup,
    tokenizer: Tokenizer,
    seed: int,
    console: Console,
    label: str,
) -> dict[str, list[float]]:
    """What each update of PPO saw: score, gold reward, divergence from the base."""
    config = PpoConfig(
        seed=seed,
        prompts=setup.prompts,
        steps=setup.updates,
        learning_rate=setup.learning_rate,
        beta=beta,
        eval_prompts=1,
    )
    critic = RewardModel(copied(base, setup, tokenizer))
    nn.init.zeros_(critic.score.weight)
    policy = Ppo(
        config,
        copied(base, setup, tokenizer),
        tokenizer,
        TaskSource(TASK, tokenizer, seed),
        [(gold, 0.0 if judge else 1.0)],
        task=TASK,
        reference=base,
        critic=critic,
        score=by_model(judge, tokenizer) if judge else None,
    )
    seen: dict[str, list[float]] = {"score": [], "gold": [], "divergence": []}
    for _ in track(range(setup.updates), label, console=console):
        metrics = policy.train_step()
        seen["gold"].append(metrics["reward/gold"])
        seen["score"].append(metrics.get("reward/reward_model", metrics["reward/gold"]))
        seen["divergence"].append(metrics["kl_of_completion"])
    return seen


def run(setup: Setup, seed: int, console: Console) -> list[Row]:
    """The rewards of each variant, over its updates."""
    tokenizer = TASK.tokenizer()
    base = train_base(setup, tokenizer, seed, console)
    judge, right = train_judge(base, setup, tokenizer, seed + 1, console)
    rows = []
    for name, beta, judged_by in (
        ("reward model, no penalty", MEASURED, judge),
        ("reward model, penalty", setup.beta, judge),
        ("gold, no penalty", MEASURED, None),
    ):
        seen = follow(beta, judged_by, base, setup, tokenizer, seed + 2, console, name)
        smooth = smoothed(seen["gold"])
        rows.append(
            {
                "variant": name,
                "score before": float(smoothed(seen["score"])[0]),
                "score after": float(smoothed(seen["score"])[-1]),
                "gold before": float(smooth[0]),
                "gold at best": float(smooth.max()),
                "gold after": float(smooth[-1]),
                "divergence": float(smoothed(seen["divergence"])[-1]),
                "judge is right": right if judged_by else 1.0,
                "scores": seen["score"],
                "golds": seen["gold"],
                "divergences": seen["divergence"],
            }
        )
    return rows


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Means over WINDOW neighbours."""
    window = min(WINDOW, len(values))
    return np.convolve(values, np.ones(window) / window, "valid")


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Of the mean rewards over the first and the last WINDOW updates, and over the best."""
    found = by_name(rows)
    free, held = found["reward model, no penalty"], found["reward model, penalty"]
    control = found["gold, no penalty"]
    return [
        Claim("the reward model is right about unseen pairs", free["judge is right"], ">=", 0.85),
        Claim("without penalty, its score rises by",
              free["score after"] - free["score before"], ">=", 1.0),
        Claim("without penalty, gold rises at first by",
              free["gold at best"] - free["gold before"], ">=", 0.1),
        Claim("without penalty, gold ends below where it began, by",
              free["gold before"] - free["gold after"], ">=", 0.2),
        Claim("with the penalty, gold ends above where it began, by",
              held["gold after"] - held["gold before"], ">=", 0.2),
        Claim("following gold itself, it falls from its best by",
              control["gold at best"] - control["gold after"], "<=", 0.05, control=True),
    ]  # fmt: skip


def draw(axes: Axes, rows: Sequence[Row]) -> None:
    """The gold reward over the updates, smoothed."""
    for row in rows:
        golds = smoothed(row["golds"])
        axes.plot(np.arange(len(golds)) + WINDOW, golds, label=row["variant"])
    axes.set(xlabel="updates", ylabel="gold reward")
    axes.legend()


EXPERIMENT = Experiment(
    name="overoptimisation",
    question="What becomes of the true reward when a policy follows a model of it?",
    setup=Setup(),
    quick=Setup(
        width=8, layers=1, heads=2, base_steps=2, pairs=20, judge_steps=2, batch_size=4, updates=2,
        prompts=4,
    ),
    run=run,
    claims=claims,
    draw=draw,
)  # fmt: skip
