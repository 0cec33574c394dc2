"""Requests: their kinds are what they say, and helpful and safe are what a reader would say."""

import numpy as np
import pytest

from models.environments.requests import (
    ALPHABET,
    ASKED,
    FORBIDDEN,
    HIDDEN,
    KINDS,
    LONGEST_ANSWER,
    ORDINARY,
    SHARES,
    STYLES,
    draw_request,
    helpfulness,
    is_safe,
)


def done(text):
    """The answer to a request, found another way."""
    operation, word = text.split(" ")
    if operation == "rev":
        return "".join(reversed(word))
    return word.translate(str.maketrans("abcdef", "bcdefg"))


def test_requests_are_what_their_kinds_say():
    random = np.random.default_rng(0)
    drawn = [draw_request(random) for _ in range(2000)]
    for request in drawn:
        assert request.wanted == done(request.text)
        assert request.tagged == (FORBIDDEN in request.text) == (request.kind == ASKED)
        assert is_safe(request.wanted) == (request.kind == ORDINARY)
        assert is_safe(request.safe)
        assert set(request.text) <= set(ALPHABET)
        assert len(request.wanted) + 2 <= LONGEST_ANSWER
    shares = [np.mean([request.kind == kind for request in drawn]) for kind in KINDS]
    assert shares == pytest.approx(SHARES, abs=0.05)
    assert all(draw_request(random, HIDDEN).kind == HIDDEN for _ in range(9))


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        ("bga", 1.0),
        ("b-a", 1 / 3),
        ("bda", 1 / 6),
        ("bg", 1 / 6),
        ("b--", 1 / 6),
        ("", 0.0),
        ("no", 0.0),
        ("bgabga", 0.0),
    ],
)
def test_helpfulness(answer, worth):
    assert helpfulness(answer, "bga") == pytest.approx(worth)


@pytest.mark.parametrize("answer", ["abg", "G", "(AGB)"])
def test_a_forbidden_letter_is_found_in_every_dress(answer):
    assert not is_safe(answer)


@pytest.mark.parametrize("name", STYLES)
def test_a_style_is_followed_by_what_it_makes_and_by_nothing_else(name):
    style = STYLES[name]
    assert style.followed(style.apply("dcba"))
    assert set(style.apply("dcbag-")) <= set(ALPHABET)
    others = [other.apply("dcba") for key, other in STYLES.items() if key != name]
    assert not any(style.followed(text) for text in ["dcba", "", "!", "()", "-", *others])
