"""Losses of policies and values against the formulas written in PyTorch, and against trl's."""

import numpy as np
import pytest

from minitorch import rl
from tests.parity.beside_torch import (
    ESTIMATORS,
    MASK,
    TOKENS,
    B,
    T,
    V,
    agree,
    compare,
    mean_of_means,
    ours,
    rand,
    theirs,
    token_mean,
    with_trl,
)

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")


ADVANTAGES = rand(B, seed=7)


def surrogate(ratio, low=0.2, high=0.2):
    A = theirs(ADVANTAGES)[:, None]
    return -torch.min(ratio * A, ratio.clamp(1 - low, 1 + high) * A)


def dual_clipped(p, q):
    A = theirs(ADVANTAGES)[:, None]
    loss = surrogate((p - q).exp())
    return torch.where(A < 0, torch.min(loss, -3 * A), loss)


def sequence_ratio(p, q):
    lengths = theirs(MASK).sum(1).clamp(min=1)
    return (((p - q) * theirs(MASK)).sum(1) / lengths).exp()[:, None].expand(B, T)


POLICY = {
    "ppo": (rl.ppo_loss, lambda p, q: token_mean(surrogate((p - q).exp()))),
    "ppo, dual clip": (
        lambda *x: rl.ppo_loss(*x, dual_clip=3.0),
        lambda p, q: token_mean(dual_clipped(p, q)),
    ),
    "grpo": (rl.grpo_loss, lambda p, q: mean_of_means(surrogate((p - q).exp()))),
    "dr_grpo": (
        lambda *x: rl.dr_grpo_loss(*x, length=9),
        lambda p, q: (surrogate((p - q).exp()) * theirs(MASK)).sum() / (B * 9),
    ),
    "dapo": (rl.dapo_loss, lambda p, q: token_mean(surrogate((p - q).exp(), high=0.28))),
    "gspo": (
        lambda *x: rl.gspo_loss(*x, clip_low=0.1, clip_high=0.2),
        lambda p, q: mean_of_means(surrogate(sequence_ratio(p, q), 0.1, 0.2)),
    ),
    "cispo": (
        lambda *x: rl.cispo_loss(*x, max_ratio=1.5),
        lambda p, q: token_mean(
            -(p - q).exp().clamp(max=1.5).detach() * theirs(ADVANTAGES)[:, None] * p
        ),
    ),
}


@pytest.mark.parametrize("name", POLICY)
def test_policy_losses(name):
    mine, his = POLICY[name]
    old = rand(B, T, seed=1)
    compare(
        lambda p: mine(p, ours(old), ours(ADVANTAGES), ours(MASK)),
        lambda p: his(p, theirs(old)),
        rand(B, T),
    )


def test_policy_gradients_without_a_ratio():
    right = np.array([True, False, True, True])
    A, m = theirs(ADVANTAGES)[:, None], theirs(MASK)
    compare(
        lambda p: rl.reinforce_loss(p, ours(ADVANTAGES), ours(MASK)),
        lambda p: token_mean(-A * p),
        rand(B, T),
    )
    compare(
        lambda p: rl.positive_example_loss(p, ours(right), ours(MASK)),
        lambda p: -p[m & theirs(right)[:, None]].mean(),
        rand(B, T),
    )


def test_the_correction_of_the_sampler():
    p, q = rand(B, T), rand(B, T, seed=1)
    expected = (theirs(p) - theirs(q)).exp().clamp(max=1.5) * theirs(MASK)
    agree(rl.sampler_correction(*map(ours, (p, q, MASK)), cap=1.5), expected)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_grpo_with_a_reference(name):
    old, reference = rand(B, T, seed=1), rand(B, T, seed=2)
    compare(
        lambda p: rl.grpo_loss(
            p,
            *map(ours, (old, ADVANTAGES, MASK)),
            reference=ours(reference),
            beta=0.3,
            kl=getattr(rl, name),
        ),
        lambda p: mean_of_means(
            surrogate((p - theirs(old)).exp()) + 0.3 * ESTIMATORS[name](p, theirs(reference))
        ),
        rand(B, T),
    )


def test_the_whole_loss_of_ppo():
    """Of logits and values, with the entropy's bonus."""
    old, returns = rand(B, T, seed=1), rand(B, T, seed=2)

    def mine(z, v):
        policy = rl.ppo_loss(
            rl.token_log_probs(z, ours(TOKENS)), *map(ours, (old, ADVANTAGES, MASK))
        )
        critic = rl.value_loss(v, ours(returns), ours(MASK))
        return policy + 0.5 * critic - 0.01 * rl.token_mean(rl.entropy(z), ours(MASK))

    def his(z, v):
        categorical = torch.distributions.Categorical(logits=z)
        policy = token_mean(surrogate((categorical.log_prob(theirs(TOKENS)) - theirs(old)).exp()))
        critic = token_mean((v - theirs(returns)) ** 2) / 2
        return policy + 0.5 * critic - 0.01 * token_mean(categorical.entropy())

    compare(mine, his, rand(B, T, V), rand(B, T))


def test_the_fisher_matrix_times_a_vector_and_the_direction_of_trpo():
    """By torch's own second derivatives of the divergence, and by solving with the whole matrix."""
    x, weight, vector = rand(B, 3, seed=4), rand(3, V), rand(3, V, seed=1)

    def mine(w):
        now = (ours(x) @ w).log_softmax(-1)
        return rl.kl_divergence((ours(x) @ ours(weight)).log_softmax(-1), now).mean()

    def his(w):
        p, q = (torch.distributions.Categorical(logits=theirs(x) @ w) for w in (theirs(weight), w))
        return torch.distributions.kl_divergence(p, q).mean()

    def product(v):
        return rl.fisher_vector_product(mine, ours(weight), v, damping=0.1)

    _, expected = torch.autograd.functional.hvp(his, theirs(weight), theirs(vector))
    agree(product(ours(vector)), expected + 0.1 * theirs(vector))
    size = weight.size
    matrix = torch.autograd.functional.hessian(his, theirs(weight)).reshape(size, size)
    matrix += 0.1 * torch.eye(size, dtype=torch.float64)
    solution = torch.linalg.solve(matrix, theirs(vector).reshape(-1)).reshape(3, V)
    found = rl.conjugate_gradient(product, ours(vector), iterations=2 * size, tolerance=1e-24)
    agree(found, solution)


def test_value_loss():
    old, returns = rand(B, T, seed=1), rand(B, T, seed=2)

    def clipped(values):
        near = theirs(old) + (values - theirs(old)).clamp(-0.2, 0.2)
        errors = torch.max((values - theirs(returns)) ** 2, (near - theirs(returns)) ** 2)
        return 0.5 * token_mean(errors)

    compare(
        lambda v: rl.value_loss(v, ours(returns), ours(MASK), old_values=ours(old)),
        clipped,
        rand(B, T),
    )


def test_mirror_descent():
    """The squared residual, and the gradient as the paper writes it in its equation 3."""
    old, rewards = rand(2, 4, seed=1), rand(2, 4, seed=2)
    x = ours(rand(2, 4)).requires_grad_()
    rl.mirror_descent_loss(x, ours(old), ours(rewards), tau=0.4).backward()
    his = theirs(rand(2, 4)).requires_grad_()
    centred = theirs(rewards) - theirs(rewards).mean(1, keepdim=True)
    objective = centred * his - 0.2 * (his - theirs(old)) ** 2
    (-objective.mean()).backward()
    agree(x.grad, his.grad)
    compare(
        lambda p: rl.mirror_descent_loss(p, ours(old), ours(rewards), tau=0.4),
        lambda p: (centred - 0.4 * (p - theirs(old))).square().mean() / 0.8,
        rand(2, 4),
    )


TRL_LOSSES = {
    "grpo": (rl.grpo_loss, {}),
    "dr_grpo": (lambda *x, **o: rl.grpo_loss(*x, **o, aggregate=rl.constant_length(9)), {}),
    "dapo": (lambda *x, **o: rl.grpo_loss(*x, **o, aggregate=rl.token_mean), {}),
    "dual clip": (
        lambda *x, **_: rl.ppo_loss(*x, dual_clip=1.5),
        {"loss_type": "dapo", "delta": 1.5, "beta": 0.0},
    ),
    "cispo": (lambda *x, **_: rl.cispo_loss(*x, max_ratio=1.5), {"beta": 0.0}),
    "gspo": (
        lambda *x, **_: rl.gspo_loss(*x, clip_low=0.2, clip_high=0.2),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.0},
    ),
}


@with_trl
@pytest.mark.parametrize("name", TRL_LOSSES)
def test_policy_losses_are_those_of_trl(name):
    """trl's own method, on a trainer of which only what the loss asks for exists."""
    from collections import defaultdict
    from types import SimpleNamespace
    from unittest.mock import MagicMock

    from trl import GRPOTrainer

    mine, options = TRL_LOSSES[name]
    settings = {
        "loss_type": name,
        "importance_sampling_level": "token",
        "beta": 0.3,
        "epsilon_low": 0.2,
        "epsilon_high": 1.5 if name == "cispo" else 0.2,
        "max_completion_length": 9,
        "delta": None,
    } | options
    arguments = SimpleNamespace(
        delta=settings.pop("delta"), use_bias_correction_kl=False, steps_per_generation=1
    )
    trainer = MagicMock(
        **settings,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        use_adaptive_entropy=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        args=arguments,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )
    trainer.accelerator.num_processes = 1
    trainer.accelerator.gather.side_effect = lambda x: x
    old, reference = rand(B, T, seed=1), rand(B, T, seed=2)
    mask = theirs(MASK).long()
    inputs = {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": theirs(ADVANTAGES),
        "old_per_token_logps": theirs(old),
        "ref_per_token_logps": theirs(reference),
        "num_items_in_batch": mask.sum(),
    }

    def loss(log_probs):
        entropies = torch.zeros(B, T, dtype=torch.float64)
        trainer._get_per_token_logps_and_entropies.return_value = (log_probs, entropies, None)
        return GRPOTrainer._compute_loss(trainer, None, inputs)

    compare(
        lambda p: mine(
            p,
            *map(ours, (old, ADVANTAGES, MASK)),
            reference=ours(reference),
            beta=settings["beta"],
        ),
        loss,
        rand(B, T),
    )
