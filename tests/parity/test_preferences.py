"""Preferences and reward models against the formulas written in PyTorch, and against trl's."""

import numpy as np
import pytest

from minitorch import rl
from tests.parity.beside_torch import (
    MASK,
    B,
    T,
    compare,
    ours,
    rand,
    theirs,
    with_trl,
)

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")


PAIRS = 6


def sequence_log_probs():
    """Of the policy, chosen and rejected, and of the reference; below 0, as they are."""
    return [-np.abs(rand(PAIRS, seed=i)) - 0.1 for i in range(4)]


def log_sigmoid(x):
    return torch.nn.functional.logsigmoid(x)


PREFERENCES = {
    "dpo": (lambda *x: rl.dpo_loss(*x, beta=0.3), lambda h: -log_sigmoid(0.3 * h)),
    "cdpo": (
        lambda *x: rl.dpo_loss(*x, beta=0.3, label_smoothing=0.1),
        lambda h: -0.9 * log_sigmoid(0.3 * h) - 0.1 * log_sigmoid(-0.3 * h),
    ),
    "ipo": (lambda *x: rl.ipo_loss(*x, beta=0.3), lambda h: (h - 1 / 0.6) ** 2),
    "hinge": (lambda *x: rl.hinge_loss(*x, beta=2.0), lambda h: torch.relu(1 - 2 * h)),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_with_a_reference(name):
    mine, his = PREFERENCES[name]
    w, l, ref_w, ref_l = sequence_log_probs()
    compare(
        lambda w, l: mine(w, l, ours(ref_w), ours(ref_l)),
        lambda w, l: his((w - l) - theirs(ref_w - ref_l)).mean(),
        w,
        l,
    )


def log_odds(log_p):
    return torch.logit(log_p.exp())


def test_preferences_without_a_reference():
    w, l, *_ = sequence_log_probs()
    compare(
        lambda w, l: rl.orpo_loss(w, l, weight=0.3),
        lambda w, l: (-w - 0.3 * log_sigmoid(log_odds(w) - log_odds(l))).mean(),
        w,
        l,
    )
    compare(
        lambda w, l: rl.simpo_loss(w, l, beta=2.5, margin=1.5),
        lambda w, l: -log_sigmoid(2.5 * (w - l) - 1.5).mean(),
        w,
        l,
    )


def test_kto():
    log_p, reference, wrong, wrong_reference = sequence_log_probs()
    desirable = np.arange(PAIRS) % 3 > 0
    z = theirs(wrong - wrong_reference).mean().clamp(min=0)

    def expected(log_p):
        ratio = log_p - theirs(reference)
        good = 1.3 * (1 - torch.sigmoid(0.3 * (ratio - z)))
        bad = 1 - torch.sigmoid(0.3 * (z - ratio))
        return torch.where(theirs(desirable), good, bad).mean()

    divergence = rl.kto_divergence(ours(wrong), ours(wrong_reference))
    compare(
        lambda log_p: rl.kto_loss(
            log_p,
            ours(reference),
            ours(desirable),
            divergence=divergence,
            beta=0.3,
            desirable_weight=1.3,
        ),
        expected,
        log_p,
    )


def test_reward_models():
    margin = np.abs(rand(PAIRS, seed=9))
    compare(
        lambda w, l: rl.reward_model_loss(w, l, margin=ours(margin), centring=0.01),
        lambda w, l: -log_sigmoid(w - l - theirs(margin)).mean() + 0.01 * ((w + l) ** 2).mean(),
        rand(PAIRS),
        rand(PAIRS, seed=1),
    )
    labels = np.random.default_rng(0).random((B, T))
    compare(
        lambda x: rl.process_reward_loss(x, ours(labels), ours(MASK)),
        lambda x: torch.nn.functional.binary_cross_entropy_with_logits(
            x[theirs(MASK)], theirs(labels)[theirs(MASK)]
        ),
        rand(B, T),
    )


@with_trl
def test_preferences_are_those_of_trl():
    from unittest.mock import MagicMock

    from trl.experimental.cpo import CPOTrainer

    trainer = MagicMock(
        alpha=0.0, loss_type="simpo", simpo_gamma=1.5, beta=2.5, label_smoothing=0.0
    )
    trainer.accelerator.device = "cpu"
    w, l, *_ = sequence_log_probs()
    compare(
        lambda w, l: rl.simpo_loss(w, l, beta=2.5, margin=1.5),
        lambda w, l: CPOTrainer.cpo_loss(trainer, w, l)[0].mean(),
        w,
        l,
    )
