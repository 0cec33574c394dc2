"""What completions are worth: by functions, or by a reward model."""

from collections.abc import Callable, Sequence

import numpy as np

from minitorch.tokenizers import Tokenizer
from models.chat import end_id, template_of
from models.environments.rewards import Reward, weighted
from models.recipes.prompts import Prompt, columns_of
from models.reward_model import RewardModel
from models.rollouts import Rollout

Score = Callable[[Sequence[Prompt], Sequence[Rollout]], np.ndarray]
"""Prompts and their completions, one each, to numbers (completions,)."""

Given = dict[str, list[float | None]]
"""What each function said, by its name."""


def texts_of(rollouts: Sequence[Rollout], tokenizer: Tokenizer) -> list[str]:
    """The completions as texts, without the token that ends them."""
    end = end_id(tokenizer)
    return [
        tokenizer.decode([token for token in rollout.completion_ids if token != end])
        for rollout in rollouts
    ]


def by_rewards(
    rewards: Sequence[tuple[Reward, float]],
    prompts: Sequence[Prompt],
    rollouts: Sequence[Rollout],
    tokenizer: Tokenizer,
) -> tuple[np.ndarray, Given]:
    """The weighted rewards of completions, (completions,), and those of each function."""
    columns = {**columns_of(prompts), "finished": [r.finished for r in rollouts]}
    return weighted(rewards, [p.text for p in prompts], texts_of(rollouts, tokenizer), columns)


def by_model(judge: RewardModel, tokenizer: Tokenizer) -> Score:
    """The scores of whole texts, as the reward model has learnt to read them."""
    tail = tokenizer.encode(template_of(tokenizer).after)

    def score(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> np.ndarray:
        ended = [[*r.ids, *(tail if r.finished else [])] for r in rollouts]
        return judge.rewards(ended).astype(np.float64)

    return score
