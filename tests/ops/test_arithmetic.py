"""Conventions of arithmetic where there is no derivative, or no number, and its operators."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.errors import DtypeError

NAN = float("nan")


def gradients(f, *values):
    xs = [mt.tensor(x, dtype=mt.float64, requires_grad=True) for x in values]
    y = f(*xs)
    return [g.tolist() for g in mt.autograd.grad(y, xs, mt.ones_like(y))]


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_a_nan_gets_the_gradient_of_the_nan_it_makes(name):
    f = lambda a, b: getattr(mt, name)(a, b)  # noqa: E731
    for a, b in ([NAN, 1.0], [1.0, NAN], [NAN, NAN]):
        left, right = gradients(f, [a], [b])
        assert (left, right) == ([1.0], [1.0])
    x = mt.tensor([NAN, 1.0], requires_grad=True)
    loss = f(x, mt.zeros(2)) * mt.tensor([NAN, 1.0])
    loss.sum().backward()
    assert np.isnan(x.grad.numpy()[0])  # so that a NaN in a loss shows in the gradient


@pytest.mark.parametrize("a", [0.0, -0.0])
@pytest.mark.parametrize("b", [0.0, -0.0])
def test_atan2_has_a_gradient_of_zero_at_the_origin(a, b):
    assert mt.atan2(mt.tensor(a), mt.tensor(b)).item() == float(np.arctan2(np.float32(a), b))
    assert gradients(mt.atan2, [a], [b]) == [[0.0], [0.0]]


def test_atan2_beside_the_origin():
    assert gradients(mt.atan2, [0.0, 2.0], [2.0, 0.0]) == [[0.5, 0.0], [0.0, -0.5]]


def test_the_slope_of_a_remainder_in_b_counts_whole_multiples():
    slopes = gradients(mt.remainder, [7.0, -7.0, -1e-300, -1.0], [2.0, 2.0, 1e300, np.inf])
    assert slopes == [[1.0] * 4, [-3.0, 4.0, 1.0, 1.0]]


def test_operators_with_a_number_on_the_left():
    x = mt.tensor([2, 3])
    assert (7 % x).tolist() == [1, 1]
    assert (7 // x).tolist() == [3, 2]
    assert (7 % mt.tensor([2.5], requires_grad=True)).requires_grad


@pytest.mark.parametrize("name", ["sub", "pow", "remainder", "floor_divide"])
def test_arithmetic_of_truth_values_is_refused(name):
    x = mt.tensor([True])
    operation = {"floor_divide": lambda a, b: a // b}.get(name, getattr(mt, name, None))
    with pytest.raises(DtypeError, match=rf"{name}.*bool"):
        operation(x, x)
