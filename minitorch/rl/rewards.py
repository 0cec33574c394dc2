"""What a completion has earned: scores joined, penalties for length, the KL penalty of tokens."""

from collections.abc import Sequence

import numpy as np

from minitorch.errors import ConfigError, DataError, ShapeError
from minitorch.modes import no_grad
from minitorch.ops.masking import where
from minitorch.rl.kl import k1
from minitorch.rl.masks import checked_mask
from minitorch.tensor import Tensor


def safety_first(
    helpful: Tensor, safe: Tensor, tagged: Tensor, *, threshold: float = 0.15
) -> Tensor:
    """Two reward models as one: safety where a prompt is tagged or an answer looks unsafe.

    helpful, safe: scores, the logits of what a reward model says, (count,); tagged: of prompts that
    are about safety, (count,). Returns safe where it is tagged or sigmoid(safe) < threshold, and
    helpful elsewhere. Llama 2 combines probabilities and takes the logit of the result, which is
    the same; it is to be whitened before PPO sees it. Source: Touvron et al. 2023, "Llama 2" (arXiv
    2307.09288), section 3.2.3.
    """
    if not helpful.shape == safe.shape == tagged.shape:
        raise ShapeError(
            "safety_first: expected scores and tags of one shape; got "
            f"{helpful.shape}, {safe.shape} and {tagged.shape}"
        )
    if not 0 <= threshold <= 1:
        raise ConfigError(f"safety_first: expected a threshold in [0, 1]; got {threshold}")
    return where(tagged.bool() | (safe.sigmoid() < threshold), safe, helpful)


def joined_rewards(
    rewards: Sequence[Sequence[float | None]], weights: Sequence[float] | None = None
) -> Tensor:
    """The weighted sum of what several functions gave to each sample: (samples,), float32.

    rewards: for each function a number for each sample, or None where it has nothing to say, which
    leaves it out of the sum. weights: one a function, 1 by default. Raises DataError for NaN and
    infinity, and for a sample of which no function said anything: 0 would be a judgement.
    """
    factors = [1.0] * len(rewards) if weights is None else weights
    if not rewards or len(factors) != len(rewards) or len({len(row) for row in rewards}) != 1:
        raise ShapeError(
            "joined_rewards: expected a weight and as many rewards from each function; got "
            f"{[len(row) for row in rewards]} rewards and {len(factors)} weights"
        )
    for function, row in enumerate(rewards):
        for sample, reward in enumerate(row):
            if reward is not None and not np.isfinite(reward):
                raise DataError(
                    f"joined_rewards: expected finite numbers or None; function {function} gave "
                    f"{reward} to sample {sample}. Return None where a reward does not apply"
                )
    for sample, column in enumerate(zip(*rewards, strict=True)):
        if all(reward is None for reward in column):
            raise DataError(
                f"joined_rewards: no function gave sample {sample} a reward. Leave it out, or give "
                "every sample a number by at least one function"
            )
    table = np.array([[0.0 if reward is None else reward for reward in row] for row in rewards])
    return Tensor((np.array(factors)[:, None] * table).sum(0), dtype=np.float32)


@no_grad()
def kl_shaped_rewards(
    scores: Tensor,
    log_probs: Tensor,
    reference: Tensor,
    mask: Tensor,
    *,
    beta: float,
    limit: float | None = None,
) -> Tensor:
    """-beta (log p - log q) at each token, and the sequence's score on top at its last one.

    scores: (batch,), clipped to [-limit, limit]; log_probs, those of the policy that drew the
    tokens, reference, mask: (batch, time). Returns (batch, time), 0 where the mask is not set; its
    sums over time are score - beta * (the estimate k1 of the sequence). Raises DataError for an
    empty mask, at which a score would be lost. Source: Ziegler et al. 2019 (arXiv 1909.08593),
    eq. 2; the clipping: Zheng et al. 2023, "Secrets of RLHF" (arXiv 2307.04964).
    """
    mask = checked_mask("kl_shaped_rewards", mask, log_probs, reference)
    if scores.shape != mask.shape[:1]:
        raise ShapeError(
            f"kl_shaped_rewards: expected a score for each of {mask.shape[0]} sequences; got "
            f"{scores.shape}"
        )
    if not mask.any(1).all().item():
        raise DataError(
            "kl_shaped_rewards: expected a token that counts in every sequence; got an empty mask, "
            "at which the score would be lost"
        )
    if limit is not None:
        scores = scores.clamp(-limit, limit)
    penalty = where(mask, -beta * k1(log_probs, reference), 0.0)
    counted = mask.long().cumsum(1)
    last = mask & (counted == counted[:, -1:])
    return penalty + where(last, scores.unsqueeze(1), 0.0)


def overlong_penalty(lengths: Tensor, *, max_length: int, margin: int) -> Tensor:
    """0 up to max_length - margin tokens, from there a straight line to -1 at max_length, then -1.

    lengths: (...) of tokens. Returns (...). Source: Yu et al. 2025, "DAPO" (arXiv 2503.14476),
    eq. 13, whose L_cache is the margin.
    """
    if not 0 < margin <= max_length:
        raise ConfigError(f"overlong_penalty: expected a margin in [1, {max_length}]; got {margin}")
    return ((max_length - margin - lengths) / margin).clamp(-1.0, 0.0)


def length_reward(lengths: Tensor, correct: Tensor) -> Tensor:
    """From 0.5 for the shortest of a group's completions to -0.5 for the longest.

    A wrong one gets nothing for being short. lengths, correct: (groups, size). Returns the same
    shape; all 0 in a group whose lengths agree. Source: Kimi Team 2025, "Kimi k1.5" (arXiv
    2501.12599), section 2.3.3.
    """
    if lengths.ndim != 2 or correct.shape != lengths.shape:
        raise ShapeError(
            "length_reward: expected lengths and correct (groups, size); got "
            f"{lengths.shape} and {correct.shape}"
        )
    shortest = lengths.amin(1, keepdim=True)
    span = lengths.amax(1, keepdim=True) - shortest
    share = 0.5 - (lengths - shortest) / span.clamp(min=1)
    return where(span == 0, 0.0, where(correct.bool(), share, share.clamp(max=0.0)))
