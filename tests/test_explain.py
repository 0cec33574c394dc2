"""The chain of local Jacobians: its product is the Jacobian, and its costs are counted."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import GraphError, ShapeError


def _random(*shape):
    return mt.tensor(np.random.default_rng(shape).standard_normal(shape))


W1, W2 = _random(4, 3), _random(2, 4)


def test_a_chain():
    x = _random(3)
    found = mt.explain(lambda x: W2 @ (W1 @ x).tanh(), x)
    tanh = next(step for step in found.steps if step.operation == "tanh")
    expected = np.diag(1 - np.tanh(W1.numpy() @ x.numpy()) ** 2)
    np.testing.assert_allclose(tanh.jacobians[0], expected, atol=1e-15)
    assert tanh.structure == "elementwise"
    np.testing.assert_allclose(found.product, W2.numpy() @ expected @ W1.numpy(), atol=1e-14)
    assert found.difference < 1e-14
    text = str(found)
    assert "4×4 elementwise" in text
    assert "reverse is cheaper" in text
    assert repr(found) == text


def test_branches_are_added_up():
    found = mt.explain(lambda x: (x * x.sin()).sum() + x[0], _random(3))
    assert found.difference < 1e-14
    mul = next(step for step in found.steps if step.operation == "mul")
    assert len(mul.jacobians) == 2
    assert 0 in mul.sources


def test_costs_of_the_two_orders():
    wide = mt.explain(lambda x: (W1 @ x).sum(), _random(3))
    assert wide.reverse_cost * 3 == wide.forward_cost
    tall = mt.explain(lambda x: x.expand(50).exp(), _random(1))
    assert tall.forward_cost < tall.reverse_cost
    assert "forward is cheaper" in str(tall)


def test_constants_on_a_tape_of_their_own_are_left_out():
    weight = _random(3).requires_grad_()
    found = mt.explain(lambda x: x * weight.exp(), _random(3))
    assert [step.operation for step in found.steps] == ["mul"]
    np.testing.assert_allclose(found.product, np.diag(np.exp(weight.detach().numpy())))


def test_the_picture(tmp_path):
    mt.explain(lambda x: x.softmax(-1).log(), _random(4)).plot(tmp_path / "chain.png")
    assert (tmp_path / "chain.png").read_bytes().startswith(b"\x89PNG")


def test_misuse():
    with pytest.raises(GraphError, match="not computed from x"):
        mt.explain(lambda x: mt.ones(2), _random(2))
    with pytest.raises(GraphError, match="does not depend on x"):
        mt.explain(lambda x: _random(2).requires_grad_() * 2, _random(2))
    with pytest.raises(ShapeError, match="too large to look at"):
        mt.explain(lambda x: x.exp(), mt.ones(5000))
