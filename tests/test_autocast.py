"""Mixed precision: what is lowered, what is raised, and gradients that stay float32."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import nn
from minitorch.errors import DtypeError
from minitorch.nn import functional as F


def test_products_are_lowered_and_losses_raised():
    x, w = mt.randn(4, 8), mt.randn(3, 8, requires_grad=True)
    with mt.autocast():
        logits = F.linear(x, w)
        assert logits.dtype == mt.bfloat16
        assert (x @ w.mT).dtype == mt.bfloat16
        assert mt.einsum("ij,kj->ik", x, w).dtype == mt.bfloat16
        assert x.softmax(-1).dtype == logits.softmax(-1).dtype == mt.float32
        loss = F.cross_entropy(logits, mt.tensor([0, 1, 2, 0]))
        assert loss.dtype == mt.float32
        assert (x + x).dtype == mt.float32
        assert (x.double() @ w.double().mT).dtype == mt.float64
    assert F.linear(x, w).dtype == mt.float32
    loss.backward()
    assert w.grad.dtype == mt.float32


def test_gradients_follow_those_of_float32():
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    x, target = mt.randn(64, 16), mt.randint(0, 4, (64,))
    gradients = []
    for lower in (False, True):
        model.zero_grad()
        if lower:
            with mt.autocast("bfloat16"):
                loss = F.cross_entropy(model(x), target)
        else:
            loss = F.cross_entropy(model(x), target)
        loss.backward()
        gradients.append([p.grad.numpy() for p in model.parameters()])
    for full, lowered in zip(*gradients, strict=True):
        assert lowered.dtype == np.float32
        assert 0 < np.linalg.norm(lowered - full) < 0.02 * np.linalg.norm(full)


def test_a_dtype_that_is_not_lower_is_refused():
    with pytest.raises(DtypeError, match="expected bfloat16 or float16; got float64"):
        mt.autocast("float64")


def test_it_is_a_decorator_and_ends_with_the_block():
    @mt.autocast()
    def product(x):
        return x @ x

    assert product(mt.ones(2, 2)).dtype == mt.bfloat16
    with pytest.raises(ZeroDivisionError), mt.autocast():
        raise ZeroDivisionError
    assert (mt.ones(2, 2) @ mt.ones(2, 2)).dtype == mt.float32
