"""What a completion earns, by hand."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError, DataError, ShapeError

MASK = np.array([[1, 1, 1, 0], [0, 1, 0, 1]])


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def test_rewards_of_several_functions_are_joined():
    found = rl.joined_rewards([[1.0, 0.0, None], [0.5, None, 2.0]], weights=[1.0, 10.0])
    assert found.tolist() == [6.0, 0.0, 20.0]
    assert rl.joined_rewards([[1, 0]]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_named(bad):
    with pytest.raises(DataError, match=f"function 1 gave {bad} to sample 2"):
        rl.joined_rewards([[1.0, 1.0, 1.0], [0.0, None, bad]])


def test_a_sample_that_nothing_judges_is_named():
    with pytest.raises(DataError, match="no function gave sample 1 a reward"):
        rl.joined_rewards([[1.0, None], [0.0, None]])


def test_functions_that_disagree_about_the_number_of_samples():
    for rewards, weights in [([[1.0], [1.0, 2.0]], None), ([[1.0]], [1.0, 2.0]), ([], None)]:
        with pytest.raises(ShapeError, match="as many rewards from each function"):
            rl.joined_rewards(rewards, weights)


def test_shaped_rewards_sum_to_the_score_minus_the_penalty():
    log_p, log_q = rand(2, 4), rand(2, 4, seed=1)
    log_p[MASK == 0] = np.nan
    scores = np.array([1.5, -9.0])
    found = rl.kl_shaped_rewards(
        *map(mt.tensor, (scores, log_p, log_q, MASK)), beta=0.1, limit=5.0
    ).numpy()
    penalties = np.where(MASK == 1, -0.1 * (log_p - log_q), 0)
    np.testing.assert_allclose(found.sum(1), np.array([1.5, -5.0]) + penalties.sum(1))
    np.testing.assert_allclose(found[0], penalties[0] + [0, 0, 1.5, 0])
    np.testing.assert_allclose(found[1], penalties[1] + [0, 0, 0, -5.0])


def test_a_score_without_a_token_to_stand_at():
    with pytest.raises(DataError, match="an empty mask"):
        rl.kl_shaped_rewards(mt.ones(2), mt.ones(2, 3), mt.ones(2, 3), mt.zeros(2, 3), beta=0.1)


def test_too_long_costs_up_to_one():
    lengths = mt.tensor([0, 16, 18, 20, 30])
    found = rl.overlong_penalty(lengths, max_length=20, margin=4)
    assert found.tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]
    with pytest.raises(ConfigError, match=r"margin in \[1, 20\]; got 0"):
        rl.overlong_penalty(lengths, max_length=20, margin=0)


def test_short_and_right_is_rewarded_short_and_wrong_is_not():
    lengths = mt.tensor([[10, 20, 30], [10, 20, 30], [7, 7, 7]])
    correct = mt.tensor([[True] * 3, [False] * 3, [True] * 3])
    assert rl.length_reward(lengths, correct).tolist() == [
        [0.5, 0.0, -0.5],
        [0.0, 0.0, -0.5],
        [0.0, 0.0, 0.0],
    ]
    with pytest.raises(ShapeError, match=r"\(groups, size\)"):
        rl.length_reward(lengths, correct[0])


def test_safety_first_is_llama_2s_combination():
    helpful, safe = np.random.default_rng(0).normal(0, 3, (2, 200))
    tagged = np.arange(200) % 4 == 0
    found = rl.safety_first(*map(mt.from_numpy, (helpful, safe, tagged))).numpy()
    p_helpful, p_safe = (1 / (1 + np.exp(-x)) for x in (helpful, safe))
    combined = np.array(
        [s if tag or s < 0.15 else h for h, s, tag in zip(p_helpful, p_safe, tagged, strict=True)]
    )
    np.testing.assert_allclose(found, np.log(combined / (1 - combined)), rtol=1e-9)
    assert 0 < np.mean(found == helpful) < 1


def test_safety_first_refuses_what_does_not_fit():
    one, two = mt.tensor([1.0]), mt.tensor([1.0, 2.0])
    with pytest.raises(ShapeError, match="one shape"):
        rl.safety_first(one, two, two)
    with pytest.raises(ConfigError, match="threshold in"):
        rl.safety_first(one, one, one, threshold=15)
