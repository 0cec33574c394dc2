r"""A student that learns the teacher's whole distribution rather than one token of it.

    forward  KL(teacher || student)   the student covers all that the teacher might say
    reverse  KL(student || teacher)   the student says only what the teacher would
    JSD      between the two

Logits are divided by a temperature, which shows how the teacher ranks what it would not say. That
divides gradients by its square, more or less, so the loss is multiplied by it; for a temperature
that grows the gradient becomes (z_student - z_teacher) / V, both centred. The teacher is never
differentiated.

On whose tokens the divergence is measured is another choice. On the data's, the student never sees
its own mistakes; on its own samples (on-policy) it does, and then the same functions apply to
those, or `on_policy_advantages` with a policy gradient.

Sources: Hinton et al. 2015 (arXiv 1503.02531), section 2; JSD and on-policy: Agarwal et al. 2023,
"GKD" (arXiv 2306.13649), section 3.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minitorch.errors import ConfigError, ShapeError
from minitorch.modes import no_grad
from minitorch.ops.joining import stack
from minitorch.ops.masking import where
from minitorch.rl.kl import kl_divergence
from minitorch.rl.masks import Aggregation, token_mean
from minitorch.tensor import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(student's logits, teacher's logits), (..., vocabulary), to (...)."""


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student). Logits (..., vocabulary). Returns (...)."""
    log_q, log_p = _log_probs("forward_kl", student, teacher)
    return kl_divergence(log_p, log_q)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student || teacher). Logits (..., vocabulary). Returns (...).

    Source: Gu et al. 2023, "MiniLLM" (arXiv 2306.08543).
    """
    log_q, log_p = _log_probs("reverse_kl", student, teacher)
    return kl_divergence(log_q, log_p)


def generalised_jsd(beta: float) -> Divergence:
    """beta KL(teacher || M) + (1 - beta) KL(student || M), M = beta teacher + (1 - beta) student.

    beta: in (0, 1). Divided by beta (1 - beta) it tends to forward_kl for beta to 0, to reverse_kl
    for beta to 1; at most log 2 for beta = 1/2. Source: Agarwal et al. 2023, "GKD" (arXiv
    2306.13649), eq. 1. trl's beta of 0 and 1 are forward_kl and reverse_kl.
    """
    if not 0 < beta < 1:
        raise ConfigError(
            f"generalised_jsd: expected beta in (0, 1); got {beta}. At the ends take forward_kl or "
            "reverse_kl"
        )

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = _log_probs("generalised_jsd", student, teacher)
        mixed = stack([log_p + math.log(beta), log_q + math.log1p(-beta)]).logsumexp(0)
        return beta * kl_divergence(log_p, mixed) + (1 - beta) * kl_divergence(log_q, mixed)

    return divergence


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    divergence: Divergence = forward_kl,
    aggregate: Aggregation = token_mean,
) -> Tensor:
    """temperature² times the divergence of the softened distributions, averaged over tokens.

    student, teacher: logits (batch, time, vocabulary); mask: (batch, time). Returns one number.
    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """
    if not temperature > 0:
        raise ConfigError(f"distillation_loss: expected a temperature above 0; got {temperature}")
    seen = mask.bool().unsqueeze(-1)
    softened = (where(seen, x, 0.0) / temperature for x in (student, teacher))
    return aggregate(divergence(*softened), mask) * temperature**2


class TopK(NamedTuple):
    """What is kept of a teacher: its likeliest tokens, and their log-probabilities, (..., k)."""

    log_probs: Tensor
    tokens: Tensor


@no_grad()
def top_k_targets(teacher: Tensor, k: int, *, temperature: float = 1.0) -> TopK:
    """The k likeliest tokens of softmax(teacher / temperature). teacher: (..., vocabulary)."""
    if not 1 <= k <= teacher.shape[-1]:
        raise ConfigError(
            f"top_k_targets: expected k between 1 and {teacher.shape[-1]}, the vocabulary; got {k}"
        )
    found = (teacher / temperature).log_softmax(-1).topk(k)
    return TopK(found.values, found.indices)


def top_k_forward_kl(student: Tensor, targets: TopK, *, temperature: float = 1.0) -> Tensor:
    """forward_kl over k + 1 outcomes: the k tokens that were kept, and any other.

    student: logits (..., vocabulary), divided by the temperature of the targets; targets: of
    top_k_targets. Returns (...). Merging outcomes never raises a divergence, so this is at most
    forward_kl, grows with k, and is forward_kl when k is the vocabulary. To scale the k
    probabilities to a sum of 1 instead would teach the student that the rest cannot happen.
    """
    if targets.tokens.shape[:-1] != student.shape[:-1]:
        raise ShapeError(
            "top_k_forward_kl: expected targets (..., k) for logits (..., vocabulary); got "
            f"{targets.tokens.shape} for {student.shape}"
        )
    log_q = (student / temperature).log_softmax(-1).gather(-1, targets.tokens)
    loss = kl_divergence(targets.log_probs, log_q)
    if targets.tokens.shape[-1] == student.shape[-1]:
        return loss
    rest, rest_q = _rest(targets.log_probs), _rest(log_q)
    return loss + rest * (rest.log() - rest_q.log())


@no_grad()
def on_policy_advantages(log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """log p_teacher - log p_student of the student's own tokens, each judged for itself.

    Both (batch, time). With reinforce_loss the gradient is that of reverse_kl at the states that
    the student visits, from one token instead of the whole distribution.
    """
    if log_probs.shape != teacher_log_probs.shape:
        raise ShapeError(
            "on_policy_advantages: expected log-probabilities of one shape; got "
            f"{log_probs.shape} and {teacher_log_probs.shape}"
        )
    return teacher_log_probs - log_probs


def _rest(log_probs: Tensor) -> Tensor:
    """What probability is left for other tokens; not quite 0, of which there is no logarithm."""
    return (-log_probs.logsumexp(-1).expm1()).clamp(min=float(np.finfo(np.float32).tiny))


def _log_probs(operation: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim == 0 or student.shape != teacher.shape:
        raise ShapeError(
            f"{operation}: expected logits of one shape (..., vocabulary); got {student.shape} and "
            f"{teacher.shape}. Student and teacher need one vocabulary"
        )
    return student.log_softmax(-1), teacher.detach().log_softmax(-1)
