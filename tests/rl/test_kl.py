"""What the estimators estimate, by enumerating every sequence of a small language.

A policy of 5 tokens and up to 3 steps is a table of logits, a row for each prefix. The expectation
over its samples is a sum over all its sequences, so that nothing here is left to chance.
"""

import itertools

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError, ShapeError

VOCABULARY = 5
TOLERANCE = 1e-12


class Language:
    """All sequences of a length, and their log-probabilities under any table of logits."""

    def __init__(self, length):
        self.tokens = np.array(list(itertools.product(range(VOCABULARY), repeat=length)))
        prefixes = {}
        self.rows = np.array(
            [
                [prefixes.setdefault(tuple(row[:t]), len(prefixes)) for t in range(length)]
                for row in self.tokens
            ]
        )
        self.contexts = len(prefixes)

    def table(self, seed):
        rng = np.random.default_rng([seed, self.contexts])
        return mt.tensor(rng.standard_normal((self.contexts, VOCABULARY)))

    def log_probs(self, table):
        """(sequences, length)"""
        logits = table[mt.tensor(self.rows)]
        return rl.token_log_probs(logits, mt.tensor(self.tokens))

    def divergence(self, p, q):
        """KL(p || q) of the two distributions over sequences, from its definition."""
        log_p, log_q = self.log_probs(p).sum(1), self.log_probs(q).sum(1)
        return (log_p.exp() * (log_p - log_q)).sum()

    def mean(self, values, table):
        """The expectation of values, (sequences,), under a table that is not differentiated."""
        return (self.log_probs(table).sum(1).exp().detach() * values).sum()


@pytest.fixture(params=[1, 2, 3])
def language(request):
    return Language(request.param)


def gradient_of(f, table):
    return mt.grad(f)(table).numpy()


def assert_equal(found, expected):
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def assert_differ(found, expected):
    assert np.abs(found - expected).max() > 1e-3


def both(language, table, reference):
    return language.log_probs(table).sum(1), language.log_probs(reference).sum(1)


def as_loss(language, estimator, p, q):
    """E[grad estimator], the gradient flowing through the log-probabilities alone."""
    return gradient_of(lambda z: language.mean(estimator(*both(language, z, q)), p), p)


def test_values(language):
    p, q = language.table(0), language.table(1)
    exact = language.divergence(p, q).item()
    estimates = {
        estimator: language.mean(estimator(*both(language, p, q)), p).item()
        for estimator in (rl.k1, rl.k2, rl.k3, rl.k3_with_gradient_of_k2)
    }
    for unbiased in (rl.k1, rl.k3, rl.k3_with_gradient_of_k2):
        assert estimates[unbiased] == pytest.approx(exact, abs=TOLERANCE)
    assert abs(estimates[rl.k2] - exact) > 1e-3


def test_signs(language):
    log_p, log_q = both(language, language.table(0), language.table(1))
    assert rl.k1(log_p, log_q).min().item() < 0
    for estimator in (rl.k2, rl.k3):
        assert estimator(log_p, log_q).min().item() >= 0


def test_k1_as_a_loss_has_no_gradient_at_all(language):
    assert_equal(as_loss(language, rl.k1, language.table(0), language.table(1)), 0)


@pytest.mark.parametrize("estimator", [rl.k2, rl.k3_with_gradient_of_k2])
def test_k2_as_a_loss_has_the_gradient_of_the_divergence(language, estimator):
    p, q = language.table(0), language.table(1)
    exact = gradient_of(lambda z: language.divergence(z, q), p)
    assert_equal(as_loss(language, estimator, p, q), exact)


def test_k3_as_a_loss_has_the_gradient_of_the_other_direction(language):
    p, q = language.table(0), language.table(1)
    found = as_loss(language, rl.k3, p, q)
    assert_equal(found, gradient_of(lambda z: language.divergence(q, z), p))
    assert_differ(found, gradient_of(lambda z: language.divergence(z, q), p))


def test_as_a_reward_it_is_k1_that_is_right(language):
    """The score function's gradient, E[estimate grad log p]."""
    p, q = language.table(0), language.table(1)
    exact = gradient_of(lambda z: language.divergence(z, q), p)

    def score(estimator):
        estimate = estimator(*both(language, p, q)).detach()
        return gradient_of(lambda z: language.mean(estimate * language.log_probs(z).sum(1), p), p)

    assert_equal(score(rl.k1), exact)
    assert_differ(score(rl.k2), exact)
    assert_differ(score(rl.k3), exact)


@pytest.mark.parametrize("old", [0, 2])
def test_the_ratio_gives_k1_and_k3_their_missing_gradient(language, old):
    """On-policy (old is p) and off-policy, where samples come from another table."""
    p, q, sampler = language.table(0), language.table(1), language.table(old)
    exact = gradient_of(lambda z: language.divergence(z, q), p)

    def weighted(estimator):
        def loss(z):
            log_p, log_q = both(language, z, q)
            ratio = (log_p - language.log_probs(sampler).sum(1)).exp()
            return language.mean(ratio * estimator(log_p, log_q), sampler)

        return gradient_of(loss, p)

    assert_equal(weighted(rl.k1), exact)
    assert_equal(weighted(rl.k3), exact)
    assert_differ(weighted(rl.k2), exact)


def test_token_by_token_k2_misses_what_a_token_does_to_later_ones(language):
    """Its gradient is that of the tokens' own divergences, with the prefixes' frequencies fixed."""
    p, q = language.table(0), language.table(1)

    def tokenwise(z):
        return language.mean(rl.k2(language.log_probs(z), language.log_probs(q)).sum(1), p)

    def fixed_prefixes(z):
        rows = mt.tensor(language.rows)
        local = rl.kl_divergence(z[rows].log_softmax(-1), q[rows].log_softmax(-1))
        return language.mean(local.sum(1), p)

    found = gradient_of(tokenwise, p)
    assert_equal(found, gradient_of(fixed_prefixes, p))
    exact = gradient_of(lambda z: language.divergence(z, q), p)
    compare = assert_equal if language.contexts == 1 else assert_differ
    compare(found, exact)


def test_the_exact_divergence_of_a_sequence_is_the_mean_sum_of_its_tokens(language):
    p, q = language.table(0), language.table(1)
    rows = mt.tensor(language.rows)
    local = rl.kl_divergence(p[rows].log_softmax(-1), q[rows].log_softmax(-1)).sum(1)
    expected = language.divergence(p, q).item()
    assert language.mean(local, p).item() == pytest.approx(expected, abs=TOLERANCE)


def test_a_class_that_never_happens_adds_nothing():
    log_p, log_q = mt.tensor([0.0, -np.inf]), mt.tensor([np.log(0.25), np.log(0.75)])
    assert rl.kl_divergence(log_p, log_q).item() == pytest.approx(np.log(4))
    assert rl.kl_divergence(log_p, log_p).item() == 0
    assert rl.kl_divergence(log_q, log_p).item() == np.inf


def test_k3_is_accurate_near_zero():
    d = 1e-6
    found = rl.k3(mt.tensor(d, dtype=mt.float64), mt.tensor(0.0, dtype=mt.float64)).item()
    assert found == pytest.approx(d * d / 2, rel=1e-3)


def test_derivatives_of_both_orders():
    log_q = mt.tensor(np.random.default_rng(0).standard_normal((3, 4)))
    log_p = log_q + mt.tensor(np.random.default_rng(1).standard_normal((3, 4)))
    for estimator in (rl.k1, rl.k2, rl.k3):
        assert mt.gradcheck(estimator, (log_p, log_q), order=2)


def test_the_coefficient_follows_the_target():
    adapt = rl.adapted_coefficient
    assert adapt(0.1, 6.0, 6.0, 256) == 0.1
    assert adapt(0.1, 6.6, 6.0, 1000) == pytest.approx(0.1 * 1.01)
    assert adapt(0.1, 100.0, 6.0, 10_000) == pytest.approx(0.12)
    assert adapt(0.1, 0.0, 6.0, 10_000) == pytest.approx(0.08)


def test_bad_arguments_are_named():
    with pytest.raises(ShapeError, match="k3: expected log-probabilities of one shape"):
        rl.k3(mt.zeros(3), mt.zeros(2))
    with pytest.raises(ShapeError, match="one vocabulary"):
        rl.kl_divergence(mt.zeros(2, 5), mt.zeros(2, 6))
    with pytest.raises(ConfigError, match="target above 0"):
        rl.adapted_coefficient(0.1, 1.0, 0.0, 1)
