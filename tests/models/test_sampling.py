"""Sampling against distributions worked out by hand, and draws against the distribution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch.errors import ConfigError, ShapeError
from minitorch.random import Generator
from models.sampling import Sampler, draw

P = np.array([0.5, 0.25, 0.15, 0.1])
LOGITS = np.log(P)[None]
ROOTS = 1 + 0.5**0.5 + 0.3**0.5


def probabilities(logits=LOGITS, prompts=((),), generated=((),), **settings):
    return Sampler(**settings).probabilities(logits, prompts, generated)[0]


def test_the_default_is_the_models_own_distribution():
    np.testing.assert_allclose(probabilities(LOGITS + 7.0), P, rtol=1e-14)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 0.5}, P**2 / (P**2).sum()),
        ({"temperature": 2.0}, P**0.5 / (P**0.5).sum()),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 1e-9}, [1, 0, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 4}, P),
        ({"top_k": 99}, P),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),  # 0.5 falls short of 0.6: the token that crosses
        ({"top_p": 0.80}, [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        ({"top_p": 0.95}, P),
        ({"top_p": 1e-300}, [1, 0, 0, 0]),
        ({"min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),
        ({"min_p": 0.25}, [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"logit_bias": {1: np.log(2.0)}}, [0.4, 0.4, 0.12, 0.08]),
        ({"logit_bias": {0: -np.inf}}, [0, 0.5, 0.3, 0.2]),
        # Top-p sees what top-k left: of (2/3, 1/3) the first alone reaches 0.6.
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
        # Temperature comes before top-p: at 0.5 the first token has 0.72 and is enough.
        ({"temperature": 0.5, "top_p": 0.7}, [1, 0, 0, 0]),
        # And before min-p: at 2 the ratios are the square roots, 1, 0.71, 0.55, 0.45.
        ({"temperature": 2.0, "min_p": 0.5}, np.array([1, 0.5**0.5, 0.3**0.5, 0]) / ROOTS),
    ],
)
def test_exact_distributions(settings, expected):
    np.testing.assert_allclose(probabilities(**settings), expected, atol=1e-9)


def test_top_k_keeps_ties_and_greedy_takes_the_first():
    tied = np.array([[1.0, 2.0, 2.0, 2.0]])
    np.testing.assert_allclose(probabilities(tied, top_k=2), [0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(probabilities(tied, temperature=0), [0, 1, 0, 0])


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = np.array([[2.0, -2.0, 1.0, 0.5]])
    expected = np.exp([1.0, -4.0, 1.0, 0.5])
    got = probabilities(logits, [[0]], [[1, 1]], repetition_penalty=2.0)
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-12)


def test_presence_and_frequency_count_the_generated_tokens_alone():
    expected = np.exp(np.array([0, -(0.5 + 2 * 0.25), 0, -(0.5 + 0.25)])) * P
    got = probabilities(
        prompts=[[0, 0, 2]], generated=[[1, 3, 1]], presence_penalty=0.5, frequency_penalty=0.25
    )
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-12)


def test_rows_are_independent():
    logits = np.stack([LOGITS[0], LOGITS[0, ::-1]])
    got = Sampler(top_p=0.6, repetition_penalty=1.5).probabilities(logits, [[0], [3]], [[], []])
    np.testing.assert_array_equal(got[0], got[1, ::-1])


@given(
    logits=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8),
    temperature=st.floats(0, 1e3),
    top_k=st.integers(0, 9),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
)
def test_no_setting_empties_a_row(logits, temperature, top_k, top_p, min_p):
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    got = sampler.probabilities(np.array([logits]))[0]
    assert np.isfinite(got).all()
    assert got.sum() == pytest.approx(1)
    assert got[np.argmax(logits)] == got.max() > 0


@pytest.mark.parametrize(
    "logits", [[[-np.inf, -np.inf]], [[0.0, np.nan]], [[np.inf, 0.0]], [[0.0], [-np.inf]]]
)
def test_a_row_without_a_token_is_an_error(logits):
    with pytest.raises(ConfigError, match="has no token to draw"):
        Sampler().probabilities(np.array(logits))


@pytest.mark.parametrize("shape", [(4,), (1, 0), (1, 2, 3)])
def test_other_shapes_are_an_error(shape):
    with pytest.raises(ShapeError, match=r"expected logits \(rows, vocabulary\)"):
        Sampler().probabilities(np.zeros(shape))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": np.nan},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"presence_penalty": np.inf},
    ],
)
def test_settings_out_of_range_are_an_error(settings):
    name = next(iter(settings))
    with pytest.raises(ConfigError, match=f"{name}: expected"):
        Sampler(**settings)


def test_draws_follow_the_distribution():
    count = 40_000
    probs = np.tile([0.0, 0.5, 0.0, 0.3, 0.2, 0.0], (count, 1))
    drawn = np.bincount(draw(probs, Generator(5)), minlength=6) / count
    # Five standard deviations of a share of 1/2 in so many draws.
    np.testing.assert_allclose(drawn, probs[0], atol=5 * 0.5 / count**0.5)
    assert drawn[[0, 2, 5]].sum() == 0


def test_the_same_seed_draws_the_same_tokens_with_their_log_probabilities():
    logits = np.tile(LOGITS, (50, 1))
    ids, log_probs = Sampler()(logits, generator=Generator(3))
    again, _ = Sampler()(logits, generator=Generator(3))
    other, _ = Sampler()(logits, generator=Generator(4))
    np.testing.assert_array_equal(ids, again)
    assert (ids != other).any()
    np.testing.assert_allclose(log_probs, np.log(P)[ids])
