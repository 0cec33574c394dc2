"""Clipping by the joint norm and by value."""

import math

import ml_dtypes
import numpy as np
import pytest

from minitorch.errors import ConfigError, GraphError
from minitorch.nn import Parameter
from minitorch.optim import clip_grad_norm_, clip_grad_value_
from minitorch.tensor import Tensor


def with_grads(*grads):
    params = []
    for grad in grads:
        params.append(Parameter(np.zeros_like(grad)))
        params[-1].grad = Tensor(grad.copy())
    return params


GRADS = [np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([-4.0, 0.0, 12.0])]


@pytest.mark.parametrize(
    ("norm_type", "norm"), [(2.0, 13.0), (1.0, 19.0), (math.inf, 12.0), (3.0, 1819 ** (1 / 3))]
)
def test_norm_is_that_of_all_gradients_together(norm_type, norm):
    params = with_grads(*GRADS)
    params.insert(1, Parameter(np.ones(2)))
    total = clip_grad_norm_(params, 1.0, norm_type)
    assert total.item() == pytest.approx(norm, rel=1e-12)
    for param, grad in zip([params[0], params[2]], GRADS, strict=True):
        np.testing.assert_allclose(param.grad.data, grad / (norm + 1e-6), rtol=1e-12)
    assert params[1].grad is None


def test_small_gradients_are_left_alone():
    params = with_grads(*GRADS)
    assert clip_grad_norm_(iter(params), 14.0).item() == pytest.approx(13.0)
    for param, grad in zip(params, GRADS, strict=True):
        np.testing.assert_array_equal(param.grad.data, grad)
    assert clip_grad_norm_([], 1.0).item() == 0.0


def test_a_gradient_held_twice_is_scaled_once():
    one, two = with_grads(GRADS[1], GRADS[1])
    two.grad = one.grad
    clip_grad_norm_([one, two], 1.0)
    assert np.linalg.norm(one.grad.data) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_dtypes_are_kept(dtype):
    (param,) = with_grads(GRADS[1].astype(dtype))
    total = clip_grad_norm_(param, 1.0)
    assert (param.grad.dtype, total.dtype) == (dtype, np.float32)
    np.testing.assert_allclose(
        param.grad.data.astype(np.float64), GRADS[1] / np.linalg.norm(GRADS[1]), rtol=1e-2
    )


def test_not_finite():
    params = with_grads(np.array([1.0, np.inf]))
    with pytest.raises(GraphError, match="inf"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(params[0].grad.data, [1.0, np.inf])
    nan = with_grads(np.array([1.0, np.nan]), np.ones(2))
    assert math.isnan(clip_grad_norm_(nan, 1.0).item())
    assert np.isnan(nan[1].grad.data).all()


def test_by_value():
    params = with_grads(*GRADS)
    clip_grad_value_(params, 3.5)
    np.testing.assert_array_equal(params[0].grad.data, [[3.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(params[1].grad.data, [-3.5, 0.0, 3.5])


def test_bad_limits():
    with pytest.raises(ConfigError, match="max_norm"):
        clip_grad_norm_([], -1.0)
    with pytest.raises(ConfigError, match="norm_type"):
        clip_grad_norm_([], 1.0, norm_type=0)
    with pytest.raises(ConfigError, match="clip_value"):
        clip_grad_value_([], float("nan"))
