"""Log-probabilities, divergences and advantages against PyTorch's formulas, and against trl's."""

import numpy as np
import pytest

from minitorch import rl
from tests.parity.beside_torch import (
    ESTIMATORS,
    MASK,
    TOKENS,
    B,
    T,
    V,
    agree,
    compare,
    ours,
    rand,
    theirs,
    with_trl,
)

torch = pytest.importorskip("torch", reason="peer not installed: pip install -e .[peers]")


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
