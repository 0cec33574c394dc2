"""How the experiments on reinforcement learning begin and go on: a model is shown, then rewarded.

The base is a Llama of two layers that has seen demonstrations of a task, right and wrong ones
mixed: such a model can do what it is to learn, but does not often. Then a recipe of
`minitorch grpo` trains it, step by step, by the rewards of the task.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

import minitorch as mt
from minitorch import optim
from minitorch.backend import DEFAULT_FLOAT
from minitorch.random import Generator
from minitorch.tokenizers import Tokenizer
from models.chat import Message, end_id, render_prompt
from models.decoder import Decoder
from models.environments.rewards import Reward
from models.environments.tasks import Row, Task
from models.llama import LlamaConfig
from models.recipes.data import Example, collate
from models.recipes.grpo import Grpo
from models.recipes.grpo_config import GrpoConfig
from models.recipes.prompts import TaskSource

Demonstration = Callable[[Row, np.random.Generator], str]

BATCH, MUON_RATE, ADAMW_RATE = 256, 0.02, 4e-3


def shown(
    task: Task,
    *,
    width: int,
    steps: int,
    seed: int,
    console: Console,
    demonstrate: Demonstration | None = None,
) -> Decoder:
    """A model that has learnt to continue the task's prompts as the task, or another, shows."""
    demonstrate = demonstrate or task.demonstrate
    tokenizer = task.tokenizer()
    sizes = LlamaConfig.sized(
        vocab_size=tokenizer.vocab_size,
        layers=2,
        heads=4,
        width=width,
        positions=task.longest_prompt + task.longest_completion,
    )
    model = sizes.build(DEFAULT_FLOAT, Generator(seed))
    optimizer = optim.Muon(optim.muon_groups(model, adamw_lr=ADAMW_RATE), MUON_RATE)
    schedule = optim.schedules.cosine(steps, max(steps // 20, 1))
    scheduler = optim.LRScheduler(optimizer, schedule)
    random = np.random.default_rng(seed)
    for _ in track(range(steps), "the base model", console=console):
        examples = []
        for _ in range(BATCH):
            row = task.draw(random)
            answer = demonstrate(row, random)
            examples.append([_example(row["prompt"], answer, tokenizer)])
        batch = collate(examples)
        optimizer.zero_grad()
        model.loss(mt.from_numpy(batch.ids), mt.from_numpy(batch.targets)).backward()
        _, scale = optim.clip_grad_scale(model.parameters(), 1.0)
        optimizer.step(scale)
        scheduler.step()
    return model


def _example(prompt: str, answer: str, tokenizer: Tokenizer) -> Example:
    ids = render_prompt([Message("user", prompt)], tokenizer)
    written = tokenizer.encode(answer, allowed_special="all")
    whole = [*ids, *written, end_id(tokenizer)]
    return Example(np.array(whole), np.arange(len(whole)) >= len(ids))


def recipe(
    base: Decoder,
    task: Task,
    seed: int,
    *,
    preset: str = "grpo",
    rewards: list[tuple[Reward, float]] | None = None,
    **settings: Any,
) -> Grpo:
    """A run of `minitorch grpo` on a copy of the base, at its first step."""
    config = GrpoConfig.resolve(preset, overrides={"seed": seed, **settings})
    tokenizer = task.tokenizer()
    return Grpo(
        config,
        copy(base),
        tokenizer,
        TaskSource(task, tokenizer, seed),
        rewards or list(task.rewards),
        task=task,
        reference=copy(base) if config.beta else None,
    )


def copy(model: Decoder) -> Decoder:
    """Another model with the same weights."""
    other = model.config.build(DEFAULT_FLOAT, Generator(0))
    other.load_state_dict({name: array.numpy() for name, array in model.state_dict().items()})
    return other


def reinforced(run: Grpo, console: Console, label: str) -> Grpo:
    """The run after all its steps."""
    for _ in track(range(run.config.steps), label, console=console):
        run.train_step()
    return run


def shuffled(judge: Reward, size: int, seed: int) -> Reward:
    """The right rewards, each group's dealt out to others of its `size` completions."""
    random = np.random.default_rng(seed)

    def shuffled(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        values = np.array(judge(prompts, completions, **columns)).reshape(-1, size)
        return random.permuted(values, axis=1).ravel().tolist()

    return shuffled
