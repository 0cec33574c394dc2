r"""Losses of pairs, one completion preferred to another: reward models, and policies without one.

Bradley and Terry's model says that the better of two wins with probability sigmoid(r_w - r_l). A
reward model learns r by it. The policy that is best for r under a KL penalty beta is
p ∝ p_ref exp(r / beta), so that r = beta log(p / p_ref) + a constant of the prompt, which cancels
in a difference: DPO puts that into Bradley and Terry's model and has no reward model left. With

    h = (log p_w - log p_ref,w) - (log p_l - log p_ref,l)

    DPO    -log sigmoid(beta h)           IPO    (h - 1 / (2 beta))²
    cDPO   the same, labels smoothed      hinge  max(0, 1 - beta h)

and, without a reference, ORPO of the odds and SimPO of the mean log-probabilities. KTO needs no
pairs.

Log-probabilities here are of whole completions, (pairs,): sums over the completion's tokens, by
`masked_sum(log_probs, mask, dim=1)`, for DPO, cDPO, hinge and KTO; means, by `masked_mean`, for
ORPO, SimPO and, in practice, IPO. Prompt tokens are not in them, and the reference runs without
dropout. At p = p_ref DPO's loss is log 2. Watch both log-probabilities while training: h also grows
when both fall. All losses are means over pairs, a single number.
"""

from minitorch.errors import ConfigError, DataError, ShapeError
from minitorch.nn.functional import binary_cross_entropy_with_logits
from minitorch.ops.masking import where
from minitorch.rl.masks import checked_mask, masked_mean, masked_sum
from minitorch.tensor import Tensor


def last_token_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """Each row's score at its last token that counts, whichever side the padding is on.

    scores, mask: (batch, time). Returns (batch,). Raises DataError for an empty row.
    """
    mask = checked_mask("last_token_scores", mask, scores)
    if not mask.any(1).all().item():
        raise DataError(
            "last_token_scores: expected a token that counts in every row; got an empty mask"
        )
    counted = mask.long().cumsum(1)
    return masked_sum(scores, mask & (counted == counted[:, -1:]), dim=1)


def reward_model_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0, centring: float = 0.0
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin), averaged.

    chosen, rejected: scores (pairs,). margin: a number or (pairs,), larger where people were sure.
    centring: the weight of (chosen + rejected)², which holds the scores near 0, where their
    difference alone leaves them free. Source: Ouyang et al. 2022 (arXiv 2203.02155), eq. 1; margin:
    Touvron et al. 2023, "Llama 2" (arXiv 2307.09288), eq. 2; centring: Eisenstein et al. 2023
    (arXiv 2312.09244).
    """
    _pairs("reward_model_loss", chosen, rejected)
    if isinstance(margin, Tensor):
        _pairs("reward_model_loss", chosen, margin)
    loss = -(chosen - rejected - margin).logsigmoid().mean()
    return loss + centring * (chosen + rejected).square().mean() if centring else loss


def process_reward_loss(scores: Tensor, labels: Tensor, ends: Tensor) -> Tensor:
    """Cross-entropy of each step's label, right (1) or wrong (0), at the token that ends it.

    scores: logits (batch, time); labels: (batch, time) in [0, 1], soft where they are shares of
    roll-outs that succeed; ends: (batch, time), set where a step ends. Returns the mean over steps,
    0 if there are none. Source: Lightman et al. 2023, "Let's verify step by step" (arXiv
    2305.20050); soft labels: Wang et al. 2023, "Math-Shepherd" (arXiv 2312.08935).
    """
    ends = checked_mask("process_reward_loss", ends, scores, labels)
    scores, labels = where(ends, scores, 0.0), where(ends, labels, 0.0).to(scores.dtype)
    return masked_mean(binary_cross_entropy_with_logits(scores, labels, "none"), ends)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log sigmoid(beta h). All (pairs,), sums over tokens.

    label_smoothing: the probability that a label is wrong, which makes it cDPO: there is then
    a finite best h. Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; label_smoothing:
    Mitchell 2023, "A note on DPO with noisy preferences".
    """
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(
            f"dpo_loss: expected label_smoothing in [0, 0.5); got {label_smoothing}. At 0.5 labels "
            "say nothing"
        )
    z = beta * _advantage("dpo_loss", chosen, rejected, reference_chosen, reference_rejected)
    loss = -(1 - label_smoothing) * z.logsigmoid()
    if label_smoothing:
        loss = loss - label_smoothing * (-z).logsigmoid()
    return loss.mean()


def ipo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """(h - 1 / (2 beta))²: a target for h, where DPO would have it grow for ever. All (pairs,).

    Give it means over tokens: a target for sums would be one for lengths. Source: Azar et al. 2023
    (arXiv 2310.12036), eq. 17, where beta is tau; the means: trl, after asking its authors.
    """
    h = _advantage("ipo_loss", chosen, rejected, reference_chosen, reference_rejected)
    return (h - 1 / (2 * beta)).square().mean()


def hinge_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """max(0, 1 - beta h): pairs that are far enough apart are left alone. All (pairs,), sums.

    Source: Zhao et al. 2023, "SLiC-HF" (arXiv 2305.10425), in the form of Liu et al. 2023 (arXiv
    2309.06657).
    """
    h = _advantage("hinge_loss", chosen, rejected, reference_chosen, reference_rejected)
    return (1 - beta * h).relu().mean()


def implicit_rewards(log_probs: Tensor, reference: Tensor, *, beta: float = 0.1) -> Tensor:
    """beta (log p - log p_ref): the reward that a policy of DPO has come to stand for, detached."""
    _pairs("implicit_rewards", log_probs, reference)
    return (beta * (log_probs - reference)).detach()


def kto_loss(
    log_probs: Tensor,
    reference: Tensor,
    desirable: Tensor,
    *,
    divergence: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """1 - sigmoid(±(beta log(p / p_ref) - beta z)), + for desirable completions, - for others.

    log_probs, reference: (batch,), sums; desirable: bools (batch,). divergence: z, by
    kto_divergence. The weights should make up for an unequal number of the two kinds. Source:
    Ethayarajh et al. 2024, "KTO" (arXiv 2402.01306), section 4, less its constants.
    """
    _pairs("kto_loss", log_probs, reference)
    _pairs("kto_loss", log_probs, desirable)
    gap = beta * (log_probs - reference - divergence)
    kept = desirable.bool()
    loss = where(kept, -gap, gap).sigmoid()
    return where(kept, desirable_weight * loss, undesirable_weight * loss).mean()


def kto_divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """max(0, the mean of log p - log p_ref), detached, over prompts with others' completions.

    Both (batch,), sums over the completions of which each stands under the wrong prompt.
    """
    _pairs("kto_divergence", log_probs, reference)
    return (log_probs - reference).mean().clamp(min=0.0).detach()


def orpo_loss(chosen: Tensor, rejected: Tensor, *, weight: float = 0.1) -> Tensor:
    """-log p_w - weight log sigmoid(log odds_w - log odds_l), odds = p / (1 - p).

    chosen, rejected: (pairs,), means over tokens, below 0. The first term is fine-tuning itself, so
    that neither a reference nor a first stage is needed. Source: Hong et al. 2024, "ORPO" (arXiv
    2403.07691), eq. 6 and 7.
    """
    _pairs("orpo_loss", chosen, rejected)
    return (-chosen - weight * (_log_odds(chosen) - _log_odds(rejected)).logsigmoid()).mean()


def simpo_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float = 2.0, margin: float = 1.0
) -> Tensor:
    """-log sigmoid(beta (log p_w - log p_l) - margin). Both (pairs,), means over tokens.

    Source: Meng et al. 2024, "SimPO" (arXiv 2405.14734), eq. 6, where the margin is gamma.
    """
    _pairs("simpo_loss", chosen, rejected)
    return -(beta * (chosen - rejected) - margin).logsigmoid().mean()


def _advantage(
    operation: str,
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
) -> Tensor:
    _pairs(operation, chosen, rejected)
    _pairs(operation, reference_chosen, reference_rejected)
    _pairs(operation, chosen, reference_chosen)
    return (chosen - reference_chosen.detach()) - (rejected - reference_rejected.detach())


def _log_odds(log_p: Tensor) -> Tensor:
    return log_p - (-log_p.expm1()).log()


def _pairs(operation: str, one: Tensor, two: Tensor) -> None:
    if one.ndim != 1 or one.shape != two.shape:
        raise ShapeError(
            f"{operation}: expected numbers of whole completions, all (pairs,); got {one.shape} "
            f"and {two.shape}. Sum or average the tokens' before"
        )
