r"""How much better than expected a token or a completion was: the weights of a policy gradient.

    grad J = E[sum_t A_t grad log p(x_t)]

A baseline subtracted from the reward leaves this expectation as it is, as long as it does not
depend on the choice that it judges, and takes noise out of it. What differs is where the baseline
comes from: other samples of the same prompt (groups: `rloo_advantages`, `grpo_advantages`), or a
learned value V of the state before a token is chosen (`gae`).

Rewards of a group are (groups, size), one row for each prompt, so that no group can be torn apart.
Nothing here is differentiated. Rewards that are NaN or infinite raise DataError.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from minitorch.errors import ConfigError, DataError, ShapeError
from minitorch.modes import no_grad
from minitorch.ops.joining import stack
from minitorch.ops.masking import where
from minitorch.rl.masks import checked_mask, masked_mean
from minitorch.tensor import Tensor


@no_grad()
def reinforce_advantages(rewards: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """rewards - baseline. rewards: (...); baseline: a number, or (...), such as values.

    Source: Williams 1992, "Simple statistical gradient-following algorithms", section 4.
    """
    if isinstance(baseline, Tensor) and baseline.ndim and baseline.shape != rewards.shape:
        raise ShapeError(
            "reinforce_advantages: expected one baseline or as many as rewards; got "
            f"{baseline.shape} for {rewards.shape}"
        )
    return _finite("reinforce_advantages", rewards) - baseline


@no_grad()
def rloo_advantages(rewards: Tensor) -> Tensor:
    """Each reward minus the mean of the others of its group. rewards: (groups, size).

    Raises ShapeError for groups of one, which have no others. Source: Kool et al. 2019, "Buy 4
    REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024 (arXiv 2402.14740).
    """
    rewards = _groups("rloo_advantages", rewards)
    size = rewards.shape[1]
    if size < 2:
        raise ShapeError(
            "rloo_advantages: expected groups of at least 2; got groups of 1, which have no others "
            "to be compared with. Sample more completions, or use reinforce_advantages"
        )
    return (rewards - rewards.mean(1, keepdim=True)) * (size / (size - 1))


@no_grad()
def grpo_advantages(rewards: Tensor, *, eps: float = 1e-4) -> Tensor:
    """(reward - mean) / (std + eps) in each group. rewards: (groups, size).

    The standard deviation divides by size - 1. A group of equal rewards has advantage 0, to the
    bit; a group of one keeps its reward, as there is nothing to compare it with. Source: Shao et
    al. 2024, "DeepSeekMath" (arXiv 2402.03300), section 4.1.2.
    """
    rewards = _groups("grpo_advantages", rewards)
    if rewards.shape[1] == 1:
        return rewards
    return _centred(rewards) / (rewards.std(1, keepdim=True) + eps)


@no_grad()
def dr_grpo_advantages(rewards: Tensor) -> Tensor:
    """reward - mean in each group, not divided. rewards: (groups, size).

    Without the division a prompt that is nearly always (or never) solved weighs no more than the
    others. A group of one keeps its reward. Source: Liu et al. 2025, "Understanding R1-Zero-like
    training" (arXiv 2503.20783), section 3.
    """
    rewards = _groups("dr_grpo_advantages", rewards)
    return rewards if rewards.shape[1] == 1 else _centred(rewards)


@no_grad()
def informative_groups(rewards: Tensor) -> Tensor:
    """Whether the rewards of a group differ; the others teach nothing, and may be sampled again.

    rewards: (groups, size). Returns bools (groups,). Source: Yu et al. 2025, "DAPO" (arXiv
    2503.14476), section 3.2, where it is called dynamic sampling.
    """
    rewards = _groups("informative_groups", rewards)
    return rewards.amax(1) != rewards.amin(1)


@no_grad()
def process_advantages(rewards: Tensor, ends: Tensor, *, eps: float = 1e-4) -> Tensor:
    """For each token the normalised rewards of all steps that end at it or after it.

    rewards: (groups, size, time), read at the tokens that end a step; ends: the same shape, set
    there. Rewards are normalised over all the steps of a group, then added up from the end. A group
    of fewer than two steps keeps its rewards; one of equal rewards has advantage 0. Returns the
    same shape. Source: Shao et al. 2024, "DeepSeekMath", section 4.1.3.
    """
    if rewards.ndim != 3 or ends.shape != rewards.shape:
        raise ShapeError(
            "process_advantages: expected rewards and ends of steps (groups, size, time); got "
            f"{rewards.shape} and {ends.shape}"
        )
    ends = ends.bool()
    rewards = _finite("process_advantages", where(ends, rewards, 0.0))
    steps = ends.sum((1, 2), keepdim=True)
    centred = where(ends, rewards - rewards.sum((1, 2), keepdim=True) / steps.clamp(min=1), 0.0)
    variance = centred.square().sum((1, 2), keepdim=True) / (steps - 1).clamp(min=1)
    highest = where(ends, rewards, -float("inf")).amax((1, 2), keepdim=True)
    lowest = where(ends, rewards, float("inf")).amin((1, 2), keepdim=True)
    normalised = where(highest == lowest, 0.0, centred / (variance.sqrt() + eps))
    return _from_the_end(where(steps == 1, rewards, normalised))


def returns_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """The sum of a token's reward and the later ones, each discounted by gamma per token.

    rewards, mask: (batch, time). Tokens that the mask leaves out have 0, and take no time.
    """
    values = rewards.new_zeros(rewards.shape)
    return gae(rewards, values, mask, gamma=gamma, lam=1.0).returns


class Advantages(NamedTuple):
    """Both (batch, time), and 0 where the mask is not set."""

    advantages: Tensor
    returns: Tensor


@no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: Tensor | float = 0.95,
    last_value: Tensor | None = None,
) -> Advantages:
    r"""Generalised advantage estimation, and the returns that the values are to learn.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   R_t = A_t + V_t

    rewards, values, mask: (batch, time); values[:, t] is V of the state *before* token t is chosen.
    Tokens that the mask leaves out (padding, a tool's words) are skipped: the next one that counts
    follows the last. lam: a number, or (batch,); lam = 1 is the return minus the value, lam = 0 the
    error of one step. last_value: V after the last token, (batch,), where a sequence was cut off
    rather than ended; 0 by default. Whiten the advantages after this, never the returns. Raises
    DataError for a reward at a token that does not count, where it would be lost. Source: Schulman
    et al. 2015 (arXiv 1506.02438), eq. 16.
    """
    mask = checked_mask("gae", mask, rewards, values)
    _check_lost(rewards, mask)
    rewards = _finite("gae", where(mask, rewards, 0.0))
    values = where(mask, values, 0.0)
    advantage = rewards.new_zeros(rewards.shape[0])
    next_value = advantage if last_value is None else last_value
    columns = []
    for t in reversed(range(rewards.shape[1])):
        kept = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = where(kept, delta + gamma * lam * advantage, advantage)
        next_value = where(kept, values[:, t], next_value)
        columns.append(advantage)
    advantages = where(mask, stack(columns[::-1], 1), 0.0) if columns else rewards
    return Advantages(advantages, advantages + values)


def decoupled_gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    actor_lam: Tensor | float = 0.95,
    critic_lam: Tensor | float = 1.0,
    last_value: Tensor | None = None,
) -> Advantages:
    """gae with one lambda for the advantages and another for the returns that the critic learns.

    With critic_lam 1 a reward at the end of a long sequence reaches its beginning undiminished.
    Source: Yuan et al. 2025, "What's behind PPO's collapse in long-CoT?" (arXiv 2503.01491).
    """
    actor = gae(rewards, values, mask, gamma=gamma, lam=actor_lam, last_value=last_value)
    critic = gae(rewards, values, mask, gamma=gamma, lam=critic_lam, last_value=last_value)
    return Advantages(actor.advantages, critic.returns)


def length_adaptive_lambda(
    mask: Tensor, *, alpha: float = 0.05, dtype: DTypeLike = np.float32
) -> Tensor:
    """1 - 1 / (alpha * length), so that errors of alpha * length steps add up; 0 where negative.

    mask: (batch, time). Returns (batch,) of the dtype, that of the values. Source: Yue et al. 2025,
    "VAPO" (arXiv 2504.05118), whose formula is below 0 for sequences shorter than 1 / alpha.
    """
    if not alpha > 0:
        raise ConfigError(f"length_adaptive_lambda: expected alpha above 0; got {alpha}")
    lengths = checked_mask("length_adaptive_lambda", mask).sum(1).clamp(min=1).to(dtype)
    return (1 - 1 / (alpha * lengths)).clamp(min=0.0)


@no_grad()
def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """(value - mean) / sqrt(variance + eps) over all tokens that count, 0 at the others.

    values, mask: (batch, time). The variance divides by their number less 1. Without shift_mean the
    mean is added again, as for rewards, whose sign means something. A single token becomes 0.
    """
    mask = checked_mask("whiten", mask, values)
    values = where(mask, values, 0.0)
    mean = masked_mean(values, mask)
    centred = where(mask, values - mean, 0.0)
    variance = centred.square().sum() / (mask.sum() - 1).clamp(min=1)
    whitened = centred * (variance + eps).rsqrt()
    return whitened if shift_mean else where(mask, whitened + mean, 0.0)


def reinforce_plus_plus_advantages(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Returns-to-go, whitened over the whole batch. rewards, mask: (batch, time).

    The rewards are those of `kl_shaped_rewards`; the loss is `ppo_loss`. Source: Hu et al. 2025,
    "REINFORCE++" (arXiv 2501.03262).
    """
    return whiten(returns_to_go(rewards, mask, gamma=gamma), mask)


def reinforce_plus_plus_baseline_advantages(rewards: Tensor, mask: Tensor) -> Tensor:
    """Rewards minus their group's mean, whitened over the tokens of the whole batch.

    rewards: (groups, size); mask: (groups * size, time). Returns the shape of mask. Source: Hu et
    al. 2025, "REINFORCE++" (arXiv 2501.03262), the variant with a baseline.
    """
    rewards = _groups("reinforce_plus_plus_baseline_advantages", rewards)
    mask = checked_mask("reinforce_plus_plus_baseline_advantages", mask)
    if rewards.numel() != mask.shape[0]:
        raise ShapeError(
            "reinforce_plus_plus_baseline_advantages: expected a row of the mask for each reward; "
            f"got {mask.shape} for {rewards.shape}"
        )
    return whiten(dr_grpo_advantages(rewards).reshape(-1, 1).expand(*mask.shape), mask)


def _from_the_end(values: Tensor) -> Tensor:
    return values.flip(-1).cumsum(-1).flip(-1)


def _centred(rewards: Tensor) -> Tensor:
    """Minus the mean of the row; exactly 0 in rows of equal rewards, whose mean may be rounded."""
    equal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)
    return where(equal, 0.0, rewards - rewards.mean(1, keepdim=True))


def _groups(operation: str, rewards: Tensor) -> Tensor:
    if rewards.ndim != 2 or rewards.shape[1] == 0:
        raise ShapeError(
            f"{operation}: expected rewards (groups, size); got {rewards.shape}. Reshape them so "
            "that the completions of one prompt are one row"
        )
    return _finite(operation, rewards)


def _finite(operation: str, rewards: Tensor) -> Tensor:
    """The rewards as floats, if they are numbers."""
    good = rewards.isfinite()
    if not good.all().item():
        where_not = [tuple(index) for index in (~good).nonzero().tolist()]
        raise DataError(
            f"{operation}: expected finite rewards; got {rewards[where_not[0]].item()} at "
            f"{where_not[0]} and {len(where_not)} such in all. Leave these samples out"
        )
    return rewards if rewards.is_floating_point() else rewards.float()


def _check_lost(rewards: Tensor, mask: Tensor) -> None:
    lost = (rewards != 0) & ~rewards.isnan() & ~mask
    if lost.any().item():
        first = tuple(lost.nonzero().tolist()[0])
        raise DataError(
            f"gae: expected rewards only where the mask is set; got {rewards[first].item()} at "
            f"{first}, where it would be lost. Give it to the last token that counts"
        )
