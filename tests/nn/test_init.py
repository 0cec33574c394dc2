"""Initialisers: the distributions that they promise."""

import math

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

import minitorch as mt
from minitorch.errors import ConfigError, ShapeError
from minitorch.nn import Parameter, init


def filled(function, *args, shape=(60, 80), dtype=np.float64, seed=0, **kwargs):
    tensor = mt.zeros(*shape, dtype=dtype)
    assert function(tensor, *args, generator=mt.Generator(seed), **kwargs) is tensor
    assert tensor.version == 1
    return tensor.data


def assert_drawn_from(values, distribution):
    assert stats.kstest(values.ravel(), distribution.cdf).pvalue > 0.01


def uniform(bound):
    return stats.uniform(-bound, 2 * bound)


@pytest.mark.parametrize(
    ("function", "args", "distribution"),
    [
        (init.uniform_, (2.0, 5.0), stats.uniform(2, 3)),
        (init.normal_, (1.0, 0.5), stats.norm(1, 0.5)),
        (init.trunc_normal_, (0.5, 2.0, -1.0, 1.5), stats.truncnorm(-0.75, 0.5, 0.5, 2.0)),
        (init.xavier_uniform_, (2.0,), uniform(2 * math.sqrt(6 / 140))),
        (init.xavier_normal_, (2.0,), stats.norm(0, 2 * math.sqrt(2 / 140))),
        (init.kaiming_uniform_, (), uniform(math.sqrt(6 / 80))),
        (init.kaiming_uniform_, (math.sqrt(5),), uniform(1 / math.sqrt(80))),
        (init.kaiming_normal_, (0.0, "fan_out", "relu"), stats.norm(0, math.sqrt(2 / 60))),
        (init.kaiming_normal_, (0.0, "fan_in", "tanh"), stats.norm(0, 5 / 3 / math.sqrt(80))),
    ],
)
def test_distributions(function, args, distribution):
    assert_drawn_from(filled(function, *args), distribution)


def test_trunc_normal_stays_inside_and_refuses_a_far_tail():
    values = filled(init.trunc_normal_, 0.0, 1.0, -2.0, 2.0)
    assert -2 <= values.min() < -1.9
    assert 1.9 < values.max() <= 2
    for bounds in ((5.0, 6.0), (2.0, 1.0)):
        with pytest.raises(ConfigError, match="1%"):
            init.trunc_normal_(mt.zeros(2), 0.0, 1.0, *bounds)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (4, 2, 5)], ids=str)
def test_orthogonal(shape):
    matrix = filled(init.orthogonal_, 2.0, shape=shape).reshape(shape[0], -1)
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(small, 4 * np.eye(len(small)), atol=1e-12)


def test_orthogonal_prefers_no_sign():
    """Without the correction by R's signs, the diagonal would be negative nearly always."""
    corners = [filled(init.orthogonal_, shape=(3, 3), seed=seed)[0, 0] for seed in range(200)]
    assert 0.35 < np.mean(np.array(corners) > 0) < 0.65


def test_fans_of_convolutions():
    assert init.fans(mt.zeros(8, 3, 5, 7)) == (105, 280)
    with pytest.raises(ShapeError, match="at least 2"):
        init.xavier_uniform_(mt.zeros(3))
    with pytest.raises(ShapeError, match="at least 2"):
        init.orthogonal_(mt.zeros(3))


def test_constants_parameters_and_dtypes():
    param = Parameter(np.empty(3, ml_dtypes.bfloat16))
    assert init.ones_(param) is param
    assert (param.data == 1).all()
    init.constant_(param, 2.5)
    assert (param.data == 2.5).all()
    init.zeros_(param)
    assert not param.data.any()
    assert param.dtype == mt.bfloat16
    assert param.is_leaf
    single = filled(init.normal_, dtype=np.float32)
    np.testing.assert_array_equal(single, filled(init.normal_).astype(np.float32))


def test_generators_are_arguments_and_the_global_one_the_default():
    one, two = mt.zeros(5), mt.zeros(5)
    for tensor in (one, two):
        mt.manual_seed(3)
        init.normal_(tensor)
    np.testing.assert_array_equal(one.data, two.data)
    init.normal_(two)
    assert (one.data != two.data).all()
    np.testing.assert_array_equal(filled(init.normal_, seed=1), filled(init.normal_, seed=1))


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="leaky_relu"):
        init.calculate_gain("swoosh")
    with pytest.raises(ConfigError, match="fan_out"):
        init.kaiming_normal_(mt.zeros(2, 2), mode="fan")
    assert init.calculate_gain("leaky_relu", 0.0) == init.calculate_gain("relu")


def test_kaiming_keeps_the_variance_through_many_relus():
    generator = mt.Generator(0)
    x = generator.draw().standard_normal((64, 256))
    for _ in range(20):
        weight = init.kaiming_normal_(mt.zeros(256, 256), generator=generator).data
        x = np.maximum(x @ weight.T, 0)
    assert 0.3 < (x**2).mean() < 3
