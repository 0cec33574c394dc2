r"""Losses that move a policy towards the tokens that did better than expected.

With rho = p(x_t) / p_old(x_t), the ratio to the policy that drew the tokens, and advantages A, the
clipped surrogate of a token is

    -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),

which has no gradient once the ratio has moved far enough in the direction that A asks for. While
p is p_old, its gradient is that of -A log p. The family differs in little else than this:

    loss       what is clipped             averaged by       advantages               KL
    PPO        each token's ratio          token_mean        gae, whitened            in the rewards
    GRPO       each token's ratio          sequence_mean     grpo_advantages          in the loss
    Dr. GRPO   each token's ratio          constant_length   dr_grpo_advantages       none
    DAPO       the same, higher above      token_mean        grpo_advantages          none
    GSPO       the whole sequence's ratio  sequences         grpo_advantages          none
    CISPO      the weight, not the loss    token_mean        grpo_advantages          none

The averages are those of `minitorch.rl.masks`, and any may be given to any loss. log_probs,
old_log_probs and mask are (batch, time); advantages (batch, time), or (batch,) where all tokens of
a sequence share one; what stands behind the mask is never read. PPO's whole loss is
`ppo_loss(...) + c1 * value_loss(...) - c2 * token_mean(entropy(logits), mask)`.

A first step on new samples has a loss of about 0, the mean advantage, and a gradient that is not 0.
"""

from minitorch.errors import ConfigError, ShapeError
from minitorch.modes import no_grad
from minitorch.ops.masking import where
from minitorch.rl.kl import Estimator, k3
from minitorch.rl.masks import (
    Aggregation,
    checked_mask,
    constant_length,
    masked_mean,
    sequence_mean,
    token_mean,
)
from minitorch.tensor import Tensor


def reinforce_loss(
    log_probs: Tensor, advantages: Tensor, mask: Tensor, *, aggregate: Aggregation = token_mean
) -> Tensor:
    """-A log p, for tokens that the policy itself has just drawn. Returns a single number.

    Source: Williams 1992, "Simple statistical gradient-following algorithms".
    """
    mask = checked_mask("reinforce_loss", mask, log_probs)
    advantages = _per_token("reinforce_loss", advantages, mask)
    return aggregate(-advantages * where(mask, log_probs, 0.0), mask)


def ppo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregate: Aggregation = token_mean,
) -> Tensor:
    """The clipped surrogate. Returns a single number.

    dual_clip: the most that a token with a negative advantage can weigh, as a ratio above 1, since
    min() leaves it unbounded; trl calls it delta. Source: Schulman et al. 2017 (arXiv 1707.06347),
    eq. 7; dual_clip: Ye et al. 2019 (arXiv 1912.09729).
    """
    ratio, mask = _ratio("ppo_loss", log_probs, old_log_probs, mask)
    advantages = _per_token("ppo_loss", advantages, mask)
    return aggregate(_surrogate(ratio, advantages, clip_low, clip_high, dual_clip), mask)


def value_loss(
    values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    old_values: Tensor | None = None,
    clip: float = 0.2,
    aggregate: Aggregation = token_mean,
) -> Tensor:
    """(V - R)² / 2; with old_values the larger of it and that of V clipped to V_old ± clip.

    All (batch, time). Returns a single number. Without old_values, on the returns_to_go of
    a policy that stands still, it is the pre-training of a critic (Yue et al. 2025, "VAPO", arXiv
    2504.05118). Source: Engstrom et al. 2020, "Implementation matters in deep policy gradients"
    (arXiv 2005.12729), section 3.
    """
    mask = checked_mask("value_loss", mask, values, returns)
    error = where(mask, values - returns, 0.0).square()
    if old_values is not None:
        checked_mask("value_loss", mask, old_values)
        step = where(mask, values - old_values, 0.0).clamp(-clip, clip)
        error = error.maximum(where(mask, old_values + step - returns, 0.0).square())
    return aggregate(error / 2, mask)


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    reference: Tensor | None = None,
    beta: float = 0.04,
    kl: Estimator = k3,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregate: Aggregation = sequence_mean,
) -> Tensor:
    """The clipped surrogate, plus beta times an estimate of the KL divergence from the reference.

    advantages: of grpo_advantages, reshaped to (batch,), or of process_advantages, (batch, time).
    reference: (batch, time), or None for no KL term. kl: the paper's k3, whose gradient is that of
    KL(reference || policy); k2 has that of KL(policy || reference). Returns a single number.
    Source: Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), eq. 3 and 4.
    """
    ratio, mask = _ratio("grpo_loss", log_probs, old_log_probs, mask)
    advantages = _per_token("grpo_loss", advantages, mask)
    loss = _surrogate(ratio, advantages, clip_low, clip_high)
    if reference is not None:
        checked_mask("grpo_loss", mask, reference)
        loss = loss + beta * kl(where(mask, log_probs, 0.0), where(mask, reference, 0.0))
    return aggregate(loss, mask)


def dr_grpo_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, *, length: int
) -> Tensor:
    """grpo_loss over the longest length that a completion may have, for dr_grpo_advantages.

    Source: Liu et al. 2025, "Understanding R1-Zero-like training" (arXiv 2503.20783), section 3.
    """
    aggregate = constant_length(length)
    return grpo_loss(log_probs, old_log_probs, advantages, mask, aggregate=aggregate)


def dapo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    aggregate: Aggregation = token_mean,
) -> Tensor:
    """grpo_loss over tokens, with more room above than below, so that rare tokens can grow.

    With it belong informative_groups and overlong_penalty. Source: Yu et al. 2025, "DAPO" (arXiv
    2503.14476), section 3.
    """
    return grpo_loss(
        log_probs, old_log_probs, advantages, mask, clip_high=0.28, aggregate=aggregate
    )


def gspo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    """The surrogate of whole sequences: the ratio is exp(mean over tokens of log p - log p_old).

    advantages: (batch,). Returns the mean over sequences, where an empty one counts as 0. Source:
    Zheng et al. 2025, "Group sequence policy optimization" (arXiv 2507.18071), eq. 5 to 7.
    """
    mask = checked_mask("gspo_loss", mask, log_probs, old_log_probs)
    ratio = _sequence_ratio("gspo_loss", log_probs, old_log_probs, advantages, mask)
    loss = _surrogate(ratio, advantages.detach(), clip_low, clip_high)
    return where(mask.any(1), loss, 0.0).mean()


@no_grad()
def gspo_clip_fraction(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> float:
    """The share of sequences whose gradient gspo_loss's clip holds back; empty ones do not count.

    advantages: (batch,). A clipped sequence takes all its tokens out of the gradient, which is why
    the paper (section 5.1) finds far more tokens clipped by GSPO than by GRPO.
    """
    mask = checked_mask("gspo_clip_fraction", mask, log_probs, old_log_probs)
    ratio = _sequence_ratio("gspo_clip_fraction", log_probs, old_log_probs, advantages, mask)
    held = _held_back(ratio, advantages, clip_low, clip_high)
    return masked_mean(held.float()[:, None], mask.any(1)[:, None]).item()


def _sequence_ratio(
    name: str, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor
) -> Tensor:
    """exp of the mean over a sequence's tokens of log p - log p_old: (batch,)."""
    if advantages.shape != mask.shape[:1]:
        raise ShapeError(
            f"{name}: expected an advantage for each of {mask.shape[0]} sequences; got "
            f"{advantages.shape}"
        )
    return masked_mean(log_probs - old_log_probs.detach(), mask, dim=1).exp()


def cispo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    max_ratio: float,
    aggregate: Aggregation = token_mean,
) -> Tensor:
    """-min(rho, max_ratio) A log p, the weight held constant: every token keeps a gradient.

    Source: MiniMax 2025, "MiniMax-M1" (arXiv 2506.13585), with no lower bound, as there.
    """
    ratio, mask = _ratio("cispo_loss", log_probs, old_log_probs, mask)
    advantages = _per_token("cispo_loss", advantages, mask)
    weight = ratio.detach().clamp(max=max_ratio)
    return aggregate(-weight * advantages * where(mask, log_probs, 0.0), mask)


def mirror_descent_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    rewards: Tensor,
    *,
    tau: float,
    baseline: Tensor | None = None,
) -> Tensor:
    r"""(r - b - tau log(p / p_old))² / (2 tau), averaged: 0 at p ∝ p_old exp(r / tau).

    log_probs, old_log_probs: of whole sequences, rewards: all (groups, size). baseline: (groups,
    1), tau times the logarithm of the mean of exp(r / tau) under p_old; by default the group's mean
    reward, to which it tends for a large tau. The gradient is -(r - b) grad log p + tau/2 grad
    (log p / p_old)². Source: Kimi Team 2025, "Kimi k1.5" (arXiv 2501.12599), eq. 2 and 3.
    """
    if log_probs.ndim != 2 or not log_probs.shape == old_log_probs.shape == rewards.shape:
        raise ShapeError(
            "mirror_descent_loss: expected log-probabilities of sequences and rewards, all "
            f"(groups, size); got {log_probs.shape}, {old_log_probs.shape} and {rewards.shape}"
        )
    if not tau > 0:
        raise ConfigError(f"mirror_descent_loss: expected tau above 0; got {tau}")
    if baseline is None:
        baseline = rewards.mean(1, keepdim=True)
    residual = (rewards - baseline).detach() - tau * (log_probs - old_log_probs)
    return residual.square().mean() / (2 * tau)


def positive_example_loss(log_probs: Tensor, correct: Tensor, mask: Tensor) -> Tensor:
    """-log p over the tokens of the correct completions: what was right once is kept.

    log_probs, mask: (batch, time); correct: (batch,) of bools. Returns the mean over tokens, 0
    where no completion is correct. Source: Yue et al. 2025, "VAPO" (arXiv 2504.05118).
    """
    mask = checked_mask("positive_example_loss", mask, log_probs)
    if correct.shape != mask.shape[:1]:
        raise ShapeError(
            f"positive_example_loss: expected correct of shape ({mask.shape[0]},); got "
            f"{correct.shape}"
        )
    return token_mean(-log_probs, mask & correct.bool().unsqueeze(1))


@no_grad()
def sampler_correction(
    log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor, *, cap: float = 2.0
) -> Tensor:
    """min(p / p_sampler, cap), where the program that sampled computes a little differently.

    To be multiplied with the advantages. All (batch, time); 0 where the mask is not set. Source:
    Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    """
    ratio, mask = _ratio("sampler_correction", log_probs, sampler_log_probs, mask)
    return where(mask, ratio.clamp(max=cap), 0.0)


@no_grad()
def clip_fraction(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> float:
    """The share of tokens whose gradient the clip holds back."""
    ratio, mask = _ratio("clip_fraction", log_probs, old_log_probs, mask)
    advantages = _per_token("clip_fraction", advantages, mask)
    held = _held_back(ratio, advantages, clip_low, clip_high)
    return masked_mean(held.float(), mask).item()


def _held_back(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Where the ratio has moved as far as it may in the direction that the advantage asks for."""
    above = (advantages > 0) & (ratio > 1 + clip_high)
    below = (advantages < 0) & (ratio < 1 - clip_low)
    return above | below


@no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for a constant; NaN if all R agree.

    All (batch, time).
    """
    mask = checked_mask("explained_variance", mask, values, returns)
    left, total = (
        (x - x.mean()).square().sum()
        for x in ((returns - values).masked_select(mask), returns.masked_select(mask))
    )
    return float("nan") if total.item() == 0 else 1 - (left / total).item()


def _surrogate(
    ratio: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    gain = (ratio * advantages).minimum(clipped * advantages)
    if dual_clip is not None:
        if dual_clip <= 1:
            raise ConfigError(f"ppo_loss: expected dual_clip above 1; got {dual_clip}")
        gain = where(advantages < 0, gain.maximum(dual_clip * advantages), gain)
    return -gain


def _ratio(
    operation: str, log_probs: Tensor, old_log_probs: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """(p / p_old, the mask as bools); 1 where the mask is not set. p_old is held constant."""
    mask = checked_mask(operation, mask, log_probs, old_log_probs)
    return where(mask, log_probs - old_log_probs.detach(), 0.0).exp(), mask


def _per_token(operation: str, advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages held constant, (batch, time), 0 where the mask is not set."""
    if advantages.shape == mask.shape[:1]:
        advantages = advantages.unsqueeze(1)
    elif advantages.shape != mask.shape:
        raise ShapeError(
            f"{operation}: expected advantages of shape {mask.shape} or {mask.shape[:1]}; got "
            f"{advantages.shape}"
        )
    return where(mask, advantages.detach(), 0.0)
