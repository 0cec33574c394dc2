"""Divergences between student and teacher: their limits, bounds and gradients."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError, ShapeError

B, T, V = 2, 3, 7


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def logits():
    return mt.tensor(2 * rand(B, T, V)), mt.tensor(2 * rand(B, T, V, seed=1))


def probs(x):
    return x.softmax(-1).numpy()


def test_the_two_directions():
    student, teacher = logits()
    q, p = probs(student), probs(teacher)
    forward, reverse = (p * np.log(p / q)).sum(-1), (q * np.log(q / p)).sum(-1)
    np.testing.assert_allclose(rl.forward_kl(student, teacher).numpy(), forward, atol=1e-12)
    np.testing.assert_allclose(rl.reverse_kl(student, teacher).numpy(), reverse, atol=1e-12)


DIVERGENCES = [rl.forward_kl, rl.reverse_kl, rl.generalised_jsd(0.5), rl.generalised_jsd(0.1)]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_it_is_zero_for_the_teacher_itself_and_positive_for_others(divergence):
    student, teacher = logits()
    np.testing.assert_allclose(divergence(teacher + 3, teacher).numpy(), 0, atol=1e-12)
    assert (divergence(student, teacher).numpy() > 0).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_teacher_gets_no_gradient(divergence):
    student, teacher = (x.requires_grad_() for x in logits())
    divergence(student, teacher).sum().backward()
    assert teacher.grad is None
    assert np.abs(student.grad.numpy()).max() > 0.01


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_what_the_teacher_forbids_has_finite_gradients(divergence):
    student, teacher = (x.numpy().copy() for x in logits())
    teacher[..., 0] = student[..., 0] = -np.inf
    x = mt.tensor(student, requires_grad=True)
    divergence(x, mt.tensor(teacher)).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


def test_the_jensen_shannon_divergence_is_bounded_and_symmetric():
    student, teacher = logits()
    divergence = rl.generalised_jsd(0.5)
    np.testing.assert_allclose(
        divergence(student, teacher).numpy(), divergence(teacher, student).numpy(), atol=1e-12
    )
    apart = 100 * mt.eye(2, dtype=mt.float64)
    np.testing.assert_allclose(divergence(apart, apart.flip(0)).numpy(), np.log(2), atol=1e-12)


@pytest.mark.parametrize(
    ("beta", "limit"), [(1e-6, rl.forward_kl), (1 - 1e-6, rl.reverse_kl)], ids=["0", "1"]
)
def test_its_limits_are_the_two_directions(beta, limit):
    student, teacher = logits()
    found = rl.generalised_jsd(beta)(student, teacher).numpy() / (beta * (1 - beta))
    np.testing.assert_allclose(found, limit(student, teacher).numpy(), rtol=1e-3)


def test_at_a_high_temperature_logits_are_matched():
    """The gradient tends to the difference of the centred logits, over the vocabulary."""
    student, teacher = logits()
    mask = mt.ones(B, T)
    loss = lambda z: rl.distillation_loss(z, teacher, mask, temperature=1e4)  # noqa: E731
    found = mt.grad(loss)(student).numpy() * B * T
    centred = [x.numpy() - x.numpy().mean(-1, keepdims=True) for x in (student, teacher)]
    np.testing.assert_allclose(found, (centred[0] - centred[1]) / V, atol=1e-3)


def test_what_the_mask_hides_is_never_read():
    student, teacher = (x.numpy().copy() for x in logits())
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    student[mask == 0] = teacher[mask == 0] = np.nan
    x = mt.tensor(student, requires_grad=True)
    loss = rl.distillation_loss(x, mt.tensor(teacher), mt.tensor(mask), temperature=2.0)
    loss.backward()
    kept = [mt.tensor(a[mask == 1]) / 2 for a in (student, teacher)]
    assert loss.item() == pytest.approx(4 * rl.forward_kl(*kept).mean().item())
    assert (x.grad.numpy()[mask == 0] == 0).all()
    assert np.isfinite(x.grad.numpy()).all()


def test_merging_what_was_not_kept_bounds_the_divergence_from_below():
    student, teacher = logits()
    whole = rl.forward_kl(student / 2, teacher / 2).numpy()
    found = [
        rl.top_k_forward_kl(
            student, rl.top_k_targets(teacher, k, temperature=2.0), temperature=2.0
        ).numpy()
        for k in range(1, V + 1)
    ]
    assert (np.diff(found, axis=0) >= -1e-12).all()
    assert (found[0] < whole).all()
    np.testing.assert_allclose(found[V - 1], whole, atol=1e-12)
    np.testing.assert_allclose(found[V - 2], whole, atol=1e-12)


def test_a_teacher_who_is_certain_leaves_no_rest():
    certain = mt.tensor([[100.0, 0.0, 0.0, 0.0]])
    student = mt.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    loss = rl.top_k_forward_kl(student, rl.top_k_targets(certain, 2))
    loss.backward()
    expected = rl.forward_kl(student.detach(), certain).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(student.grad.numpy()).all()


def test_on_policy_advantages_follow_the_reverse_divergence():
    """The expectation over the student's tokens, enumerated, of A grad log p."""
    student, teacher = (x[0, :1] for x in logits())
    tokens = mt.arange(V).reshape(V, 1)
    teacher_log_probs = rl.token_log_probs(teacher.expand(V, 1, V), tokens)

    def loss(z):
        log_probs = rl.token_log_probs(z.expand(V, 1, V), tokens)
        advantages = rl.on_policy_advantages(log_probs, teacher_log_probs)
        weights = log_probs.exp().detach()
        return rl.reinforce_loss(log_probs, weights * advantages, mt.ones(V, 1)) * V

    expected = mt.grad(lambda z: rl.reverse_kl(z, teacher).sum())(student).numpy()
    np.testing.assert_allclose(mt.grad(loss)(student).numpy(), expected, atol=1e-12)


def test_derivatives_of_both_orders():
    student, teacher = (x[0] for x in logits())
    targets = rl.top_k_targets(teacher, 3)
    functions = [lambda z, f=f: f(z, teacher) for f in DIVERGENCES]
    functions.append(lambda z: rl.top_k_forward_kl(z, targets))
    for f in functions:
        assert mt.gradcheck(f, student, order=2)


def test_bad_arguments_are_named():
    student, teacher = logits()
    with pytest.raises(ShapeError, match="need one vocabulary"):
        rl.forward_kl(student, teacher[..., :-1])
    for beta in (0, 1):
        with pytest.raises(ConfigError, match="take forward_kl or reverse_kl"):
            rl.generalised_jsd(beta)
    with pytest.raises(ConfigError, match="k between 1 and 7, the vocabulary; got 8"):
        rl.top_k_targets(teacher, 8)
    with pytest.raises(ShapeError, match=r"targets \(\.\.\., k\)"):
        rl.top_k_forward_kl(student[0], rl.top_k_targets(teacher, 2))
    with pytest.raises(ConfigError, match="temperature above 0"):
        rl.distillation_loss(student, teacher, mt.ones(B, T), temperature=0)
    with pytest.raises(ShapeError, match="one shape"):
        rl.on_policy_advantages(student, teacher[0])
