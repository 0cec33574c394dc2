"""The loss of a run of reinforcement learning, from its choices of loss, average and KL term.

A minibatch is computed in pieces whose gradients add up, so every average divides by what belongs
to the whole minibatch: its completions, its tokens, or its completions times the longest length.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

import minitorch as mt
from minitorch import rl
from minitorch.tensor import Tensor

ESTIMATORS: dict[str, rl.Estimator] = {
    "k1": rl.k1,
    "k2": rl.k2,
    "k3": rl.k3,
    "k3_with_gradient_of_k2": rl.k3_with_gradient_of_k2,
}


@dataclass(frozen=True)
class Total:
    """The size of a minibatch."""

    completions: int
    tokens: int


class Objective:
    """Calls give the loss of a piece. config: models.recipes.grpo_config.GrpoConfig."""

    def __init__(self, config: Any, max_tokens: int):
        self.config, self.max_tokens = config, max_tokens

    def total(self, mask: np.ndarray) -> Total:
        """What pieces of a minibatch with this mask are shares of."""
        return Total(len(mask), max(int(mask.sum()), 1))

    def __call__(
        self,
        log_probs: Tensor,
        old: np.ndarray,
        advantages: np.ndarray,
        mask: np.ndarray,
        total: Total,
        *,
        rewards: np.ndarray,
        reference: np.ndarray | None,
    ) -> tuple[Tensor, float]:
        """The piece's part of the loss, and the share of it that is clipped.

        log_probs, old, advantages, mask, reference: (completions, time); rewards: (groups,
        size).
        """
        config, device = self.config, log_probs.device
        before, gain, counted = (
            mt.from_numpy(x).to(device) for x in (old, advantages.astype(np.float32), mask)
        )
        loss = self._policy(log_probs, before, gain, counted, total, rewards)
        if reference is not None and config.beta and not config.kl_in_reward:
            loss = loss + config.beta * self._divergence(
                log_probs, before, reference, counted, total
            )
        return loss, self._clip_fraction(log_probs, before, gain, counted)

    def _clip_fraction(self, log_probs: Tensor, old: Tensor, gain: Tensor, mask: Tensor) -> float:
        """Of tokens, or of completions where these are what is clipped."""
        clips = {"clip_low": self.config.clip_low, "clip_high": self.config.clip_high}
        if self.config.loss == "gspo":
            return rl.gspo_clip_fraction(log_probs, old, gain[:, 0], mask, **clips)
        return rl.clip_fraction(log_probs, old, gain, mask, **clips)

    def _policy(
        self,
        log_probs: Tensor,
        old: Tensor,
        gain: Tensor,
        mask: Tensor,
        total: Total,
        rewards: np.ndarray,
    ) -> Tensor:
        config, share = self.config, len(log_probs) / total.completions
        aggregate = self._aggregate(total, share)
        clips = {"clip_low": config.clip_low, "clip_high": config.clip_high}
        match config.loss:
            case "gspo":
                return rl.gspo_loss(log_probs, old, gain[:, 0], mask, **clips) * share
            case "cispo":
                return rl.cispo_loss(
                    log_probs, old, gain, mask, max_ratio=config.max_ratio, aggregate=aggregate
                )
            case "reinforce":
                return rl.reinforce_loss(log_probs, gain, mask, aggregate=aggregate)
            case "mirror_descent":
                whole, before = (
                    rl.masked_sum(x, mask, 1).reshape(rewards.shape) for x in (log_probs, old)
                )
                earned = mt.from_numpy(rewards.astype(np.float32)).to(log_probs.device)
                return rl.mirror_descent_loss(whole, before, earned, tau=config.tau) * share
        dual_clip = config.dual_clip or None
        return rl.ppo_loss(
            log_probs, old, gain, mask, **clips, dual_clip=dual_clip, aggregate=aggregate
        )

    def _divergence(
        self, log_probs: Tensor, old: Tensor, reference: np.ndarray, mask: Tensor, total: Total
    ) -> Tensor:
        estimate = ESTIMATORS[self.config.kl](
            log_probs, mt.from_numpy(reference).to(log_probs.device)
        )
        if self.config.kl_ratio:
            estimate = estimate * (log_probs - old).exp()
        return self._aggregate(total, len(log_probs) / total.completions)(estimate, mask)

    def _aggregate(self, total: Total, share: float) -> rl.Aggregation:
        match self.config.aggregation:
            case "token":
                return rl.share_of(total.tokens)
            case "constant":
                return rl.share_of(total.completions * self.max_tokens)
        return lambda values, mask: rl.sequence_mean(values, mask) * share
