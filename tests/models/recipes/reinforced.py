"""Reinforcement so small that a step of it is a matter of milliseconds."""

import numpy as np

from minitorch.random import Generator
from models.environments.tasks import Task, addition
from models.gpt2 import GPT2Config
from models.llama import LlamaConfig
from models.recipes.grpo import Grpo
from models.recipes.grpo_config import GrpoConfig
from models.recipes.prompts import TaskSource

SMALL = {"prompts": 4, "group_size": 4, "eval_prompts": 6, "steps": 4, "eval_interval": 2}

LETTERS = Task(
    name="letters",
    draw=lambda random: {"prompt": "".join(random.choice(["a", "b"], 3)) + "="},
    demonstrate=lambda row, random: "a",
    rewards=[(lambda p, c, **_: [x.count("a") / max(len(x), 1) for x in c], 1.0)],
    alphabet="ab=",
    longest_prompt=4,
    longest_completion=6,
)
"""One whose vocabulary is so small that an untrained model often ends."""


def build(task, family=LlamaConfig, dtype=np.float32, seed=3):
    sizes = family.sized(
        vocab_size=task.tokenizer().vocab_size,
        layers=1,
        heads=2,
        width=16,
        positions=task.longest_prompt + task.longest_completion + 4,
        dropout=0.2 if family is GPT2Config else 0.0,
    )
    return sizes.build(np.dtype(dtype), Generator(seed))


def recipe(preset=None, task=None, family=LlamaConfig, rewards=None, supervision=None, **changes):
    """An untrained model that is about to be rewarded."""
    task = task or addition()
    config = GrpoConfig.resolve(preset, overrides={**SMALL, **changes})
    tokenizer = task.tokenizer()
    source = TaskSource(task, tokenizer, config.seed)
    return Grpo(
        config,
        build(task, family),
        tokenizer,
        source,
        rewards or list(task.rewards),
        task=task,
        supervision=supervision,
        reference=build(task, family) if config.beta else None,
    )


def evens(prompts, completions, **columns):
    """A reward that an untrained model often earns: the share of even digits."""
    return [sum(char in "02468" for char in c) / max(len(c), 1) for c in completions]


def weights(model):
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
