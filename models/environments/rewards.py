"""Rewards that a program can give: pure functions of prompts and completions.

    reward(prompts, completions, **columns) -> [number or None, one for each completion]

All arguments are lists of one length, columns too: what a task's rows hold besides the prompt, such
as `answer`, and of each completion `finished`, whether it ended by itself. None says that a reward
does not apply to a row; `minitorch.rl.joined_rewards` adds up several with weights. A function here
takes settings and returns such a reward, whose __name__ is its column in the log.

Every rule is tested against those who would rather have the reward than the answer
(tests/models/environments/test_rewards.py): the empty completion, several answers, the answer
inside the thinking, numbers that are none. Source: DeepSeek-AI 2025, "DeepSeek-R1" (arXiv
2501.12948), section 2.2.2: rules rather than a learned judge, since a judge can be talked round.
"""

import ast
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

import minitorch as mt
from minitorch import rl
from minitorch.errors import ConfigError
from models.environments.answers import Part, is_laid_out, tagged_answer, thinking, whole
from models.environments.arithmetic import ArithmeticRefused, evaluate, numbers_in, parse

Reward = Callable[..., list[float | None]]

NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)", re.ASCII)


def exact_match(part: Part = whole) -> Reward:
    """1 where the part of a completion is the row's `answer`, letter by letter, else 0."""

    def exact(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        answers = _column("exact", "answer", columns)
        return [float(part(c) == answer) for c, answer in zip(completions, answers, strict=True)]

    return exact


def numeric_match(part: Part = tagged_answer, *, tolerance: float = 1e-6) -> Reward:
    """1 where the part is a number and within tolerance · max(1, |answer|) of `answer`, else 0.

    A number is written in ASCII digits with at most a sign and a point; "nan", "1e999" and "1_0"
    are none, and neither is a number with anything beside it.
    """

    def numeric(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        answers = _column("numeric", "answer", columns)
        return [_is_near(part(c), float(a)) for c, a in zip(completions, answers, strict=True)]

    def _is_near(text: str | None, answer: float) -> float:
        if text is None or not NUMBER.fullmatch(text) or len(text) > 40:
            return 0.0
        return float(abs(float(text) - answer) <= tolerance * max(1.0, abs(answer)))

    return numeric


def layout() -> Reward:
    """1 where a completion is <think>…</think><answer>…</answer>, each once, neither empty."""

    def layout(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        return [float(is_laid_out(completion)) for completion in completions]

    return layout


def ends() -> Reward:
    """1 where a completion ended by itself, 0 where it was cut off."""

    def ends(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        return [float(done) for done in _column("ends", "finished", columns)]

    return ends


def brevity(max_length: int, margin: int) -> Reward:
    """0 for completions of up to max_length - margin characters, falling to -1 at max_length.

    Source: DAPO's overlong penalty, `minitorch.rl.overlong_penalty`, there of tokens.
    """

    def brevity(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        lengths = mt.from_numpy(np.array([len(c) for c in completions], np.float64))
        return rl.overlong_penalty(lengths, max_length=max_length, margin=margin).tolist()

    return brevity


def language_consistency(alphabet: Collection[str], part: Part = thinking) -> Reward:
    """The share of the part's letters that are of the alphabet; 0 where it has no letters.

    Digits and signs belong to no language and do not count. Source: DeepSeek-R1, section 2.3.2,
    which counts words.
    """
    own = frozenset(alphabet)

    def language(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        return [_share(part(completion) or "") for completion in completions]

    def _share(text: str) -> float:
        letters = [char for char in text if char.isalpha()]
        return sum(char in own for char in letters) / len(letters) if letters else 0.0

    return language


def countdown_match(part: Part = tagged_answer, *, attempt: float = 0.1) -> Reward:
    """1 for an expression of the row's `numbers`, each once, that is its `target`.

    `attempt` for an expression with another value or other numbers, and 0 for what is none. Only
    + - * / and parentheses make one, and division is exact. Source: TinyZero, countdown.py, which
    has 0, 0.1 and 1.
    """

    def countdown(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        targets = _column("countdown", "target", columns)
        allowed = _column("countdown", "numbers", columns)
        rows = zip(completions, targets, allowed, strict=True)
        return [_judge(part(completion), target, numbers) for completion, target, numbers in rows]

    def _judge(text: str | None, target: int, numbers: Sequence[int]) -> float:
        if text is None:
            return 0.0
        try:
            tree = parse(text, (ast.Add, ast.Sub, ast.Mult, ast.Div))
            value = evaluate(tree)
        except ArithmeticRefused:
            return 0.0
        right = value == Fraction(target) and Counter(numbers_in(tree)) == Counter(numbers)
        return 1.0 if right else attempt

    return countdown


def weighted(
    rewards: Sequence[tuple[Reward, float]],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> tuple[np.ndarray, dict[str, list[float | None]]]:
    """The weighted sum, (completions,) float64, and what each function gave, by its name.

    Raises ConfigError, naming the function, where one raises, or gives what is no list of numbers
    and Nones or has another length; DataError where one gave NaN, or none said anything to a row.
    """
    given: dict[str, list[float | None]] = {}
    for reward, _ in rewards:
        name = getattr(reward, "__name__", type(reward).__name__)
        given[name] = _checked(name, reward, prompts, completions, columns)
    total = rl.joined_rewards(list(given.values()), [weight for _, weight in rewards])
    return total.numpy().astype(np.float64), given


def _checked(
    name: str,
    reward: Reward,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    try:
        values = reward(list(prompts), list(completions), **columns)
    except Exception as error:
        raise ConfigError(f"reward {name}: raised {type(error).__name__}: {error}") from error
    if not isinstance(values, list | tuple | np.ndarray) or len(values) != len(completions):
        got = f"{len(values)}" if hasattr(values, "__len__") else type(values).__name__
        raise ConfigError(
            f"reward {name}: expected a list of {len(completions)} numbers or Nones, one for each "
            f"completion; got {got}"
        )
    found: list[float | None] = []
    for i, value in enumerate(values):
        try:
            found.append(None if value is None else float(value))
        except (TypeError, ValueError):
            raise ConfigError(
                f"reward {name}: expected numbers or Nones; got {value!r} for completion {i}"
            ) from None
        if found[-1] is not None and not math.isfinite(found[-1]):
            raise ConfigError(
                f"reward {name}: expected finite numbers or None; got {value} for completion {i}, "
                f"{completions[i]!r}. Return None where a reward does not apply"
            )
    return found


def _column(reward: str, name: str, columns: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    if name not in columns:
        raise ConfigError(
            f"reward {reward}: expected rows with {name!r}; got rows with "
            f"{', '.join(map(repr, columns)) or 'nothing but the prompt'}"
        )
    return columns[name]
