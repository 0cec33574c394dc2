"""What toy pipelines are made of: models, fine-tuning on rows, reward models, PPO, misprints."""

import string
from pathlib import Path
from typing import Any

import numpy as np

from minitorch import nn
from minitorch.backend import DEFAULT_FLOAT
from minitorch.random import Generator
from minitorch.tokenizers import Tokenizer
from models.families import from_pretrained
from models.llama import LlamaConfig, size
from models.recipes.judging import Score
from models.recipes.ppo import Ppo, PpoConfig
from models.recipes.prompts import Source
from models.recipes.reward import Reward, RewardConfig
from models.recipes.sft import SFT, SFTConfig
from models.recipes.start import load_base
from models.reward_model import RewardModel

BATCH = 128
MUON = 5  # times the learning rate of the rest, for matrices
CENTRING = 1e-3  # of reward models, light, as pairs of two bad answers are not to stand at 0


def write_untrained(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    width: int,
    layers: int,
    heads: int,
    positions: int,
    seed: int,
) -> Path:
    """A model with random weights, and its tokenizer, into the folder; returns it."""
    sizes = LlamaConfig(
        **size(width, layers, heads, heads, 3 * width),
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=positions,
    )
    sizes.build(DEFAULT_FLOAT, Generator(seed)).save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


def fine_tuning(
    model: Path,
    rows: Path,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    template: str = "plain",
    batch_size: int = BATCH,
    **settings: Any,
) -> SFT:
    """The recipe that learns the rows of a file. settings: others, of SFTConfig."""
    config = SFTConfig(
        model=str(model),
        data=str(rows),
        template=template,
        batch_size=batch_size,
        val_fraction=0.02,
        steps=steps,
        optimizer="muon",
        learning_rate=learning_rate,
        muon_learning_rate=MUON * learning_rate,
        eval_rows=0,
        seed=seed,
        **settings,
    )
    return SFT(config)


def steps_of(rows: Path, epochs: int) -> int:
    """How many steps of `fine_tuning` go so often through the rows of a file."""
    return max(epochs * len(rows.read_text().splitlines()) // BATCH, 1)


def judging(
    model: Path, pairs: Path, *, steps: int, batch_size: int, learning_rate: float, seed: int
) -> Reward:
    """The recipe of a reward model of the comparisons in a file."""
    config = RewardConfig(
        model=str(model),
        data=str(pairs),
        steps=steps,
        batch_size=batch_size,
        optimizer="muon",
        learning_rate=learning_rate,
        muon_learning_rate=MUON * learning_rate,
        centring=CENTRING,
        seed=seed,
    )
    return Reward(config)


def reinforcement(
    model: Path,
    source: Source,
    score: Score,
    *,
    steps: int,
    prompts: int,
    max_tokens: int,
    learning_rate: float,
    beta: float,
    seed: int,
) -> Ppo:
    """PPO from a model, on whitened scores; the critic begins as it, with values of 0."""
    config = PpoConfig(
        model=str(model),
        steps=steps,
        prompts=prompts,
        max_tokens=max_tokens,
        learning_rate=learning_rate,
        beta=beta,
        normalise_rewards=True,
        eval_interval=20,
        eval_prompts=prompts,
        seed=seed,
    )
    policy, tokenizer = load_base(model, seed)
    critic = RewardModel(from_pretrained(model))
    nn.init.zeros_(critic.score.weight)
    reference = from_pretrained(model).requires_grad_(False)
    return Ppo(
        config, policy, tokenizer, source, [], reference=reference, critic=critic, score=score
    )


def misprinted(
    text: str, random: np.random.Generator, letters: str = string.ascii_lowercase[:6]
) -> str:
    """The text with another digit, or another of the letters, in one place."""
    at = int(random.integers(len(text)))
    known = string.digits if text[at].isdigit() else letters
    others = [char for char in known if char != text[at]]
    return text[:at] + str(random.choice(others)) + text[at + 1 :]
