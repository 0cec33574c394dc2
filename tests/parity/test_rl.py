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
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), atol=tolerance)
    for one, two in zip(mine, his, strict=True):
        zeros = np.zeros(two.shape)
        gradients = [zeros if x.grad is None else x.grad.numpy() for x in (one, two)]
        np.testing.assert_allclose(*gradients, atol=tolerance)


def agree(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=tolerance)


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


def test_whitening():
    values = theirs(rand(B, T))
    kept = values[theirs(MASK)]
    expected = torch.zeros(B, T, dtype=torch.float64)
    expected[theirs(MASK)] = (kept - kept.mean()) / (kept.var() + 1e-8).sqrt()
    agree(rl.whiten(ours(values.numpy()), ours(MASK)), expected)


def test_advantages_of_groups():
    rewards = rand(3, 4)
    his = theirs(rewards)
    centred = his - his.mean(1, keepdim=True)
    agree(rl.grpo_advantages(ours(rewards)), centred / (his.std(1, keepdim=True) + 1e-4))
    agree(rl.dr_grpo_advantages(ours(rewards)), centred)
    agree(rl.rloo_advantages(ours(rewards)), his - (his.sum(1, keepdim=True) - his) / 3)
