"""Post-training's functions against the same formulas written in PyTorch, and against trl's."""

from importlib.util import find_spec

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")

with_trl = pytest.mark.skipif(
    find_spec("trl") is None, reason="peer not installed: pip install trl"
)

B, T, V = 4, 6, 5
TOKENS = np.random.default_rng(1).integers(0, V, (B, T))
MASK = np.arange(T) < np.array([[6], [4], [1], [0]])


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def compare(ours, theirs, *arrays, tolerance=1e-9):
    """One number or more of each side, and their gradients by all arrays, which are float64."""
    mine = [mt.tensor(array, requires_grad=True) for array in arrays]
    his = [torch.tensor(array, requires_grad=True) for array in arrays]
    out, expected = ours(*mine), theirs(*his)
    assert out.shape == tuple(expected.shape)
    cotangent = rand(*out.shape, seed=5)
    out.backward(mt.tensor(cotangent))
    expected.backward(torch.tensor(cotangent))
    agree(out.detach(), expected.detach(), tolerance)
    for one, two in zip(mine, his, strict=True):
        zeros = np.zeros(two.shape)
        gradients = [zeros if x.grad is None else x.grad.numpy() for x in (one, two)]
        np.testing.assert_allclose(*gradients, rtol=0, atol=tolerance)


def agree(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=tolerance)


def ours(array):
    return mt.tensor(array)


def theirs(array):
    return torch.tensor(array)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_log_probs(temperature):
    compare(
        lambda z: rl.token_log_probs(z, ours(TOKENS), temperature=temperature),
        lambda z: (z / temperature).log_softmax(-1).gather(-1, theirs(TOKENS)[..., None])[..., 0],
        3 * rand(B, T, V),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_linear_token_log_probs(temperature):
    compare(
        lambda h, w, b: rl.linear_token_log_probs(h, w, ours(TOKENS), b, temperature=temperature),
        lambda h, w, b: (
            (torch.nn.functional.linear(h, w, b) / temperature)
            .log_softmax(-1)
            .gather(-1, theirs(TOKENS)[..., None])[..., 0]
        ),
        rand(B, T, 3),
        rand(V, 3),
        rand(V),
    )


def test_entropy():
    compare(
        lambda z: rl.entropy(z, temperature=0.6),
        lambda z: torch.distributions.Categorical(logits=z / 0.6).entropy(),
        3 * rand(B, T, V),
    )


@with_trl
def test_log_probs_and_entropy_are_those_of_trl():
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    compare(
        lambda z: rl.token_log_probs(z, ours(TOKENS), temperature=0.7),
        lambda z: selective_log_softmax(z, theirs(TOKENS), temperature=0.7),
        3 * rand(B, T, V),
    )
    compare(rl.entropy, entropy_from_logits, 3 * rand(B, T, V))


AGGREGATIONS = {
    "sequence_mean": (
        rl.sequence_mean,
        lambda x, m: ((x * m).sum(1) / m.sum(1).clamp(min=1)).mean(),
    ),
    "token_mean": (rl.token_mean, lambda x, m: (x * m).sum() / m.sum()),
    "constant_length": (rl.constant_length(10), lambda x, m: (x * m).sum() / (B * 10)),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregations(name):
    mine, his = AGGREGATIONS[name]
    compare(lambda x: mine(x, ours(MASK)), lambda x: his(x, theirs(MASK)), rand(B, T))


ESTIMATORS = {
    "k1": lambda p, q: p - q,
    "k2": lambda p, q: 0.5 * (p - q) ** 2,
    "k3": lambda p, q: torch.exp(q - p) - (q - p) - 1,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_kl_estimators(name):
    compare(getattr(rl, name), ESTIMATORS[name], rand(B, T), rand(B, T, seed=1))


def test_kl_divergence():
    compare(
        lambda p, q: rl.kl_divergence(p.log_softmax(-1), q.log_softmax(-1)),
        lambda p, q: torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
        ),
        rand(B, T, V),
        rand(B, T, V, seed=1),
    )


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0)])
def test_gae(gamma, lam):
    """The recursion over whole sequences, as in spinningup, one sequence at a time."""
    rewards, values = rand(B, T) * MASK, rand(B, T, seed=1)
    found = rl.gae(ours(rewards), ours(values), ours(MASK), gamma=gamma, lam=lam)
    for i, length in enumerate(MASK.sum(1)):
        deltas = theirs(
            rewards[i, :length] + gamma * np.append(values[i, 1:length], [0.0])[:length]
        )
        deltas = deltas - theirs(values[i, :length])
        powers = (gamma * lam) ** torch.arange(length, dtype=torch.float64)
        expected = [(deltas[t:] * powers[: length - t]).sum() for t in range(length)]
        agree(found.advantages[i, : int(length)], torch.tensor(expected, dtype=torch.float64))


def whitened(values):
    kept = values[theirs(MASK)]
    result = torch.zeros(B, T, dtype=torch.float64)
    result[theirs(MASK)] = (kept - kept.mean()) / (kept.var() + 1e-8).sqrt()
    return result


def test_whitening():
    agree(rl.whiten(ours(rand(B, T)), ours(MASK)), whitened(theirs(rand(B, T))))


def test_advantages_of_groups():
    rewards = rand(3, 4)
    his = theirs(rewards)
    centred = his - his.mean(1, keepdim=True)
    agree(rl.grpo_advantages(ours(rewards)), centred / (his.std(1, keepdim=True) + 1e-4))
    agree(rl.dr_grpo_advantages(ours(rewards)), centred)
    agree(rl.rloo_advantages(ours(rewards)), his - (his.sum(1, keepdim=True) - his) / 3)


def test_returns_with_two_lambdas():
    """The actor's from one lambda for each length, the critic's from whole returns."""
    rewards, values, lam = rand(B, T) * MASK, rand(B, T, seed=1), [5 / 6, 3 / 4, 0.0, 0.0]
    found = rl.length_adaptive_lambda(ours(MASK), alpha=1.0, dtype=np.float64)
    agree(found, theirs(np.array(lam)))
    found = rl.decoupled_gae(
        *map(ours, (rewards, values, MASK)), gamma=0.9, actor_lam=ours(np.array(lam))
    )
    for i, length in enumerate(MASK.sum(1)):
        discounts = 0.9 ** torch.arange(length, dtype=torch.float64)
        r, v = theirs(rewards[i, :length]), theirs(np.append(values[i, :length], 0.0))
        deltas = r + 0.9 * v[1:] - v[:-1]
        for t in range(length):
            rest = int(length) - t
            weights = (0.9 * lam[i]) ** torch.arange(rest, dtype=torch.float64)
            agree(found.advantages[i, t], (deltas[t:] * weights).sum())
            agree(found.returns[i, t], (r[t:] * discounts[:rest]).sum())


def test_reinforce_plus_plus():
    rewards = rand(B, T) * MASK
    to_go = theirs(rewards).flip(1).cumsum(1).flip(1)
    found = rl.reinforce_plus_plus_advantages(ours(rewards), ours(MASK))
    agree(found, whitened(to_go))
    groups = rand(2, 2)
    centred = theirs(groups - groups.mean(1, keepdims=True)).reshape(B, 1).expand(B, T)
    found = rl.reinforce_plus_plus_baseline_advantages(ours(groups), ours(MASK))
    agree(found, whitened(centred))


def test_advantages_of_steps():
    """Normalised over all steps of a group, then summed from the end."""
    scores = rand(2, B, T)
    ends = MASK & (np.random.default_rng(2).random((2, B, T)) < 0.6)
    expected = torch.zeros(2, B, T, dtype=torch.float64)
    for group in range(2):
        kept = theirs(scores[group][ends[group]])
        normal = (theirs(scores[group]) - kept.mean()) / (kept.std() + 1e-4)
        for t in range(T):
            expected[group, :, t] = (normal * theirs(ends[group]))[:, t:].sum(1)
    agree(rl.process_advantages(ours(scores), ours(ends)), expected)


def test_rewards_with_the_penalty_of_tokens():
    scores, p, q = rand(3, seed=3), rand(3, T), rand(3, T, seed=1)
    expected = -0.3 * (theirs(p) - theirs(q)) * theirs(MASK[:3])
    expected[torch.arange(3), theirs(MASK[:3]).sum(1) - 1] += theirs(scores).clamp(-0.5, 0.5)
    found = rl.kl_shaped_rewards(*map(ours, (scores, p, q, MASK[:3])), beta=0.3, limit=0.5)
    agree(found, expected)


ADVANTAGES = rand(B, seed=7)


def mean_of_means(x):
    return ((x * theirs(MASK)).sum(1) / theirs(MASK).sum(1).clamp(min=1)).mean()


def token_mean(x):
    return (x * theirs(MASK)).sum() / theirs(MASK).sum()


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
