"""The moving average of parameters."""

import ml_dtypes
import numpy as np
import pytest

from minitorch.errors import CheckpointError, ConfigError
from minitorch.nn import Parameter
from minitorch.optim import EMA


def train(param, ema, steps, seed):
    """Random walks; returns the average by its definition."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        param.data += rng.standard_normal(param.shape)
        ema.update()


def test_average_is_the_recurrence():
    param = Parameter(np.ones(3))
    ema = EMA([param], decay=0.3)
    history, expected = [], np.ones(3)
    rng = np.random.default_rng(0)
    for t in range(1, 8):
        param.data += rng.standard_normal(3)
        ema.update()
        history.append(param.data.copy())
        decay = min(0.3, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * param.data
    np.testing.assert_allclose(ema.averages[0], expected, rtol=1e-12)


def test_applied_swaps_in_and_out_even_when_the_block_fails():
    param = Parameter(np.zeros(3))
    ema = EMA([param], decay=0.9)
    train(param, ema, 5, seed=0)
    array, weights = param.data, param.data.copy()
    version = param.version
    with ema.applied():
        assert param.data is array
        np.testing.assert_array_equal(param.data, ema.averages[0])
        assert param.version > version
    np.testing.assert_array_equal(param.data, weights)
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    np.testing.assert_array_equal(param.data, weights)


def test_bfloat16_is_averaged_in_float32():
    param = Parameter(np.ones(3, ml_dtypes.bfloat16))
    ema = EMA([param], decay=0.999)
    param.data[...] = 2
    for _ in range(20):
        ema.update()
    assert ema.averages[0].dtype == np.float32
    assert 1.9 < ema.averages[0][0] < 2
    with ema.applied():
        assert param.data.dtype == ml_dtypes.bfloat16


def test_restored_average_goes_on_bit_for_bit():
    param, other = Parameter(np.zeros(3)), Parameter(np.zeros(3))
    ema = EMA([param], decay=0.9)
    train(param, ema, 5, seed=0)
    saved = ema.state_dict()
    other.data[...] = param.data
    train(param, ema, 5, seed=1)
    resumed = EMA([other], decay=0.9)
    resumed.load_state_dict(saved)
    train(other, resumed, 5, seed=1)
    np.testing.assert_array_equal(resumed.averages[0], ema.averages[0])


def test_bad_states_and_decays_are_refused():
    ema = EMA([Parameter(np.zeros(3))])
    good = ema.state_dict()
    for state in (
        {"0": np.zeros(3)},
        {**good, "0": np.zeros(4)},
        {**good, "1": np.zeros(3)},
    ):
        with pytest.raises(CheckpointError, match="num_updates"):
            ema.load_state_dict(state)
    with pytest.raises(ConfigError, match="decay"):
        EMA([], decay=1.0)
