"""Preference losses: values at the reference, what their gradients weigh, what they converge to."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError, DataError, ShapeError

PAIRS = 5


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def log_probs():
    """Of the policy for chosen and rejected, and of the reference, all below 0."""
    return [mt.tensor(-np.abs(rand(PAIRS, seed=i)) - 0.1) for i in range(4)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_at_the_reference_dpo_is_log_two_and_pulls_with_half_of_beta(beta, label_smoothing):
    _, _, chosen, rejected = log_probs()
    loss = lambda w, l: rl.dpo_loss(  # noqa: E731
        w, l, chosen, rejected, beta=beta, label_smoothing=label_smoothing
    )
    assert loss(chosen, rejected).item() == pytest.approx(np.log(2))
    up, down = mt.grad(loss, (0, 1))(chosen, rejected)
    pull = beta / 2 * (1 - 2 * label_smoothing) / PAIRS
    np.testing.assert_allclose(up.numpy(), -pull, atol=1e-12)
    np.testing.assert_allclose(down.numpy(), pull, atol=1e-12)


@pytest.mark.parametrize("loss", [rl.dpo_loss, rl.ipo_loss, rl.hinge_loss])
def test_only_differences_from_the_reference_count(loss):
    """A constant for each prompt, such as a reward's, cancels."""
    w, l, ref_w, ref_l = log_probs()
    shift = mt.tensor(rand(PAIRS, seed=9))
    expected = loss(w, l, ref_w, ref_l).item()
    assert loss(w + shift, l + shift, ref_w, ref_l).item() == pytest.approx(expected)
    assert loss(w + shift, l, ref_w + shift, ref_l).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [rl.dpo_loss, rl.ipo_loss, rl.hinge_loss])
def test_the_reference_gets_no_gradient(loss):
    tensors = [x.requires_grad_() for x in log_probs()]
    loss(*tensors).backward()
    assert [x.grad is None for x in tensors] == [False, False, True, True]


def test_the_implicit_rewards_difference_is_what_dpo_classifies_by():
    w, l, ref_w, ref_l = log_probs()
    margin = rl.implicit_rewards(w, ref_w, beta=0.3) - rl.implicit_rewards(l, ref_l, beta=0.3)
    expected = -np.log(sigmoid(margin.numpy())).mean()
    assert rl.dpo_loss(w, l, ref_w, ref_l, beta=0.3).item() == pytest.approx(expected)


def test_dpo_recovers_the_policy_that_the_reward_asks_for():
    """From all pairs of 4 answers, won as often as Bradley and Terry say: p ∝ p_ref e^{r/beta}."""
    beta = 0.5
    rewards, reference = rand(4), mt.tensor(rand(4, seed=1)).log_softmax(0)
    first, second = (mt.tensor(i) for i in np.triu_indices(4, 1))
    wins = mt.tensor(sigmoid(rewards[first.numpy()] - rewards[second.numpy()]))

    def loss(logits):
        log_p = logits.log_softmax(0)
        h = beta * (log_p - reference)
        difference = h[first] - h[second]
        return -(wins * difference.logsigmoid() + (1 - wins) * (-difference).logsigmoid()).mean()

    best = reference + mt.tensor(rewards) / beta
    np.testing.assert_allclose(mt.grad(loss)(best).numpy(), 0, atol=1e-12)
    optimum = best.log_softmax(0)
    implied = (beta * (optimum - reference)).numpy()
    np.testing.assert_allclose(implied - implied.mean(), rewards - rewards.mean(), atol=1e-12)
    pairs = [x[i] for x in (optimum, reference) for i in (first, second)]
    forth = mt.stack([rl.dpo_loss(*(x[i : i + 1] for x in pairs), beta=beta) for i in range(6)])
    swapped = [pairs[1], pairs[0], pairs[3], pairs[2]]
    back = mt.stack([rl.dpo_loss(*(x[i : i + 1] for x in swapped), beta=beta) for i in range(6)])
    assert (wins * forth + (1 - wins) * back).mean().item() == pytest.approx(loss(best).item())


def test_noisy_labels_have_a_finite_best_and_clean_ones_do_not():
    zero = mt.zeros(1, dtype=mt.float64)

    def slope(h, label_smoothing):
        loss = lambda w: rl.dpo_loss(w, zero, zero, zero, beta=1.0, label_smoothing=label_smoothing)  # noqa: E731
        return mt.grad(loss)(mt.tensor([h], dtype=mt.float64)).item()

    best = np.log(0.9 / 0.1)
    assert slope(best, 0.1) == pytest.approx(0, abs=1e-12)
    assert slope(best + 1, 0.1) > 0 > slope(best - 1, 0.1)
    assert slope(10.0, 0.0) < 0


def test_ipo_rests_at_its_target_and_the_hinge_beyond_its_own():
    zero = mt.zeros(1, dtype=mt.float64)
    at = lambda h: mt.tensor([h], dtype=mt.float64)  # noqa: E731
    assert rl.ipo_loss(at(2.5), zero, zero, zero, beta=0.2).item() == pytest.approx(0, abs=1e-24)
    assert rl.hinge_loss(at(5.1), zero, zero, zero, beta=0.2).item() == 0
    assert rl.hinge_loss(at(4.0), zero, zero, zero, beta=0.2).item() == pytest.approx(0.2)


def test_kto_by_hand():
    log_p, _, reference, _ = log_probs()
    desirable = mt.tensor([True, False, True, True, False])
    gap = 0.3 * (log_p.numpy() - reference.numpy() - 0.7)
    expected = np.where(desirable.numpy(), 1.5 * (1 - sigmoid(gap)), 1 - sigmoid(-gap)).mean()
    found = rl.kto_loss(log_p, reference, desirable, divergence=0.7, beta=0.3, desirable_weight=1.5)
    assert found.item() == pytest.approx(expected)


def test_ktos_reference_point_is_never_negative_and_never_differentiated():
    low, high = mt.tensor([-3.0, -1.0], requires_grad=True), mt.tensor([-1.0, -1.0])
    assert rl.kto_divergence(low, high).item() == 0
    assert rl.kto_divergence(high, low).item() == 1
    assert not rl.kto_divergence(high, low).requires_grad


def test_orpo_of_equal_completions_is_fine_tuning_and_a_constant():
    chosen, *_ = log_probs()
    expected = -chosen.mean().item() + 0.1 * np.log(2)
    assert rl.orpo_loss(chosen, chosen).item() == pytest.approx(expected)


def test_orpos_odds():
    w, l, *_ = log_probs()
    p, q = np.exp(w.numpy()), np.exp(l.numpy())
    ratio = p / (1 - p) / (q / (1 - q))
    expected = (-w.numpy() + 0.5 * np.log1p(1 / ratio)).mean()
    assert rl.orpo_loss(w, l, weight=0.5).item() == pytest.approx(expected)


def test_simpo_wants_a_margin():
    w, l, *_ = log_probs()
    expected = -np.log(sigmoid(2.5 * (w.numpy() - l.numpy()) - 1.5)).mean()
    assert rl.simpo_loss(w, l, beta=2.5, margin=1.5).item() == pytest.approx(expected)


def test_a_reward_model_by_hand():
    chosen, rejected, margin = (mt.tensor(rand(PAIRS, seed=i)) for i in range(3))
    gap = (chosen - rejected - margin).numpy()
    expected = -np.log(sigmoid(gap)).mean()
    assert rl.reward_model_loss(chosen, rejected, margin=margin).item() == pytest.approx(expected)
    centred = rl.reward_model_loss(chosen, rejected, margin=margin, centring=0.01).item()
    extra = 0.01 * np.square((chosen + rejected).numpy()).mean()
    assert centred == pytest.approx(expected + extra)


def test_scores_far_apart_do_not_overflow():
    far = mt.tensor([-1e4, 1e4], requires_grad=True)
    loss = rl.reward_model_loss(far, -far.detach())
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    np.testing.assert_allclose(far.grad.numpy(), [-0.5, 0])


def test_the_score_is_read_at_the_last_token_on_either_side_of_padding():
    scores = rand(3, 4)
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    found = rl.last_token_scores(mt.tensor(np.where(mask, scores, np.nan)), mt.tensor(mask))
    np.testing.assert_array_equal(found.numpy(), scores[[0, 1, 2], [1, 3, 2]])
    with pytest.raises(DataError, match="an empty mask"):
        rl.last_token_scores(mt.tensor(scores), mt.zeros(3, 4))


def test_steps_are_judged_at_their_ends():
    scores, labels = rand(2, 4), np.array([[0, 1, 0, 0.25], [1, 0, 0, 0]])
    ends = np.array([[0, 1, 0, 1], [1, 0, 0, 0]])
    hidden = [mt.tensor(np.where(ends, x, np.nan)) for x in (scores, labels)]
    found = rl.process_reward_loss(*hidden, mt.tensor(ends)).item()
    p, y = sigmoid(scores[ends == 1]), labels[ends == 1]
    assert found == pytest.approx(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())
    assert rl.process_reward_loss(*hidden, mt.zeros(2, 4)).item() == 0


def test_bad_arguments_are_named():
    w, l, ref_w, ref_l = log_probs()
    with pytest.raises(ShapeError, match=r"dpo_loss: expected numbers of whole completions"):
        rl.dpo_loss(mt.ones(5, 3), mt.ones(5, 3), ref_w, ref_l)
    with pytest.raises(ShapeError, match=r"simpo_loss: .* got \(5,\) and \(4,\)"):
        rl.simpo_loss(w, l[:4])
    with pytest.raises(ConfigError, match=r"label_smoothing in \[0, 0\.5\); got 0\.5"):
        rl.dpo_loss(w, l, ref_w, ref_l, label_smoothing=0.5)
