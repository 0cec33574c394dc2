"""Transforms: against finite differences, against each other, nested, and on trees."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import ConfigError, DtypeError, ShapeError


def _random(*shape, seed=0):
    return mt.tensor(np.random.default_rng([seed, *shape]).standard_normal(shape))


W1, W2, B = _random(4, 3), _random(2, 4), _random(4)


def network(x):
    return W2 @ (W1 @ x + B).gelu()


def scalar(x):
    return network(x).log_softmax(-1)[0]


def _numeric_jacobian(f, x, h=1e-6):
    columns = []
    for unit in np.eye(x.numel()).reshape(-1, *x.shape):
        above, below = (f(mt.tensor(x.numpy() + s * h * unit)).numpy() for s in (1, -1))
        columns.append((above - below) / (2 * h))
    return np.stack(columns, -1).reshape(*columns[0].shape, *x.shape)


def test_jacobian_by_rows_by_columns_and_by_differences():
    x = _random(3)
    expected = _numeric_jacobian(network, x)
    for mode in ("forward", "reverse", "auto"):
        np.testing.assert_allclose(mt.jacobian(network, x, mode=mode).numpy(), expected, atol=1e-8)


def test_hessian_and_its_products():
    x, v = _random(3), _random(3, seed=1)
    gradient = mt.grad(scalar)
    hessian = mt.hessian(scalar, x)
    np.testing.assert_allclose(hessian.numpy(), _numeric_jacobian(gradient, x), atol=1e-8)
    np.testing.assert_allclose(hessian.numpy(), hessian.mT.numpy(), atol=1e-14)
    for mode in ("forward", "reverse"):
        np.testing.assert_allclose(
            mt.hvp(scalar, x, v, mode=mode).numpy(), (hessian @ v).numpy(), atol=1e-13
        )


def test_the_two_products_are_each_others_transpose():
    x, u, v = _random(3), _random(3, seed=1), _random(2, seed=2)
    value, tangent = mt.jvp(network, (x,), (u,))
    same, pullback = mt.vjp(network, x)
    np.testing.assert_array_equal(value.numpy(), same.numpy())
    assert float(v @ tangent) == pytest.approx(float(pullback(v)[0] @ u), rel=1e-13)


def test_nested_derivatives_keep_their_variables_apart():
    def inner(x):
        return mt.grad(lambda y: x + y)(mt.tensor(1.0))

    assert mt.grad(lambda x: x * inner(x))(mt.tensor(2.0)).item() == 1.0
    assert mt.grad(lambda x: x * mt.grad(lambda y: x * y)(x))(mt.tensor(3.0)).item() == 6.0

    def forward_inner(x):
        return mt.jvp(lambda y: x * y, (mt.tensor(1.0),), (mt.tensor(1.0),))[1]

    _, tangent = mt.jvp(lambda x: x * forward_inner(x), (mt.tensor(3.0),), (mt.tensor(1.0),))
    assert tangent.item() == 6.0


def test_forward_over_forward_and_third_derivatives():
    def second(x):
        return mt.jvp(
            lambda y: mt.jvp(lambda z: z**4, (y,), (mt.tensor(1.0),))[1], (x,), (mt.tensor(1.0),)
        )[1]

    assert second(mt.tensor(2.0)).item() == 48.0
    third = mt.grad(mt.grad(mt.grad(lambda x: x**4)))
    assert third(mt.tensor(2.0)).item() == 48.0


def test_trees_of_arguments_and_several_of_them():
    tree = {"a": mt.tensor([1.0, 2.0]), "b": [mt.tensor([3.0, 4.0])]}
    gradient = mt.grad(lambda p: (p["a"] * p["b"][0]).sum())(tree)
    assert gradient["a"].tolist() == [3, 4]
    assert gradient["b"][0].tolist() == [1, 2]

    def f(x, y):
        return {"sum": x + y, "product": x * y}

    x, y = _random(2), _random(2, seed=1)
    blocks = mt.jacobian(f, x, y)
    np.testing.assert_allclose(blocks["sum"][1].numpy(), np.eye(2))
    np.testing.assert_allclose(blocks["product"][0].numpy(), np.diag(y.numpy()))
    value, (dx, dy) = mt.value_and_grad(lambda x, y: (x * y).sum(), argnums=(0, 1))(x, y)
    assert value.item() == pytest.approx(float(x @ y))
    np.testing.assert_allclose(dx.numpy(), y.numpy())
    np.testing.assert_allclose(dy.numpy(), x.numpy())


def test_an_output_that_does_not_depend_gives_explicit_zeros():
    constant = mt.tensor([5.0])
    value, tangent = mt.jvp(lambda x: constant, (mt.ones(2),), (mt.ones(2),))
    assert (value.tolist(), tangent.tolist()) == ([5.0], [0.0])
    assert mt.grad(lambda x, y: y.sum())(mt.ones(2), mt.ones(2)).tolist() == [0, 0]
    assert mt.jacobian(lambda x: constant, mt.ones(2)).tolist() == [[0, 0]]


def test_results_are_plain_unless_an_outer_tape_goes_on():
    x = mt.tensor([1.0, 2.0])
    assert not mt.grad(lambda x: (x * x).sum())(x).requires_grad
    weight = mt.tensor([3.0, 4.0], requires_grad=True)
    gradient = mt.grad(lambda x: (weight * x * x).sum())(x)
    gradient.sum().backward()
    assert weight.grad.tolist() == [2, 4]
    with mt.no_grad():
        assert mt.grad(lambda x: (x * x).sum())(x).tolist() == [2, 4]


def test_products_are_differentiable_in_their_vectors():
    """v J and J u are linear in v and u: their derivatives are J, and never silently zero."""
    x, v = _random(3), _random(2)
    expected = mt.jacobian(network, x).numpy()

    def pulled(v):
        return mt.vjp(network, x)[1](v)[0]

    def pushed(u):
        return mt.jvp(network, (x,), (u,))[1]

    for mode in ("forward", "reverse"):
        rows = mt.jacobian(pulled, v, mode=mode)
        np.testing.assert_allclose(rows.detach().numpy(), expected.T, atol=1e-14)
        columns = mt.jacobian(pushed, _random(3, seed=1), mode=mode)
        np.testing.assert_allclose(columns.detach().numpy(), expected, atol=1e-14)
        hessian = mt.jacobian(lambda u, mode=mode: mt.hvp(scalar, x, u, mode=mode), _random(3))
        full = mt.hessian(scalar, x).numpy()
        np.testing.assert_allclose(hessian.detach().numpy(), full, atol=1e-13)
    with mt.no_grad():
        assert not pulled(_random(2).requires_grad_()).requires_grad


def test_a_closed_over_leaf_that_is_the_value_stays_on_its_tape():
    weight = mt.tensor(2.0, requires_grad=True)
    value, gradient = mt.value_and_grad(lambda x: weight)(mt.tensor(1.0))
    assert value is weight
    assert gradient.item() == 0.0
    assert mt.grad(lambda w: mt.vjp(lambda x: w, mt.tensor(1.0))[0] * w)(weight).item() == 4.0


def test_misuse_is_named():
    x = mt.ones(2)
    with pytest.raises(ShapeError, match="tensor of one element"):
        mt.grad(lambda x: x)(x)
    with pytest.raises(DtypeError, match="int64"):
        mt.grad(lambda x: x.sum())(mt.tensor([1, 2]))
    with pytest.raises(ConfigError, match="sideways"):
        mt.jacobian(lambda x: x, x, mode="sideways")
    with pytest.raises(ConfigError, match="argnums"):
        mt.grad(lambda x: x.sum(), argnums=3)(x)
    with pytest.raises(ShapeError, match="tangents of shapes"):
        mt.jvp(lambda x: x, (x,), (mt.ones(3),))
