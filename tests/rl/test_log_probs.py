"""Log-probabilities and entropy against sums written out in NumPy."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError, DtypeError, ShapeError


def rand(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


TOKENS = np.array([[1, 4, 0], [3, 3, 2]])


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_tokens_log_probability_is_that_of_its_class(temperature):
    logits = rand(2, 3, 5)
    found = rl.token_log_probs(mt.tensor(logits), mt.tensor(TOKENS), temperature=temperature)
    probs = softmax(logits / temperature)
    expected = [[probs[i, t, TOKENS[i, t]] for t in range(3)] for i in range(2)]
    np.testing.assert_allclose(found.numpy(), np.log(expected), atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("biased", [True, False])
def test_the_fused_head_gives_the_same_values_and_gradients(temperature, biased):
    arrays = [rand(2, 3, 4), rand(5, 4), rand(5)][: 3 if biased else 2]
    cotangent = mt.tensor(rand(2, 3, seed=1))
    results = []
    for fused in (True, False):
        hidden, weight, *bias = (mt.tensor(a, requires_grad=True) for a in arrays)
        if fused:
            out = rl.linear_token_log_probs(
                hidden, weight, mt.tensor(TOKENS), *bias, temperature=temperature
            )
        else:
            logits = hidden @ weight.mT + (bias[0] if bias else 0.0)
            out = rl.token_log_probs(logits, mt.tensor(TOKENS), temperature=temperature)
        out.backward(cotangent)
        results.append([out.detach(), hidden.grad, weight.grad, *(b.grad for b in bias)])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one.numpy(), two.numpy(), atol=1e-12)


def test_entropy_is_the_mean_surprise():
    logits = rand(2, 3, 5)
    probs = softmax(logits / 0.5)
    found = rl.entropy(mt.tensor(logits), temperature=0.5).numpy()
    np.testing.assert_allclose(found, -(probs * np.log(probs)).sum(-1), atol=1e-12)


def test_the_entropy_of_equal_logits_is_the_logarithm_of_their_number():
    logits = mt.zeros(3, 7, dtype=mt.float64)
    np.testing.assert_allclose(rl.entropy(logits).numpy(), np.log(7), atol=1e-12)


def test_a_forbidden_token_adds_nothing_to_entropy_and_its_gradient():
    allowed = mt.tensor(rand(4), requires_grad=True)
    forbidding = mt.tensor(np.append(rand(4), -np.inf), requires_grad=True)
    for logits in (allowed, forbidding):
        rl.entropy(logits).backward()
    assert rl.entropy(allowed).item() == pytest.approx(rl.entropy(forbidding).item())
    expected = np.append(allowed.grad.numpy(), 0.0)
    np.testing.assert_allclose(forbidding.grad.numpy(), expected, atol=1e-12)


def test_derivatives_of_both_orders():
    tokens = mt.tensor(TOKENS)
    logits = mt.tensor(rand(2, 3, 5))
    assert mt.gradcheck(lambda z: rl.token_log_probs(z, tokens, temperature=0.7), logits, order=2)
    assert mt.gradcheck(rl.entropy, logits, order=2)


def test_bad_arguments_are_named():
    logits = mt.tensor(rand(2, 3, 5))
    with pytest.raises(ShapeError, match=r"expected logits \(\.\.\., vocabulary\)"):
        rl.token_log_probs(logits, mt.tensor(TOKENS[:, :2]))
    with pytest.raises(DtypeError, match="integer tokens"):
        rl.token_log_probs(logits, mt.tensor(TOKENS * 1.0))
    for function in (rl.entropy, lambda z, **T: rl.token_log_probs(z, mt.tensor(TOKENS), **T)):
        with pytest.raises(ConfigError, match="temperature above 0; got 0"):
            function(logits, temperature=0)
