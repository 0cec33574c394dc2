"""The cart and its pole: the physics against Lagrange's equations, and what is learnt from."""

import numpy as np
import pytest

import minitorch as mt
from models.experiments import cartpole
from models.experiments.cartpole import CART, GRAVITY, HALF_LENGTH, POLE, CartPole, Setup

RNG = np.random.default_rng


def lagrange(angle, spin, force):
    """(of the cart, of the pole): M(q) q'' = f(q, q'), of a cart and a thin rod upon it.

    T = (M + m) x'² / 2 + m l x' theta' cos theta + (4/3) m l² theta'² / 2, V = m g l cos theta.
    """
    coupling = POLE * HALF_LENGTH * np.cos(angle)
    mass = [[CART + POLE, coupling], [coupling, 4 / 3 * POLE * HALF_LENGTH**2]]
    right = [
        force + POLE * HALF_LENGTH * spin**2 * np.sin(angle),
        POLE * GRAVITY * HALF_LENGTH * np.sin(angle),
    ]
    return np.linalg.solve(mass, right)


def test_accelerations_are_those_of_lagrange():
    for angle, spin, force in RNG(0).normal(0, [1.0, 3.0, 10.0], (50, 3)):
        np.testing.assert_allclose(
            cartpole.accelerations(angle, spin, force), lagrange(angle, spin, force), rtol=1e-12
        )


def test_without_a_push_energy_is_kept_and_a_push_adds_what_it_works():
    def energy(q):
        _, speed, angle, spin = q
        moving = (CART + POLE) * speed**2 / 2 + 2 / 3 * POLE * (HALF_LENGTH * spin) ** 2
        joint = POLE * HALF_LENGTH * speed * spin * np.cos(angle)
        return moving + joint + POLE * GRAVITY * HALF_LENGTH * np.cos(angle)

    def slope(q, force):
        sliding, tilting = cartpole.accelerations(q[2], q[3], force)
        return np.array([q[1], sliding, q[3], tilting])

    for force in (0.0, 7.0):
        q, dt = np.array([0.0, 0.3, 0.2, -0.5]), 1e-3
        start, position = energy(q), q[0]
        for _ in range(500):
            k1 = slope(q, force)
            k2 = slope(q + dt / 2 * k1, force)
            k3 = slope(q + dt / 2 * k2, force)
            k4 = slope(q + dt * k3, force)
            q = q + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        assert energy(q) - start == pytest.approx(force * (q[0] - position), abs=1e-9)


def test_a_step_is_eulers_with_positions_first():
    world = CartPole(3, RNG(0))
    before = world.state.copy()
    reached, failed, cut = world.step(np.array([0, 1, 1]))
    for old, new, push in zip(before, reached, (-10.0, 10.0, 10.0)):
        sliding, tilting = lagrange(old[2], old[3], push)
        expected = old + 0.02 * np.array([old[1], sliding, old[3], tilting])
        np.testing.assert_allclose(new, expected, rtol=1e-10)
    assert not failed.any()
    assert not cut.any()
    np.testing.assert_array_equal(world.state, reached)


def test_it_ends_at_the_edge_at_a_tilt_and_after_500_steps():
    world = CartPole(4, RNG(0))
    world.state[:] = 0
    world.state[0, 0], world.state[1, 2], world.state[3, 0] = 2.41, -0.22, -2.39
    world.steps[2] = 499
    reached, failed, cut = world.step(np.ones(4, int))
    np.testing.assert_array_equal(failed, [True, True, False, False])
    np.testing.assert_array_equal(cut, [False, False, True, False])
    np.testing.assert_array_equal(world.steps, [0, 0, 0, 1])
    assert np.abs(world.state[:3]).max() <= 0.05
    np.testing.assert_array_equal(world.state[3], reached[3])


def test_always_to_the_right_lasts_about_nine_steps():
    """As in Gymnasium, whose documentation's example falls as fast."""
    world, lasted = CartPole(200, RNG(0)), []
    steps = np.zeros(200, int)
    for _ in range(30):
        steps += 1
        _, failed, _ = world.step(np.ones(200, int))
        lasted += steps[failed].tolist()
        steps[failed] = 0
    assert 8 <= np.mean(lasted) <= 11


class Scripted:
    """Carts that reach what they are told."""

    def __init__(self, reached, failed, cut):
        self.reached, self.failed, self.cut, self.time = reached, failed, cut, 0
        self.state, self.steps = RNG(5).normal(size=reached[0].shape), np.zeros(len(reached[0]))

    def step(self, actions):
        t, self.time = self.time, self.time + 1
        over = self.failed[t] | self.cut[t]
        self.state = np.where(over[:, None], 0.1 * t, self.reached[t])
        return self.reached[t], self.failed[t], self.cut[t]


def test_what_was_cut_off_has_not_failed():
    """Advantages and returns against the recursion with its two kinds of ends written out."""
    time, carts = 9, 3
    setup = Setup(carts=carts, horizon=time, gamma=0.9, lam=0.8)
    rng = RNG(1)
    reached = rng.normal(size=(time, carts, 4))
    failed, cut = np.zeros((2, time, carts), bool)
    failed[2, 0] = failed[8, 0] = failed[3, 1] = cut[5, 0] = cut[8, 2] = True
    policy, value = cartpole.network(4, 6, 2, 1.0, rng), cartpole.Critic(setup, rng)
    states = []
    world = Scripted(reached, failed, cut)
    for _ in range(time):
        states.append(world.state)
        world.step(None)
    batch = cartpole.play(Scripted(reached, failed, cut), policy, value, setup, rng)
    np.testing.assert_allclose(
        batch.states.numpy()[0], np.swapaxes(states, 0, 1).reshape(-1, 4), rtol=1e-6
    )

    reached, states = reached.astype(np.float32), np.array(states, np.float32)
    advantages = np.zeros((carts, time))
    for c in range(carts):
        later = 0.0
        for t in reversed(range(time)):
            over = failed[t, c] or cut[t, c]
            after = 0.0 if failed[t, c] else value(reached[t, c])
            delta = 1 + setup.gamma * after - value(states[t][c])
            later = delta + setup.gamma * setup.lam * (0.0 if over else later)
            advantages[c, t] = later
    returns = advantages + np.stack([value(s) for s in states], 1)
    np.testing.assert_allclose(batch.returns.numpy()[0], returns.reshape(-1), rtol=1e-4)
    flat = advantages.reshape(-1)
    whitened = (flat - flat.mean()) / flat.std(ddof=1)
    np.testing.assert_allclose(batch.advantages.numpy()[0], whitened, rtol=1e-3, atol=1e-4)


def test_minibatches_are_all_steps_once_an_epoch():
    columns = (mt.arange(10).reshape(1, 10) for _ in range(4))
    batch = cartpole.Batch(mt.arange(40).reshape(1, 10, 4), *columns)
    parts = list(batch.parts(Setup(epochs=2, minibatches=3), RNG(0)))
    assert [part.actions.numel() for part in parts] == [4, 3, 3] * 2
    for epoch in (parts[:3], parts[3:]):
        assert sorted(np.concatenate([p.actions.numpy()[0] for p in epoch])) == list(range(10))
    for part in parts:
        assert (part.states.numpy()[0, :, 0] == 4 * part.returns.numpy()[0]).all()


def test_the_score_of_a_policy_that_always_falls():
    policy = cartpole.network(4, 6, 2, 0.0, RNG(0))
    policy[-1].data[...] = [0.0, 1.0]
    assert 8 <= cartpole.score(policy, 50, RNG(1)) <= 11


def test_a_step_of_trpo_stays_within_its_divergence():
    setup = Setup(carts=4, horizon=32, hidden=16, epochs=1)
    rng = RNG(0)
    policy = cartpole.network(4, 16, 2, 1.0, rng)
    learner = cartpole.TRPO(policy, setup, 1, rng)
    batch = cartpole.play(CartPole(4, rng), policy, cartpole.Critic(setup, rng), setup, rng)
    before = [w.numpy().copy() for w in map(mt.Tensor.detach, policy)]
    spent = learner.update(batch)
    assert 0.001 < spent <= setup.max_divergence
    assert any(np.abs(w.detach().numpy() - b).max() > 0 for w, b in zip(policy, before))
