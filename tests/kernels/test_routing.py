"""Losses of balance, each token by itself: the compiled kernels against the reference."""

import numpy as np
import pytest

from minitorch import kernels

TOLERANCE = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 2e-14}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("sequences", "tokens", "experts", "k"), [(1, 1, 1, 1), (3, 5, 7, 2), (2, 300, 33, 4)]
)
def test_expert_balance(hold, dtype, score_function, sequences, tokens, experts, k):
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((sequences * tokens, experts))).astype(dtype)
    indices = np.argsort(rng.random(logits.shape), 1)[:, :k]
    options = {"score_function": score_function, "sequences": sequences, "factor": 0.3}
    found, cost = hold("expert_balance", logits, indices, **options)
    assert 0 < found <= 0.3 * experts / k + 1e-6
    assert cost.shape == (sequences, 1, experts)
    even = np.zeros_like(logits)  # then the loss is the factor, wherever tokens go
    kernel = kernels.implementations("expert_balance")["cpu"]
    np.testing.assert_allclose(kernel(even, indices, **options)[0], 0.3, rtol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("logits", "cost"),
    [
        ((1, 1), (1, 1)),
        ((5, 7), (7,)),
        ((5, 7), (5, 1)),
        ((3, 300, 16), (3, 1, 16)),
        ((3, 40, 33), (3, 40, 33)),
    ],
)
def test_expected_cost(hold, dtype, score_function, logits, cost):
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal(logits)).astype(dtype)
    costs = rng.uniform(0, 1, cost).astype(dtype) / (x.size // logits[-1])
    found = hold("expected_cost", x, costs, score_function=score_function)
    assert 0 <= found <= costs.max() * (x.size // logits[-1]) + 1e-6
    options = {"score_function": score_function, "needs": (True, True)}
    grad = np.array(0.7, dtype)
    whole, _ = hold("expected_cost_backward", grad, x, costs, **options)
    kernel = kernels.implementations("expected_cost_backward")["cpu"]
    dlogits, dcost = kernel(grad, x, costs, **options | {"needs": (True, False)})
    assert dcost is None
    np.testing.assert_allclose(dlogits, whole, atol=TOLERANCE[dtype] * np.abs(whole).max(initial=1))
    if score_function == "softmax":  # a constant that is added to all logits changes nothing
        np.testing.assert_allclose(dlogits.sum(-1), 0, atol=1e-6)
