"""Whose merit a reward is: from rewards of completions to an advantage for each of their tokens."""

from collections.abc import Callable, Sequence

import numpy as np

import minitorch as mt
from minitorch import rl
from minitorch.tensor import Tensor
from models.recipes.completions import Completions
from models.recipes.grpo_config import GrpoConfig
from models.recipes.supervision import Scores

GROUPED: dict[str, Callable[[Tensor], Tensor]] = {
    "grpo": rl.grpo_advantages,
    "dr_grpo": rl.dr_grpo_advantages,
    "rloo": rl.rloo_advantages,
    "none": rl.reinforce_advantages,
}
"""Rewards (groups, size) to advantages of the same shape."""


def advantages_of(
    config: GrpoConfig,
    rewards: np.ndarray,
    completions: Completions,
    reference: np.ndarray | None,
    steps: Sequence[Scores] = (),
) -> np.ndarray:
    """(completions, time), 0 where nothing is to be learnt.

    rewards: (groups, size). reference: log-probabilities (completions, time), which are read where
    the KL term is in the reward. steps: of each completion, which are read instead of rewards where
    steps are judged.
    """
    mask, shape = mt.from_numpy(completions.mask), rewards.shape
    if config.advantage == "process":
        return np.where(completions.mask, _of_steps(steps, shape, completions.mask.shape[1]), 0.0)
    penalty = np.zeros(completions.mask.shape)
    if config.kl_in_reward and reference is not None:
        penalty = config.beta * (completions.log_probs - reference) * completions.mask
    if config.advantage == "reinforce++":
        shaped = _at_the_end(rewards.ravel(), completions.mask) - penalty
        return rl.reinforce_plus_plus_advantages(mt.from_numpy(shaped), mask).numpy()
    earned = mt.from_numpy(rewards) - mt.from_numpy(penalty.sum(1).reshape(shape))
    if config.advantage == "reinforce++_baseline":
        return rl.reinforce_plus_plus_baseline_advantages(earned, mask).numpy()
    each = GROUPED[config.advantage](earned).numpy().reshape(-1, 1)
    return np.where(completions.mask, each, 0.0)


def _of_steps(steps: Sequence[Scores], shape: tuple[int, ...], time: int) -> np.ndarray:
    """Each token's advantage from the steps that end at it or later: (completions, time)."""
    scores, ends = np.zeros((len(steps), time)), np.zeros((len(steps), time), bool)
    for row, own in enumerate(steps):
        places = list(own)
        scores[row, places], ends[row, places] = list(own.values()), True
    grouped = (mt.from_numpy(x.reshape(*shape, time)) for x in (scores, ends))
    return rl.process_advantages(*grouped).numpy().reshape(-1, time)


def _at_the_end(rewards: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Each completion's reward at its last token that counts, 0 elsewhere."""
    found = np.zeros(mask.shape)
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(1)
    found[np.arange(len(mask)), last] = np.where(mask.any(1), rewards, 0.0)
    return found
