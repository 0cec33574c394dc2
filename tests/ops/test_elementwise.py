"""Conventions of functions of one number where there is no derivative, or no number."""

import minitorch as mt


def test_relu_passes_the_gradient_of_a_nan():
    x = mt.tensor([float("nan"), -1.0, 0.0, 2.0], requires_grad=True)
    x.relu().sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0, 1.0]
