"""Policy losses: gradients at the old policy, what clipping stops, what masks hide."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError, ShapeError

B, T = 3, 4
MASK = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


ADVANTAGES = rand(B, seed=3)
CLIPPED = {
    "ppo": rl.ppo_loss,
    "grpo": rl.grpo_loss,
    "dr_grpo": lambda *x: rl.dr_grpo_loss(*x, length=7),
    "dapo": rl.dapo_loss,
    "gspo": rl.gspo_loss,
    "cispo": lambda *x: rl.cispo_loss(*x, max_ratio=5.0),
}
AVERAGES = {
    "grpo": rl.sequence_mean,
    "dr_grpo": rl.constant_length(7),
    "gspo": rl.sequence_mean,
}


def gradient(loss, log_probs):
    return mt.grad(lambda x: loss(x))(mt.tensor(log_probs)).numpy()


@pytest.mark.parametrize("name", CLIPPED)
def test_on_the_old_policys_own_samples_it_is_the_policy_gradient(name):
    old = rand(B, T)
    found = gradient(lambda x: CLIPPED[name](x, *map(mt.tensor, (old, ADVANTAGES, MASK))), old)
    average = AVERAGES.get(name, rl.token_mean)
    weights = mt.tensor(np.broadcast_to(-ADVANTAGES[:, None], (B, T)).copy())
    expected = gradient(lambda x: average(weights * x, mt.tensor(MASK)), old)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(found).max() > 0.01


@pytest.mark.parametrize("name", CLIPPED)
def test_what_the_mask_hides_is_never_read(name):
    log_probs, old = rand(B, T), rand(B, T, seed=1)
    arguments = [mt.tensor(x) for x in (old, ADVANTAGES, MASK)]
    clean = mt.value_and_grad(lambda x: CLIPPED[name](x, *arguments))(mt.tensor(log_probs))
    log_probs[MASK == 0] = np.nan
    old[MASK == 0] = np.inf
    arguments[0] = mt.tensor(old)
    dirty = mt.value_and_grad(lambda x: CLIPPED[name](x, *arguments))(mt.tensor(log_probs))
    assert clean[0].item() == dirty[0].item()
    np.testing.assert_array_equal(clean[1].numpy(), dirty[1].numpy())
    assert (dirty[1].numpy()[MASK == 0] == 0).all()


@pytest.mark.parametrize("name", CLIPPED)
def test_of_no_tokens_it_is_zero(name):
    x = mt.tensor(rand(B, T))
    assert CLIPPED[name](x, x, mt.tensor(ADVANTAGES), mt.zeros(B, T)).item() == 0


@pytest.mark.parametrize("name", sorted(set(CLIPPED) - {"gspo"}))
def test_a_sequences_advantage_is_that_of_each_of_its_tokens(name):
    arguments = [mt.tensor(rand(B, T, seed=i)) for i in range(2)]
    spread = np.broadcast_to(ADVANTAGES[:, None], (B, T)).copy()
    one, two = (
        CLIPPED[name](*arguments, mt.tensor(advantages), mt.tensor(MASK)).item()
        for advantages in (ADVANTAGES, spread)
    )
    assert one == two


@pytest.mark.parametrize(
    ("advantage", "ratio", "flows"),
    [(1, 1.3, False), (1, 0.7, True), (-1, 1.3, True), (-1, 0.7, False), (1, 1.1, True)],
)
def test_the_gradient_stops_where_the_ratio_has_gone_far_enough(advantage, ratio, flows):
    advantages, mask = mt.tensor([float(advantage)]), mt.ones(1, 1)
    old = np.zeros((1, 1))
    log_probs = np.log([[ratio]])
    found = gradient(lambda x: rl.ppo_loss(x, mt.tensor(old), advantages, mask), log_probs)
    assert (found != 0) == flows
    clipped = rl.clip_fraction(mt.tensor(log_probs), mt.tensor(old), advantages, mask)
    assert clipped == (not flows)


def test_gspo_counts_the_sequences_whose_gradient_stops():
    log_probs, mask = rand(6, 4, seed=3) * 0.01, np.ones((6, 4), bool)
    mask[1, 2:], mask[4] = False, False
    old, advantages = np.zeros((6, 4)), np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    rest = mt.tensor(old), mt.tensor(advantages), mt.tensor(mask)
    slope = gradient(lambda x: rl.gspo_loss(x, *rest), log_probs)
    stopped = (slope == 0).all(1)[mask.any(1)]
    assert 0 < stopped.mean() < 1
    assert rl.gspo_clip_fraction(mt.tensor(log_probs), *rest) == pytest.approx(stopped.mean())
    with pytest.raises(ShapeError, match="gspo_clip_fraction: expected an advantage for each of 6"):
        rl.gspo_clip_fraction(mt.tensor(log_probs), rest[0], mt.tensor(old), rest[2])


def test_there_may_be_more_room_above_than_below():
    old, up, mask = mt.zeros(1, 1), mt.tensor([1.0]), mt.ones(1, 1)
    for ratio, expected in [(1.25, 1.25), (1.5, 1.28)]:
        log_probs = mt.tensor([[np.log(ratio)]])
        assert rl.dapo_loss(log_probs, old, up, mask).item() == pytest.approx(-expected)
    falls = rl.dapo_loss(mt.tensor([[np.log(0.75)]]), old, -up, mask)
    assert falls.item() == pytest.approx(0.8)


@pytest.mark.parametrize("name", CLIPPED)
def test_the_old_policy_gets_no_gradient(name):
    new, old = (mt.tensor(rand(B, T, seed=i) * 1e-4, requires_grad=True) for i in range(2))
    CLIPPED[name](new, old, mt.tensor(ADVANTAGES), mt.tensor(MASK)).backward()
    assert new.grad is not None
    assert old.grad is None


def test_the_dual_clip_bounds_what_a_bad_token_weighs():
    x, old, mask = mt.tensor([[3.0]]), mt.zeros(1, 1), mt.ones(1, 1)
    bad, good = mt.tensor([-2.0]), mt.tensor([2.0])
    assert rl.ppo_loss(x, old, bad, mask, dual_clip=3.0).item() == pytest.approx(6.0)
    assert rl.ppo_loss(x, old, bad, mask).item() == pytest.approx(2 * np.exp(3), rel=1e-6)
    assert rl.ppo_loss(x, old, good, mask, dual_clip=3.0).item() == pytest.approx(-2.4)
    with pytest.raises(ConfigError, match="dual_clip above 1; got 1"):
        rl.ppo_loss(x, old, bad, mask, dual_clip=1.0)


def test_a_clipped_weight_still_has_a_gradient():
    """That is the point of CISPO: the token of ratio 20 counts as one of ratio 5."""
    log_probs, old = np.log([[20.0]]), mt.zeros(1, 1)
    advantages, mask = mt.tensor([1.0]), mt.ones(1, 1)
    found = gradient(lambda x: rl.cispo_loss(x, old, advantages, mask, max_ratio=5.0), log_probs)
    assert found.item() == pytest.approx(-5.0)


def test_the_sequences_ratio_is_the_geometric_mean_of_its_tokens():
    log_probs, old = rand(B, T) * 1e-4, rand(B, T, seed=1) * 1e-4
    found = rl.gspo_loss(*map(mt.tensor, (log_probs, old, ADVANTAGES, MASK))).item()
    ratio = np.exp(((log_probs - old) * MASK).sum(1) / np.maximum(MASK.sum(1), 1))
    clipped = np.clip(ratio, 1 - 3e-4, 1 + 4e-4)
    gains = np.minimum(ratio * ADVANTAGES, clipped * ADVANTAGES)
    assert found == pytest.approx(-gains[:2].sum() / 3)


def test_the_kl_term_is_added_token_by_token():
    arguments = [mt.tensor(rand(B, T, seed=i)) for i in range(2)]
    arguments += [mt.tensor(ADVANTAGES), mt.tensor(MASK)]
    reference = rand(B, T, seed=5)
    reference[MASK == 0] = np.nan
    for kl in (rl.k2, rl.k3):
        found = rl.grpo_loss(*arguments, reference=mt.tensor(reference), beta=0.3, kl=kl).item()
        extra = rl.sequence_mean(kl(arguments[0], mt.tensor(reference)), arguments[3]).item()
        assert found == pytest.approx(rl.grpo_loss(*arguments).item() + 0.3 * extra)


def test_the_kl_term_reads_nothing_behind_the_mask():
    log_probs, reference = rand(B, T), rand(B, T, seed=5)
    log_probs[MASK == 0] = reference[MASK == 0] = np.nan
    old, advantages, mask = mt.tensor(rand(B, T, seed=1)), mt.tensor(ADVANTAGES), mt.tensor(MASK)
    found = gradient(
        lambda x: rl.grpo_loss(x, old, advantages, mask, reference=mt.tensor(reference)), log_probs
    )
    assert np.isfinite(found).all()
    assert (found[MASK == 0] == 0).all()


def test_group_advantages_make_the_first_loss_zero_but_not_its_gradient():
    rewards = mt.tensor([[1.0, 0.0, 0.0, 1.0]])
    advantages = rl.grpo_advantages(rewards).reshape(-1).double()
    x = rand(4, 5)

    def loss(x):
        return rl.grpo_loss(x, x.detach(), advantages, mt.ones(4, 5))

    assert abs(loss(mt.tensor(x)).item()) < 1e-7
    assert np.abs(gradient(loss, x)).max() > 0.01


def test_a_group_of_equal_rewards_has_no_gradient():
    advantages = rl.grpo_advantages(mt.full((1, 3), 0.1)).reshape(-1)
    x = rand(3, 4)

    def loss(x):
        return rl.grpo_loss(x, x.detach(), advantages, mt.ones(3, 4))

    assert (gradient(loss, x) == 0).all()


def test_groups_that_teach_something():
    rewards = mt.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert rl.informative_groups(rewards).tolist() == [False, True, False]


def long_answers_share(loss):
    """What a token of a wrong answer of 8 tokens weighs, against one of 2 tokens."""
    mask = mt.tensor(np.arange(8) < np.array([[8], [2]]))
    x = np.zeros((2, 8))
    found = gradient(lambda x: loss(x, x.detach(), -mt.ones(2), mask), x)
    return found[0, 0] / found[1, 0]


def test_only_the_mean_of_means_goes_easy_on_long_wrong_answers():
    assert long_answers_share(rl.grpo_loss) == pytest.approx(1 / 4)
    assert long_answers_share(rl.dapo_loss) == pytest.approx(1)
    assert long_answers_share(CLIPPED["dr_grpo"]) == pytest.approx(1)


def test_reinforce_weighs_log_probs_by_constant_advantages():
    advantages = mt.tensor(ADVANTAGES, requires_grad=True)
    x = mt.tensor(rand(B, T), requires_grad=True)
    loss = rl.reinforce_loss(x, advantages, mt.tensor(MASK))
    loss.backward()
    assert advantages.grad is None
    np.testing.assert_allclose(x.grad.numpy(), -ADVANTAGES[:, None] * MASK / MASK.sum())


def test_value_loss_by_hand():
    values, returns, old = (mt.tensor([x]) for x in ([2.0, 1.0], [0.0, 0.0], [1.0, 1.1]))
    mask = mt.ones(1, 2)
    assert rl.value_loss(values, returns, mask).item() == pytest.approx((4 + 1) / 4)
    clipped = rl.value_loss(values, returns, mask, old_values=old).item()
    assert clipped == pytest.approx((4 + 1) / 4)
    clipped = rl.value_loss(values, returns + 2, mask, old_values=old).item()
    assert clipped == pytest.approx((0.8**2 + 1) / 4)


def test_value_loss_reads_nothing_behind_the_mask():
    arrays = [rand(B, T, seed=i) for i in range(3)]
    for array in arrays:
        array[MASK == 0] = np.nan
    values, returns, old = map(mt.tensor, arrays)
    values.requires_grad_()
    rl.value_loss(values, returns, mt.tensor(MASK), old_values=old).backward()
    assert np.isfinite(values.grad.numpy()).all()


@pytest.mark.parametrize("tau", [0.2, 1.0, 5.0])
def test_mirror_descent_rests_at_the_tilted_policy(tau):
    """p ∝ p_old exp(r / tau) has loss 0, given the true normaliser."""
    old = mt.tensor(rand(2, 6)).log_softmax(1)
    rewards = mt.tensor(rand(2, 6, seed=1))
    normaliser = (old + rewards / tau).logsumexp(1, keepdim=True)
    best = old + rewards / tau - normaliser

    def loss(x):
        return rl.mirror_descent_loss(x, old, rewards, tau=tau, baseline=tau * normaliser)

    value, slope = mt.value_and_grad(loss)(best)
    assert value.item() == pytest.approx(0, abs=1e-28)
    np.testing.assert_allclose(slope.numpy(), 0, atol=1e-14)


def test_the_mean_reward_is_the_normaliser_to_first_order():
    rewards = mt.tensor(rand(1, 6))
    old = mt.zeros(1, 6, dtype=mt.float64).log_softmax(1)
    errors = [
        abs((tau * (old + rewards / tau).logsumexp(1) - rewards.mean()).item())
        for tau in (10.0, 100.0)
    ]
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


def test_mirror_descents_gradient_is_the_papers():
    old, rewards = mt.tensor(rand(2, 6)), mt.tensor(rand(2, 6, seed=1))
    x = rand(2, 6, seed=2)
    found = gradient(lambda x: rl.mirror_descent_loss(x, old, rewards, tau=0.3), x)
    centred = rewards - rewards.mean(1, keepdim=True)

    def paper(x):
        return -(centred * x - 0.15 * (x - old).square()).mean()

    np.testing.assert_allclose(found, gradient(paper, x), atol=1e-12)


def test_positive_examples_alone_are_imitated():
    x = mt.tensor(rand(B, T), requires_grad=True)
    rl.positive_example_loss(x, mt.tensor([False, True, True]), mt.tensor(MASK)).backward()
    expected = np.zeros((B, T))
    expected[1, [0, 2]] = -1 / 2
    np.testing.assert_allclose(x.grad.numpy(), expected)
    none = rl.positive_example_loss(x, mt.zeros(B), mt.tensor(MASK))
    assert none.item() == 0


def test_the_samplers_other_arithmetic_is_corrected_up_to_a_cap():
    found = rl.sampler_correction(
        mt.tensor([[0.0, 5.0, np.nan]]), mt.tensor([[0.5, 0.0, 0.0]]), mt.tensor([[1, 1, 0]])
    )
    np.testing.assert_allclose(found.numpy(), [[np.exp(-0.5), 2.0, 0.0]], rtol=1e-6)


def test_explained_variance():
    returns = rand(B, T)
    mask = mt.tensor(MASK)

    def explained(v):
        return rl.explained_variance(mt.tensor(v), mt.tensor(returns), mask)

    assert explained(returns) == 1
    assert explained(np.full((B, T), 3.0)) == pytest.approx(0)
    assert explained(returns / 2) == pytest.approx(0.75)
    assert np.isnan(rl.explained_variance(mask.double(), mt.ones(B, T), mask))


def test_bad_arguments_are_named():
    x, mask = mt.ones(B, T), mt.ones(B, T)
    with pytest.raises(
        ShapeError, match=r"ppo_loss: expected advantages of shape \(3, 4\) or \(3,\)"
    ):
        rl.ppo_loss(x, x, mt.ones(T), mask)
    with pytest.raises(ShapeError, match="gspo_loss: expected an advantage for each of 3"):
        rl.gspo_loss(x, x, x, mask)
    with pytest.raises(ShapeError, match="cispo_loss: expected a mask and values of one shape"):
        rl.cispo_loss(x, x, mt.ones(B), mask[:2], max_ratio=5.0)
    with pytest.raises(ConfigError, match="tau above 0"):
        rl.mirror_descent_loss(x, x, x, tau=0.0)
    with pytest.raises(ShapeError, match=r"\(groups, size\)"):
        rl.mirror_descent_loss(x, x, x[:2], tau=1.0)
    with pytest.raises(ShapeError, match=r"correct of shape \(3,\)"):
        rl.positive_example_loss(x, mt.ones(2), mask)
