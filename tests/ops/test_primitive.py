"""Primitives made by users, by the public names, one of each structure."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import GraphError
from minitorch.ops import Bilinear, Elementwise, Fused, General, Linear, Nondifferentiable
from minitorch.ops import registry as primitives


@pytest.fixture(autouse=True)
def registry():
    before = dict(primitives)
    yield primitives
    primitives.clear()
    primitives.update(before)


def random(*shape, seed=0):
    return mt.tensor(np.random.default_rng(seed).standard_normal(shape))


def make_elementwise():
    return Elementwise("test_cbrt", np.cbrt, lambda out: 1 / (3 * out * out))


def make_linear():
    reverse = Linear(
        "test_reverse", lambda x, *, dim: np.flip(x, dim), lambda grad, dim: reverse(grad, dim=dim)
    )
    return reverse


def make_bilinear():
    return Bilinear(
        "test_outer",
        lambda a, b: a[:, None] * b,
        lambda grad, b: grad @ b,
        lambda grad, a: a @ grad,
    )


def make_general():
    return General(
        "test_normalise",
        lambda x: x / np.linalg.norm(x),
        lambda grad, x, out: (grad - out * (grad * out).sum()) / (x * x).sum().sqrt(),
    )


def make_fused():
    return Fused(
        "test_swish",
        lambda x: x / (1 + np.exp(-x)),
        reference=lambda x: x * x.sigmoid(),
        backward=lambda grad, x: (
            grad * (1 / (1 + np.exp(-x))) * (1 + x * (1 - 1 / (1 + np.exp(-x)))),
        ),
    )


@pytest.mark.parametrize(
    ("make", "inputs", "meta"),
    [
        (make_elementwise, [random(3, 2)], {}),
        (make_linear, [random(3, 2)], {"dim": 1}),
        (make_bilinear, [random(3), random(4, seed=1)], {}),
        (make_general, [random(5)], {}),
        (make_fused, [random(3, 2)], {}),
    ],
)
def test_every_structure_has_both_sweeps_two_orders_and_vmap(make, inputs, meta):
    primitive = make()
    assert primitives[primitive.name] is primitive
    assert primitive.module == __name__
    f = lambda *xs: primitive(*xs, **meta)  # noqa: E731
    assert mt.gradcheck(f, inputs, order=2)
    batches = [mt.stack([x, 2 * x]) for x in inputs]
    together = mt.vmap(f)(*batches)
    for i in range(2):
        alone = f(*[batch[i] for batch in batches])
        np.testing.assert_allclose(together[i].numpy(), alone.numpy(), rtol=1e-12)


def test_a_class_of_ones_own_is_known_by_its_module():
    class Squared(Elementwise):
        def __init__(self, name):
            super().__init__(name, np.square, lambda x: 2 * x, inputs=("x",))

    assert Squared("test_squared").module == __name__


def test_no_derivative_is_said():
    steps = Nondifferentiable("test_steps", np.floor, inputs=("x",), why="it is constant")
    assert not steps(mt.ones(2, requires_grad=True)).requires_grad


def test_a_name_that_is_taken_is_an_error():
    with pytest.raises(GraphError, match=r"'exp' is taken by minitorch\.ops"):
        Elementwise("exp", np.exp, lambda out: out)


def test_what_a_rule_cannot_have_is_an_error_at_once():
    with pytest.raises(GraphError, match=r"asks for y, which is not to be had.*grad, out"):
        Elementwise("test_wrong", lambda x: x, lambda y: y)
    assert "test_wrong" not in primitives
