"""Losses of balance, each token by itself: the compiled kernels against the reference."""

import numpy as np
import pytest

from minitorch import kernels

TOLERANCE = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 2e-14}


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
