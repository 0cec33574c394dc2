"""The same formula on both sides: numbers and gradients of minitorch beside those of PyTorch."""

from importlib.util import find_spec

import numpy as np
import pytest

import minitorch as mt

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
    agree(out.detach(), expected.detach(), tolerance)
    for one, two in zip(mine, his, strict=True):
        zeros = np.zeros(two.shape)
        gradients = [zeros if x.grad is None else x.grad.numpy() for x in (one, two)]
        np.testing.assert_allclose(*gradients, rtol=0, atol=tolerance)


def agree(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=tolerance)


def ours(array):
    return mt.tensor(array)


def theirs(array):
    return torch.tensor(array)


def mean_of_means(x):
    return ((x * theirs(MASK)).sum(1) / theirs(MASK).sum(1).clamp(min=1)).mean()


def token_mean(x):
    return (x * theirs(MASK)).sum() / theirs(MASK).sum()


ESTIMATORS = {
    "k1": lambda p, q: p - q,
    "k2": lambda p, q: 0.5 * (p - q) ** 2,
    "k3": lambda p, q: torch.exp(q - p) - (q - p) - 1,
}
