"""Rewards, and those who would rather have the reward than the answer."""

import numpy as np
import pytest

from minitorch.errors import ConfigError, DataError
from models.environments.answers import after_equals, tagged_answer, thinking, whole
from models.environments.rewards import (
    brevity,
    countdown_match,
    ends,
    exact_match,
    language_consistency,
    layout,
    numeric_match,
    weighted,
)
from models.environments.sandbox import passes_tests


def score(reward, completion, **columns):
    (value,) = reward(["?"], [completion], **{name: [given] for name, given in columns.items()})
    return value


def laid_out(answer, thought="so"):
    return f"<think>{thought}</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("42", 1.0), (" 42\n", 1.0), ("", 0.0), ("  ", 0.0), ("42 43", 0.0), ("4242", 0.0)],
)
def test_exact(completion, expected):
    assert score(exact_match(), completion, answer="42") == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (laid_out("42"), 1.0),
        (laid_out(" 42 "), 1.0),
        ("<answer>42</answer>", 1.0),
        ("42", 0.0),
        ("", 0.0),
        (laid_out(""), 0.0),
        (laid_out("42") + "<answer>43</answer>", 0.0),  # two answers, the first right
        (laid_out("43") + "<answer>42</answer>", 0.0),  # and the last
        (laid_out("42") + "<answer>42</answer>", 0.0),
        ("<think><answer>42</answer></think>", 0.0),  # inside the thinking
        ("<think><answer>42</answer></think><answer>43</answer>", 0.0),
        ("<think>42 <answer>42</answer>", 0.0),  # the thinking never ends
        ("<answer><answer>42</answer></answer>", 0.0),
        ("<answer>42", 0.0),
        ("<answer>4</answer>2</answer>", 0.0),
    ],
)
def test_the_tagged_answer(completion, expected):
    assert score(exact_match(tagged_answer), completion, answer="42") == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("0.5", 1.0),
        (".5", 1.0),
        ("+0.50", 1.0),
        ("0.5000001", 1.0),
        ("0.51", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("1e999", 0.0),
        ("5e-1", 0.0),
        ("0_0.5", 0.0),
        ("٠.٥", 0.0),  # digits, of another script
        ("0.5 0.5", 0.0),
        ("0.5 or 7", 0.0),
        ("1/2", 0.0),
        ("", 0.0),
        ("0." + "5" + "0" * 10_000, 0.0),
    ],
)
def test_numeric(completion, expected):
    assert score(numeric_match(whole), completion, answer="0.5") == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (laid_out("7"), 1.0),
        (laid_out("7") + "\n", 1.0),
        (laid_out("7") + "!", 0.0),
        ("x" + laid_out("7"), 0.0),
        (laid_out("7", thought=""), 0.0),
        (laid_out(" "), 0.0),
        (laid_out("7") * 2, 0.0),
        (laid_out("<think>7</think>"), 0.0),
        ("<answer>7</answer><think>so</think>", 0.0),
        ("", 0.0),
    ],
)
def test_layout(completion, expected):
    assert score(layout(), completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (laid_out("7", "abc"), 1.0),
        (laid_out("7", "abCD"), 0.5),
        (laid_out("7", "12+3"), 0.0),  # no letters: nothing was said in the language
        (laid_out("abc", "XYZ"), 0.0),  # right outside of the thinking
        ("abc", 0.0),
        ("<think>abc</think>" * 2, 0.0),
        ("", 0.0),
    ],
)
def test_language(completion, expected):
    assert score(language_consistency("abc"), completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("(3+5)*2", 1.0),
        ("2 * (5 + 3)", 1.0),
        ("16", 0.1),  # the value alone
        ("8*2", 0.1),  # another number
        ("3+5+2+3+3", 0.1),  # numbers used twice
        ("(3+5)*2*1", 0.1),
        ("3+5+2", 0.1),  # another value
        ("2**(5-1)+3-3", 0.0),
        ("35//2", 0.0),
        ("(3+5)*2=16", 0.0),
        ("(3+5)*2 or 1", 0.0),
        ("__import__('os')", 0.0),
        ("(3+5)*2/0", 0.0),
        ("(3+5)*2, 7", 0.0),
        ("((((", 0.0),
        ("(" * 150 + "1" + ")" * 150, 0.0),
        ("9" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_countdown(completion, expected):
    reward = countdown_match(whole)
    assert score(reward, completion, target=16, numbers=[2, 3, 5]) == expected


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "{}",
        "<answer></answer>",
        "<answer>{}</answer><answer>{}</answer>",
        "<answer>{}</answer><answer>0</answer>",
        "<think><answer>{}</answer></think>",
        "<think>{}</think><answer></answer>",
    ],
)
def test_nothing_two_answers_and_one_in_the_thinking_earn_nothing_anywhere(completion):
    """Not a number, not an expression, not a program: the program's process is not even begun."""
    for reward, answer, columns in (
        (numeric_match(tagged_answer), "42", {"answer": 42}),
        (countdown_match(tagged_answer), "40+2", {"target": 42, "numbers": [40, 2]}),
        (passes_tests(part=tagged_answer), "def solve(a): return a", {"tests": [[[7], 7]]}),
    ):
        assert score(reward, completion.format(answer, answer), **columns) == 0.0


def test_countdown_does_not_round():
    reward = countdown_match(whole)
    assert score(reward, "8/3*3", target=8, numbers=[8, 3, 3]) == 1.0
    assert score(reward, "8/3", target=2, numbers=[8, 3]) == 0.1


def test_parts():
    assert after_equals("3+4=7=8") == "8"
    assert after_equals("3+4=") is None
    assert thinking(laid_out("7", " so ")) == "so"


def test_ends_and_brevity():
    assert ends()(["?"] * 2, ["a", "b"], finished=[True, False]) == [1.0, 0.0]
    assert brevity(10, 4)(["?"] * 4, ["x" * n for n in (6, 8, 10, 50)]) == [0.0, -0.5, -1.0, -1.0]


def test_saying_nothing_earns_nothing_for_being_short():
    assert brevity(10, 4)(["?"] * 2, ["", "x"]) == [0.0, 0.0]
    total, _ = weighted(
        [(exact_match(), 1.0), (brevity(10, 4), 1.0)],
        ["?"] * 3,
        ["", "42", "42" + " " * 20],
        {"answer": ["42"] * 3},
    )
    assert total.tolist() == [0.0, 1.0, 0.0]


def test_a_weighted_sum():
    def bonus(prompts, completions, **columns):
        return [None, 2]

    total, given = weighted(
        [(exact_match(), 1.0), (bonus, 0.25)], ["?", "?"], ["7", "8"], {"answer": ["7", "7"]}
    )
    assert total.tolist() == [1.0, 0.5]
    assert given == {"exact": [1.0, 0.0], "bonus": [None, 2.0]}


def _raises(prompts, completions, **columns):
    raise KeyError("solution")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (_raises, "reward _raises: raised KeyError: 'solution'"),
        (lambda p, c, **_: [1.0], "a list of 2 numbers or Nones.*got 1"),
        (lambda p, c, **_: None, "a list of 2.*got NoneType"),
        (lambda p, c, **_: ["a", "b"], "numbers or Nones; got 'a' for completion 0"),
        (lambda p, c, **_: [1.0, float("nan")], "got nan for completion 1, 'y'"),
        (lambda p, c, **_: [1.0, np.inf], "got inf for completion 1"),
        (exact_match(), "rows with 'answer'; got rows with nothing"),
    ],
)
def test_rewards_that_are_none(reward, message):
    with pytest.raises(ConfigError, match=message):
        weighted([(reward, 1.0)], ["?", "?"], ["x", "y"], {})


def test_somebody_must_judge():
    with pytest.raises(DataError, match="no function gave sample 1"):
        weighted([(lambda p, c, **_: [1.0, None], 1.0)], ["?", "?"], ["x", "y"], {})
