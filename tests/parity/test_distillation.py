"""Distillation against the formulas written in PyTorch, and against trl's."""

import numpy as np
import pytest

from minitorch import rl
from tests.parity.beside_torch import (
    MASK,
    B,
    T,
    V,
    compare,
    ours,
    rand,
    theirs,
    token_mean,
    with_trl,
)

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")


def kl(log_p, log_q):
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def distributions(student, teacher, temperature=1.0):
    """(log q of the student, log p of the teacher, a constant)"""
    return (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)


DIVERGENCES = {
    "forward": (rl.forward_kl, lambda q, p: kl(p, q)),
    "reverse": (rl.reverse_kl, lambda q, p: kl(q, p)),
    "jsd": (
        rl.generalised_jsd(0.3),
        lambda q, p: (
            0.3 * kl(p, (0.3 * p.exp() + 0.7 * q.exp()).log())
            + 0.7 * kl(q, (0.3 * p.exp() + 0.7 * q.exp()).log())
        ),
    ),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_distillation(name):
    mine, his = DIVERGENCES[name]
    teacher = rand(B, T, V, seed=1)
    compare(
        lambda z: rl.distillation_loss(
            z, ours(teacher), ours(MASK), temperature=1.7, divergence=mine
        ),
        lambda z: 1.7**2 * token_mean(his(*distributions(z, theirs(teacher), 1.7))),
        rand(B, T, V),
    )


def test_distillation_of_the_students_own_tokens():
    """The policy gradient of -log q + log p, the weight held constant."""
    teacher = rand(B, T, seed=1)
    compare(
        lambda q: rl.reinforce_loss(q, rl.on_policy_advantages(q, ours(teacher)), ours(MASK)),
        lambda q: token_mean((q - theirs(teacher)).detach() * q),
        rand(B, T),
    )


@pytest.mark.parametrize("k", [1, 3, V])
def test_distillation_from_the_top(k):
    teacher = rand(B, T, V, seed=1)

    def expected(z):
        log_q, log_p = distributions(z, theirs(teacher))
        top, tokens = log_p.topk(k)
        p, q = top.exp(), log_q.gather(-1, tokens).exp()
        if k < V:
            p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
        return (p * (p / q).log()).sum(-1)

    compare(
        lambda z: rl.top_k_forward_kl(z, rl.top_k_targets(ours(teacher), k)),
        expected,
        rand(B, T, V),
    )


@with_trl
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_distillation_is_that_of_trl(beta):
    from trl.experimental.gkd import GKDTrainer

    ends = {0.0: rl.forward_kl, 1.0: rl.reverse_kl}
    divergence = ends[beta] if beta in ends else rl.generalised_jsd(beta)
    teacher = rand(B, T, V, seed=1)
    labels = theirs(np.where(MASK, 1, -100))
    compare(
        lambda z: rl.distillation_loss(
            z, ours(teacher), ours(MASK), temperature=1.7, divergence=divergence
        ),
        lambda z: (
            1.7**2
            * GKDTrainer.generalized_jsd_loss(
                z, theirs(teacher), labels=labels, beta=beta, temperature=1.7
            )
        ),
        rand(B, T, V),
    )
