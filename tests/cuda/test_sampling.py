"""CUDA draws from logits in the check build: the reference's choices, and the distribution."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.errors import ConfigError
from minitorch.kernels.cuda.extension import checked
from minitorch.nn import functional as F

ALL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 5, "offset": 7}
CUTS = [{}, {"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.9, "min_p": 0.01}]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 5), (6, 40), (2, 1043)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_categorical(hold, dtype, shape, cut):
    logits = (2 * np.random.default_rng(0).standard_normal(shape)).astype(getattr(mt, dtype))
    hold("categorical", logits, **{**ALL, "temperature": 0.8, **cut})


@pytest.mark.parametrize(("device", "count"), [("cpu", 4000), ("simt", 800)])
def test_the_distribution(device, count):
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    logits = mt.Tensor(np.log(probs)).expand(count, 4).to(device)
    generator = mt.Generator(0)

    def frequencies(**options):
        drawn = F.categorical(logits, generator=generator, **options).numpy()
        return np.bincount(drawn, minlength=4) / count

    for options, kept in [
        ({}, probs),
        ({"top_k": 2}, [0.5, 0.3, 0, 0]),
        ({"top_p": 0.81}, [0.5, 0.3, 0.15, 0]),
        ({"min_p": 0.2}, [0.5, 0.3, 0.15, 0]),
        ({"temperature": 0.5}, probs**2),
    ]:
        expected = np.asarray(kept) / np.sum(kept)
        bound = 4 * np.sqrt(expected * (1 - expected) / count)  # four standard deviations
        assert (np.abs(frequencies(**options) - expected) <= bound).all(), options
    np.testing.assert_array_equal(frequencies(temperature=0), [1, 0, 0, 0])


def test_ties_with_the_least():
    logits = to_device(np.zeros((200, 6)), "simt")
    with checked("random", 1):
        drawn = kernels.lookup("categorical", "simt")(logits, **{**ALL, "top_k": 2, "top_p": 0.5})
    assert set(np.asarray(drawn)) == set(range(6))


def test_rows_without_a_choice(hold):
    inf, nan = np.inf, np.nan
    x = np.float32([[0, nan, 1], [-inf, -inf, -inf], [inf, 0, 0], [-inf, 3, -inf]])
    assert list(hold("categorical", x, **{**ALL, "top_k": 2})) == [-1, -1, -1, 1]
    with pytest.raises(ConfigError, match="row 0 has no class to draw"):
        F.categorical(mt.Tensor(x))


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"top_p": 0}, {"min_p": 2}, {"top_k": -1}]
)
def test_values_out_of_range(options):
    with pytest.raises(ConfigError, match=f"expected {next(iter(options))}"):
        F.categorical(mt.zeros(2, 3), **options)
