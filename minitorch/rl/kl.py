r"""How far a policy p has moved from a reference q, estimated from tokens that p has drawn.

With d = log p(x) - log q(x) at a sample x ~ p, Schulman's three estimators of KL(p || q) are

    k1 = d                  unbiased; may be negative, and noisy
    k2 = d² / 2             biased a little; never negative
    k3 = exp(-d) - 1 + d    unbiased, never negative, less noisy; mind the sign: exp(log q - log p)

A good estimate of the value need not have the gradient of what it estimates. As a loss, where the
gradient flows through log p alone and not through the drawing of x,

    E[grad k1] = E[grad log p]              = 0
    E[grad k2] = E[d grad log p]            = grad KL(p || q)
    E[grad k3] = E[(1 - exp(-d)) grad log p] = grad KL(q || p), the other direction.

So k1 as a loss does nothing but add noise, and k3 as a loss draws p over all of q's tokens rather
than into them. Multiplied by the ratio p(x) / p(x).detach(), through which the gradient of the
drawing comes, both have the gradient of KL(p || q), and so they have with tokens of an older
policy and the ratio p(x) / p_old(x). As a part of the reward, -beta d.detach(), it is k1 that is
right. `tests/rl/test_kl.py` shows all of this by enumeration.

Sources: about values Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html);
about gradients Tang and Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL"
(arXiv 2506.09477).
"""

from collections.abc import Callable

from minitorch.errors import ConfigError, ShapeError
from minitorch.tensor import Tensor

Estimator = Callable[[Tensor, Tensor], Tensor]
"""(log-probabilities under the policy, under the reference), of one shape, to estimates of it."""


def k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """log p - log q, unbiased. Both (...), of tokens or of sequences. Source: Schulman 2020."""
    _check("k1", log_probs, reference)
    return log_probs - reference


def k2(log_probs: Tensor, reference: Tensor) -> Tensor:
    """(log p - log q)² / 2, whose gradient is that of KL(p || q). Both (...).

    Source: Schulman 2020; as a loss Tang and Munos 2025.
    """
    _check("k2", log_probs, reference)
    return (log_probs - reference).square() / 2


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """q / p - 1 - log(q / p), never negative, unbiased; its gradient is KL(q || p)'s. Both (...).

    Source: Schulman 2020; as a loss DeepSeekMath (arXiv 2402.03300), eq. 4.
    """
    _check("k3", log_probs, reference)
    difference = reference - log_probs
    return difference.expm1() - difference


def k3_with_gradient_of_k2(log_probs: Tensor, reference: Tensor) -> Tensor:
    """The value of k3, to look at, and the gradient of k2, to follow. Both (...)."""
    followed = k2(log_probs, reference)
    return followed + (k3(log_probs, reference) - followed).detach()


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum p (log p - log q) over all classes, exactly.

    log_p, log_q: (..., classes), normalised; where p is 0 its term is. Returns (...).
    """
    _check("kl_divergence", log_p, log_q)
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(-1)


def adapted_coefficient(
    coefficient: float, divergence: float, target: float, samples: int, horizon: int = 10_000
) -> float:
    """The weight of the KL penalty after a batch in which the divergence was measured.

    Raised where it was above the target, lowered where below, by at most 20 % in `horizon` samples.
    Source: Ziegler et al. 2019, "Fine-tuning language models from human preferences" (arXiv
    1909.08593), section 2.2, with the horizon of their code.
    """
    if not target > 0:
        raise ConfigError(f"adapted_coefficient: expected a target above 0; got {target}")
    error = min(max(divergence / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * samples / horizon)


def _check(operation: str, log_probs: Tensor, reference: Tensor) -> None:
    if log_probs.shape != reference.shape:
        raise ShapeError(
            f"{operation}: expected log-probabilities of one shape; got {log_probs.shape} and "
            f"{reference.shape}. Are policy and reference of one vocabulary and length?"
        )
