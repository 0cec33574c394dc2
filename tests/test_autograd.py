"""The sweeps: order, accumulation, cotangents, hooks, second sweeps."""

import tracemalloc
import weakref

import numpy as np
import pytest

import minitorch as mt
from minitorch import autograd
from minitorch.errors import GraphError, ShapeError
from minitorch.nn import functional as F


def leaf(*values):
    return mt.tensor(list(values), dtype=mt.float64, requires_grad=True)


def test_a_chain_of_100_000_operations_works_and_is_freed():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    last = weakref.ref(y._node)
    y.backward(mt.ones(1, dtype=mt.float64), retain_graph=True)
    assert x.grad.tolist() == [1.0]
    del y
    assert last() is None


def test_gradients_add_up():
    x = leaf(3.0)
    (x * x + x).sum().backward()
    assert x.grad.tolist() == [7.0]
    x.grad = None
    left, right = x * 2, x * 5
    (left * right).sum().backward()  # a diamond
    assert x.grad.tolist() == [60.0]
    (x * 1).sum().backward()  # and into what is there
    assert x.grad.tolist() == [61.0]


def test_leaves_do_not_share_gradients():
    a, b = leaf(1.0), leaf(2.0)
    (a + b).sum().backward()
    a.grad.data[...] = 7
    assert b.grad.tolist() == [1.0]
    v = mt.ones(1, dtype=mt.float64)
    a.grad = None
    (a + 0).backward(v)
    a.grad.data[...] = 7
    assert v.tolist() == [1.0]


def test_a_leaf_that_is_used_three_times_gets_one_array():
    """Where nobody else holds the gradient of a leaf, what is added to it is added in place."""
    table = mt.tensor(np.random.default_rng(0).standard_normal((500, 400)), requires_grad=True)
    index = mt.tensor([3, 1, 3])

    def loss_of(weight):
        x = F.embedding(index, weight) + F.embedding(mt.tensor([0, 0, 499]), weight)
        return (F.linear(x.tanh(), weight) ** 2).sum() + (F.linear(x, weight) ** 3).sum()

    loss = loss_of(table)
    (expected,) = mt.autograd.grad(loss, table, create_graph=True)
    for _ in range(2):
        table.grad = None
        tracemalloc.start()
        loss.backward(retain_graph=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2.2 * table.data.nbytes
        np.testing.assert_allclose(table.grad.numpy(), expected.detach().numpy(), rtol=1e-12)


def test_second_backward_and_retain_graph():
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [8.0]
    with pytest.raises(GraphError, match="retain_graph=True"):
        y.backward()


def test_create_graph():
    x = leaf(2.0)
    (first,) = autograd.grad((x**3).sum(), x, create_graph=True)
    (second,) = autograd.grad(first.sum(), x, create_graph=True)
    (third,) = autograd.grad(second.sum(), x)
    assert (first.item(), second.item(), third.item()) == pytest.approx((12, 12, 6))
    assert x.grad is None


def test_grad_of_what_is_unused():
    x, y = leaf(1.0), leaf(1.0)
    with pytest.raises(GraphError, match="allow_unused"):
        autograd.grad((x * 2).sum(), y)
    assert autograd.grad((x * 2).sum(), (x, y), allow_unused=True)[1] is None


def test_cotangents():
    x = leaf(1.0, 2.0)
    with pytest.raises(ShapeError, match="cotangent"):
        (x * 2).backward()
    with pytest.raises(ShapeError, match="cotangent"):
        (x * 2).backward(mt.ones(3))
    with pytest.raises(GraphError):
        mt.ones(1).backward()


def test_hooks():
    x = leaf(1.0)
    y = x * 3
    seen = []
    handle = y.register_hook(lambda g: seen.append(g.item()))
    x.register_hook(lambda g: g * 10)
    (y + y).sum().backward(retain_graph=True)
    assert seen == [2.0]  # once, when it is complete
    assert x.grad.tolist() == [60.0]
    handle.remove()
    y.sum().backward()
    assert len(seen) == 1
    z = x * 1
    z.register_hook(lambda g: mt.ones(3))
    with pytest.raises(ShapeError, match="hook"):
        z.sum().backward()


def test_retain_grad():
    x = leaf(2.0)
    y = x * x
    y.retain_grad()
    (y * 5).sum().backward()
    assert y.grad.tolist() == [5.0]


def test_anomaly_mode_names_the_line_backward():
    x = leaf(0.0)
    with mt.detect_anomaly():
        y = (x.sqrt() * 0.0).sum()
        with pytest.raises(GraphError, match="derivative of sqrt") as error:
            y.backward()
    assert "x.sqrt() * 0.0" in str(error.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_gradients_have_the_dtype_of_their_leaf(dtype):
    x = mt.ones(3, dtype=dtype).requires_grad_()
    ((x * 2.5 + 1).softmax(0).mean() ** 2).backward()
    assert x.grad.dtype == x.dtype
    x.grad = None
    (x * mt.ones(3, dtype=mt.float64)).sum().backward()
    assert x.grad.dtype == x.dtype


def test_parts_of_a_value_add_to_one_gradient():
    """Overlapping, repeated, and and beside a use of the whole."""
    data = np.arange(24.0).reshape(4, 6)
    x = mt.tensor(data, requires_grad=True)
    h = x * 2.0
    h.retain_grad()
    left, right = h[:, :4], h[:, 2:]
    rows = h[np.array([0, 0, 3])]
    left.retain_grad()
    (3.0 * left).sum().backward(retain_graph=True)
    x.grad, h.grad, left.grad = None, None, None
    ((left * right).sum() + (rows * 5.0).sum() + (h * 7.0).sum()).backward()

    wanted = np.full((4, 6), 7.0)
    wanted[:, :4] += 2 * data[:, 2:]
    wanted[:, 2:] += 2 * data[:, :4]
    np.add.at(wanted, [0, 0, 3], 5.0)
    np.testing.assert_allclose(h.grad.numpy(), wanted)
    np.testing.assert_allclose(x.grad.numpy(), 2 * wanted)
    np.testing.assert_allclose(left.grad.numpy(), 2 * data[:, 2:])


def test_a_product_takes_what_came_to_its_input_before():
    """Two products of one tensor, and a sum around them: its gradient is that of all three."""
    rng = np.random.default_rng(0)
    x0, one, two, v = (rng.standard_normal(s) for s in ((3, 4), (4, 4), (4, 4), (3, 4)))
    x = mt.Tensor(x0, requires_grad=True)
    middle = 2 * x
    out = middle + F.linear(middle, mt.Tensor(one)) + F.linear(middle, mt.Tensor(two))
    out.backward(mt.Tensor(v))
    np.testing.assert_allclose(x.grad.numpy(), 2 * (v + v @ one + v @ two), rtol=1e-12)
    x.grad = None
    scaled = F.linear(middle := 2 * x, mt.Tensor(one), scaled=True)  # operands rounded to 8 bits
    (middle + scaled).backward(mt.Tensor(v))
    np.testing.assert_allclose(x.grad.numpy(), 2 * (v + v @ one), atol=0.5)
