"""Advantages: identities, invariances, and what must not be lost or divided by zero."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError, DataError, ShapeError

MASK = np.array([[1, 1, 1, 1, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]])


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def tensors(*arrays):
    return [mt.tensor(array) for array in arrays]


def rewards_and_values(mask=MASK):
    return rand(*mask.shape) * mask, rand(*mask.shape, seed=1)


def test_with_lambda_one_it_is_the_return_minus_the_value():
    rewards, values = rewards_and_values()
    found = rl.gae(*tensors(rewards, values, MASK), lam=1.0)
    to_go = np.cumsum(rewards[:, ::-1], 1)[:, ::-1]
    np.testing.assert_allclose(found.advantages.numpy(), (to_go - values) * MASK, atol=1e-12)
    np.testing.assert_allclose(found.returns.numpy(), to_go * MASK, atol=1e-12)


def test_with_lambda_zero_it_is_the_error_of_one_step():
    rewards, values = rewards_and_values(np.ones((2, 4), int))
    found = rl.gae(*tensors(rewards, values, np.ones((2, 4))), lam=0.0, gamma=0.9)
    later = np.append(values[:, 1:], np.zeros((2, 1)), 1)
    np.testing.assert_allclose(found.advantages.numpy(), rewards + 0.9 * later - values)


def test_a_token_that_does_not_count_takes_no_time():
    rewards, values = rewards_and_values()
    values[MASK == 0] = np.nan
    options = {"gamma": 0.9, "lam": 0.8}
    found = rl.gae(*tensors(rewards, values, MASK), **options)
    dense = [x[1:2, [0, 2]] for x in (rewards, values, MASK)]
    expected = rl.gae(*tensors(*dense), **options)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy()[1, [0, 2]], two.numpy()[0], atol=1e-12)
        assert (one.numpy()[MASK == 0] == 0).all()


def test_a_sequence_cut_in_two_is_one_sequence():
    """The value after the cut stands for what would have come: exact when it is the return."""
    rewards, values = rewards_and_values(np.ones((2, 6), int))
    mask = np.ones((2, 6))
    options = {"gamma": 0.9, "lam": 1.0}
    whole = rl.gae(*tensors(rewards, values, mask), **options)
    last = whole.returns[:, 4]
    cut = rl.gae(*tensors(rewards[:, :4], values[:, :4], mask[:, :4]), last_value=last, **options)
    np.testing.assert_allclose(cut.advantages.numpy(), whole.advantages.numpy()[:, :4], atol=1e-12)


def test_each_sequence_may_have_its_own_lambda():
    rewards, values = rewards_and_values()
    found = rl.gae(*tensors(rewards, values, MASK), lam=mt.tensor(np.array([0.3, 0.7, 0.5])))
    for i, lam in enumerate([0.3, 0.7, 0.5]):
        alone = rl.gae(*tensors(rewards, values, MASK), lam=lam)
        np.testing.assert_array_equal(found.advantages[i].numpy(), alone.advantages[i].numpy())


def test_actor_and_critic_are_decoupled():
    rewards, values = rewards_and_values()
    found = rl.decoupled_gae(*tensors(rewards, values, MASK), actor_lam=0.5)
    actor = rl.gae(*tensors(rewards, values, MASK), lam=0.5)
    critic = rl.gae(*tensors(rewards, values, MASK), lam=1.0)
    np.testing.assert_array_equal(found.advantages.numpy(), actor.advantages.numpy())
    np.testing.assert_array_equal(found.returns.numpy(), critic.returns.numpy())


def test_a_reward_that_would_be_lost_is_named():
    rewards = np.zeros((3, 5))
    rewards[1, 4] = 1.0
    with pytest.raises(DataError, match=r"got 1\.0 at \(1, 4\), where it would be lost"):
        rl.gae(*tensors(rewards, rewards, MASK))


def test_lambda_grows_with_length():
    mask = np.arange(200) < np.array([[200], [40], [20], [5], [0]])
    found = rl.length_adaptive_lambda(mt.tensor(mask), alpha=0.05)
    np.testing.assert_allclose(found.numpy(), [0.9, 0.5, 0, 0, 0], atol=1e-6)
    with pytest.raises(ConfigError, match="alpha above 0"):
        rl.length_adaptive_lambda(mt.tensor(mask), alpha=0.0)


def test_returns_to_go_are_discounted_by_tokens_that_count():
    mask = np.array([[1, 0, 1, 1, 0]])
    found = rl.returns_to_go(mt.tensor([[1.0, 0.0, 2.0, 4.0, 0.0]]), mt.tensor(mask), gamma=0.5)
    assert found.tolist() == [[3.0, 0.0, 4.0, 4.0, 0.0]]


def test_leave_one_out_by_leaving_one_out():
    rewards = rand(3, 4)
    found = rl.rloo_advantages(mt.tensor(rewards)).numpy()
    for i in range(4):
        others = np.delete(rewards, i, axis=1).mean(1)
        np.testing.assert_allclose(found[:, i], rewards[:, i] - others, atol=1e-12)
    with pytest.raises(ShapeError, match="groups of 1, which have no others"):
        rl.rloo_advantages(mt.ones(3, 1))


def test_a_baseline_is_subtracted():
    rewards = mt.tensor([1.0, 3.0])
    assert rl.reinforce_advantages(rewards).tolist() == [1.0, 3.0]
    assert rl.reinforce_advantages(rewards, rewards.mean()).tolist() == [-1.0, 1.0]
    with pytest.raises(ShapeError, match="one baseline or as many as rewards"):
        rl.reinforce_advantages(rewards, mt.ones(3))


@pytest.mark.parametrize("scale", [1.0, 0.01, 100.0])
def test_a_groups_advantages_do_not_depend_on_the_units_of_its_rewards(scale):
    rewards = rand(3, 4)
    found = rl.grpo_advantages(mt.tensor(rewards * scale + 7), eps=0.0).numpy()
    expected = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("advantages", [rl.grpo_advantages, rl.dr_grpo_advantages])
def test_equal_rewards_have_advantage_zero_to_the_bit(advantages):
    """0.1 + 0.1 + 0.1 is not 0.3, and a mean may lie beside the numbers that it is the mean of."""
    rewards = mt.full((2, 3), 0.1, dtype=mt.float64)
    assert rewards.mean(1)[0].item() != 0.1
    assert (advantages(rewards).numpy() == 0).all()


@pytest.mark.parametrize("advantages", [rl.grpo_advantages, rl.dr_grpo_advantages])
def test_a_group_of_one_keeps_its_reward(advantages):
    assert advantages(mt.tensor([[2.0], [-1.0]])).tolist() == [[2.0], [-1.0]]


GROUPED = [rl.rloo_advantages, rl.grpo_advantages, rl.dr_grpo_advantages]


@pytest.mark.parametrize("advantages", GROUPED)
def test_bad_rewards_are_named(advantages):
    with pytest.raises(DataError, match=r"got nan at \(1, 0\) and 1 such"):
        advantages(mt.tensor([[1.0, 2.0], [float("nan"), 0.0]]))
    with pytest.raises(ShapeError, match=r"rewards \(groups, size\); got \(4,\)"):
        advantages(mt.ones(4))


@pytest.mark.parametrize("advantages", GROUPED)
def test_integers_are_rewards_too_and_nothing_is_differentiated(advantages):
    whole = advantages(mt.tensor([[0, 1, 1, 0]]))
    floats = mt.tensor([[0.0, 1.0, 1.0, 0.0]], requires_grad=True)
    assert whole.tolist() == advantages(floats).tolist()
    assert not advantages(floats).requires_grad


def test_steps_are_judged_by_what_they_and_later_ones_earned():
    rewards = np.zeros((1, 2, 5))
    rewards[0, 0, [1, 4]] = [1.0, 0.0]
    rewards[0, 1, 2] = 5.0
    ends = rewards.copy()
    ends[0, 0, 4] = 1
    rewards[ends == 0] = np.nan
    found = rl.process_advantages(mt.tensor(rewards), mt.tensor(ends), eps=0.0).numpy()[0]
    steps = np.array([1.0, 0.0, 5.0])
    a, b, c = (steps - steps.mean()) / steps.std(ddof=1)
    np.testing.assert_allclose(found, [[a + b, a + b, b, b, b], [c, c, c, 0, 0]], atol=1e-12)


def test_equal_steps_one_step_and_no_steps():
    ends = np.zeros((3, 3, 4), bool)
    ends[0, :, 3] = True
    ends[1, 0, 2] = True
    found = rl.process_advantages(mt.tensor(ends * 0.1), mt.tensor(ends)).numpy()
    assert (found[0] == 0).all()
    np.testing.assert_allclose(found[1], [[0.1, 0.1, 0.1, 0], [0] * 4, [0] * 4])
    assert (found[2] == 0).all()


def test_whitened_tokens_have_mean_zero_and_variance_one_whatever_the_padding():
    values = rand(*MASK.shape) * 3 + 2
    values[MASK == 0] = np.nan
    found = rl.whiten(*tensors(values, MASK)).numpy()
    kept = found[MASK == 1]
    assert kept.mean() == pytest.approx(0, abs=1e-12)
    assert kept.std(ddof=1) == pytest.approx(1)
    assert (found[MASK == 0] == 0).all()
    shifted = rl.whiten(*tensors(values, MASK), shift_mean=False).numpy()
    np.testing.assert_allclose(shifted[MASK == 1], kept + values[MASK == 1].mean())


def test_whitening_one_token_or_none_is_zero():
    for mask in (np.zeros((2, 2)), np.array([[0, 1], [0, 0]])):
        assert (rl.whiten(mt.ones(2, 2), mt.tensor(mask)).numpy() == 0).all()


def test_reinforce_plus_plus_is_whitened_over_the_batch():
    rewards = rand(*MASK.shape) * MASK
    found = rl.reinforce_plus_plus_advantages(*tensors(rewards, MASK)).numpy()
    to_go = np.cumsum(rewards[:, ::-1], 1)[:, ::-1][MASK == 1]
    np.testing.assert_allclose(found[MASK == 1], (to_go - to_go.mean()) / to_go.std(ddof=1))

    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]])
    groups = rand(2, 2)
    found = rl.reinforce_plus_plus_baseline_advantages(*tensors(groups, mask)).numpy()
    centred = (groups - groups.mean(1, keepdims=True)).reshape(-1, 1).repeat(3, 1)[mask == 1]
    expected = (centred - centred.mean()) / centred.std(ddof=1)
    np.testing.assert_allclose(found[mask == 1], expected, atol=1e-7)
    with pytest.raises(ShapeError, match="a row of the mask for each reward"):
        rl.reinforce_plus_plus_baseline_advantages(*tensors(groups, mask[:3]))
