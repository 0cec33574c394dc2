"""Trust regions on a small network, whose Fisher matrix can be written down."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError

STATES, FEATURES, HIDDEN, ACTIONS = 6, 3, 4, 3


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


INPUTS = mt.tensor(rand(STATES, FEATURES))


def network():
    return {
        "hidden": mt.tensor(rand(FEATURES, HIDDEN, seed=1)),
        "out": [mt.tensor(rand(HIDDEN, ACTIONS, seed=2)), mt.tensor(rand(ACTIONS, seed=3))],
    }


def log_probs(parameters):
    weight, bias = parameters["out"]
    return ((INPUTS @ parameters["hidden"]).tanh() @ weight + bias).log_softmax(-1)


def problem(seed=0):
    """(surrogate, divergence, parameters), over all actions of all states."""
    parameters = network()
    old = log_probs(parameters)
    advantages = mt.tensor(rand(STATES, ACTIONS, seed=10 + seed))
    advantages = advantages - (old.exp() * advantages).sum(1, keepdim=True)

    def surrogate(p):
        return (log_probs(p).exp() * advantages).sum(1).mean()

    def divergence(p):
        return rl.kl_divergence(old, log_probs(p)).mean()

    return surrogate, divergence, parameters


def flat(tree):
    return np.concatenate(
        [tree["hidden"].numpy().ravel(), *(x.numpy().ravel() for x in tree["out"])]
    )


def fisher():
    """The mean over states of Jᵀ (diag(p) - p pᵀ) J, J the Jacobian of the logits."""
    parameters = network()
    probs = log_probs(parameters).exp().numpy()

    def logits(p):
        return (INPUTS @ p["hidden"]).tanh() @ p["out"][0] + p["out"][1]

    tree = mt.jacobian(logits, parameters)
    J = np.concatenate(
        [x.numpy().reshape(STATES, ACTIONS, -1) for x in (tree["hidden"], *tree["out"])], axis=2
    )
    middle = [np.diag(p) - np.outer(p, p) for p in probs]
    return sum(j.T @ m @ j for j, m in zip(J, middle, strict=True)) / STATES


def test_the_product_is_that_of_the_fisher_matrix():
    _, divergence, parameters = problem()
    v = {
        "hidden": mt.tensor(rand(FEATURES, HIDDEN, seed=5)),
        "out": [mt.tensor(rand(HIDDEN, ACTIONS, seed=6)), mt.tensor(rand(ACTIONS, seed=7))],
    }
    found = rl.fisher_vector_product(divergence, parameters, v, damping=0.1)
    expected = fisher() @ flat(v) + 0.1 * flat(v)
    np.testing.assert_allclose(flat(found), expected, atol=1e-12)


def test_the_divergence_has_no_gradient_where_it_starts():
    _, divergence, parameters = problem()
    np.testing.assert_allclose(flat(mt.grad(divergence)(parameters)), 0, atol=1e-15)


def test_conjugate_gradients_solve_what_numpy_solves():
    A = rand(8, 8) @ rand(8, 8).T + np.eye(8)
    b = rand(8, seed=1)
    matrix = mt.tensor(A)
    found = rl.conjugate_gradient(
        lambda v: matrix @ v, mt.tensor(b), iterations=20, tolerance=1e-24
    )
    np.testing.assert_allclose(found.numpy(), np.linalg.solve(A, b), atol=1e-9)


def test_the_solution_for_zero_is_zero():
    found = rl.conjugate_gradient(lambda v: v, mt.zeros(3))
    assert found.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [1e-3, 1e-2, 1.0])
def test_a_step_stays_inside_and_improves(seed, limit):
    surrogate, divergence, parameters = problem(seed)
    step = rl.trpo_step(surrogate, divergence, parameters, max_divergence=limit)
    assert step.accepted
    assert step.divergence <= limit
    assert step.divergence == divergence(step.parameters).item()
    gain = surrogate(step.parameters).item() - surrogate(parameters).item()
    assert step.gain == pytest.approx(gain)
    assert gain > 0
    np.testing.assert_array_equal(flat(parameters), flat(network()))


def test_a_small_step_is_the_natural_gradient():
    """Without damping, along F⁻¹ g, and as long as the region is wide."""
    surrogate, divergence, parameters = problem()
    step = rl.trpo_step(
        surrogate, divergence, parameters, max_divergence=1e-8, damping=1e-3, iterations=60
    )
    moved = flat(step.parameters) - flat(parameters)
    damped = fisher() + 1e-3 * np.eye(len(moved))
    direction = np.linalg.solve(damped, flat(mt.grad(surrogate)(parameters)))
    cosine = moved @ direction / np.linalg.norm(moved) / np.linalg.norm(direction)
    assert cosine == pytest.approx(1, abs=1e-6)
    assert moved @ damped @ moved / 2 == pytest.approx(1e-8, rel=1e-4)


def test_with_nothing_to_gain_nothing_moves():
    _, divergence, parameters = problem()
    step = rl.trpo_step(lambda p: 0.0 * p["hidden"].sum(), divergence, parameters)
    assert not step.accepted
    assert step.parameters is parameters


def test_a_step_that_is_not_as_good_as_it_looked_is_not_taken():
    """The gradient at the start promises a gain, but there is a cliff right behind it."""
    surrogate, divergence, parameters = problem()

    def cliff(p):
        return surrogate(p) - 1e30 * divergence(p).square()

    step = rl.trpo_step(cliff, divergence, parameters, tries=3)
    assert not step.accepted
    assert step.gain == step.divergence == 0


def test_bad_arguments_are_named():
    with pytest.raises(ConfigError, match="max_divergence above 0"):
        rl.trpo_step(*problem(), max_divergence=0.0)
