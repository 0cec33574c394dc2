"""The counter-based streams: replay, independence, distributions, state."""

import json

import numpy as np
import pytest
from scipy import stats

import minitorch as mt
from minitorch.errors import ConfigError


def test_replay_from_a_state_that_json_holds():
    generator = mt.Generator(3)
    mt.randn(5, generator=generator)
    state = json.loads(json.dumps(generator.get_state()))
    first = mt.randn(4, generator=generator).tolist()
    other = mt.Generator()
    other.set_state(state)
    assert mt.randn(4, generator=other).tolist() == first


def test_a_draw_does_not_depend_on_the_size_of_the_one_before():
    draws = []
    for size in (1, 1000):
        generator = mt.Generator(3)
        mt.rand(size, generator=generator)
        draws.append(mt.rand(4, generator=generator).tolist())
    assert draws[0] == draws[1]


def test_seeds_and_offsets_give_different_streams():
    draws = [mt.rand(8, generator=mt.Generator(seed)).tolist() for seed in (0, 1, 1 << 64)]
    assert draws[0] != draws[1] != draws[2] != draws[0]


def test_the_global_generator():
    mt.manual_seed(5)
    first = mt.rand(3).tolist()
    mt.manual_seed(5)
    assert mt.rand(3).tolist() == first


@pytest.mark.parametrize(
    ("draw", "distribution"),
    [(mt.randn, stats.norm), (mt.rand, stats.uniform)],
    ids=["normal", "uniform"],
)
def test_distributions(draw, distribution):
    sample = draw(20_000, generator=mt.Generator(1)).numpy()
    assert stats.kstest(sample, distribution.cdf).pvalue > 1e-3


def test_randint_randperm_multinomial():
    generator = mt.Generator(1)
    counts = np.bincount(mt.randint(0, 5, (10_000,), generator=generator).numpy(), minlength=5)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert sorted(mt.randperm(50, generator=generator).tolist()) == list(range(50))
    weights = mt.tensor([0.0, 1.0, 3.0])
    drawn = mt.multinomial(weights, 10_000, replacement=True, generator=generator).numpy()
    observed = np.bincount(drawn, minlength=3)
    assert observed[0] == 0
    assert stats.chisquare(observed[1:], [2500, 7500]).pvalue > 1e-3


def test_bad_seeds_and_states():
    with pytest.raises(ConfigError, match="seed"):
        mt.Generator(-1)
    with pytest.raises(ConfigError, match="set_state"):
        mt.Generator().set_state({"seed": 1})
