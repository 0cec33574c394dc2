"""Tasks that can be had without end and judged by a rule, small enough for toys.

    addition         27+85=            211              the digits of 112 from the last on
    countdown        3 5 8:16=         8+3+5
    strings          rev abcd=         dcba             one of eight operations
    counting         b in abcabb=      3
    calculator       34*57=            <<34*57=1938>>1938, where the tool writes 1938>>
    bilingual        27+85=            <think>cbb</think><answer>211</answer>

A task draws rows, with a `prompt` and what its rewards read, and shows a right completion to a row,
from which a base model is fine-tuned before it is left to its reward. Digits are written from the
last on where that is how one adds. In `bilingual` the thinking spells the digits in one of two
alphabets, a to j or A to J, and the demonstrations mix them. Sources: DeepSeek-R1 (arXiv
2501.12948) for thinking and consistency, TinyZero for countdown. All rows are drawn, none is taken.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitorch.tokenizers import CharTokenizer
from models.environments.answers import TAGS, tagged_answer, whole
from models.environments.rewards import (
    Reward,
    countdown_match,
    exact_match,
    language_consistency,
    layout,
)
from models.environments.turns import Tool, calculator
from models.generate import END_OF_TEXT

Row = dict[str, Any]
"""`prompt`, and the columns that rewards read."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a task's function declares.

    draw(random) -> a row; demonstrate(row, random) -> a right completion. rewards: with weights,
    the first of them the one that says what is right. alphabet: all characters of prompts and
    completions. longest_prompt, longest_completion: in tokens, the end token included. tool: what
    a call is answered by, and the character that ends one.
    """

    name: str
    draw: Callable[[np.random.Generator], Row]
    demonstrate: Callable[[Row, np.random.Generator], str]
    rewards: Sequence[tuple[Reward, float]]
    alphabet: str
    longest_prompt: int
    longest_completion: int
    tags: tuple[str, ...] = ()
    tool: Tool | None = None
    call: str = ""

    def tokenizer(self) -> CharTokenizer:
        """A token for each character and each tag, and the end of the text."""
        return CharTokenizer(sorted(set(self.alphabet)), [END_OF_TEXT, *self.tags])


def addition(digits: int = 2) -> Task:
    """The sum of two numbers of so many digits."""

    def draw(random: np.random.Generator) -> Row:
        a, b = _numbers(random, digits)
        return {"prompt": f"{a}+{b}=", "answer": _reversed(a + b)}

    return Task(
        name="addition",
        draw=draw,
        demonstrate=_the_answer,
        rewards=[(exact_match(), 1.0)],
        alphabet=string.digits + "+=",
        longest_prompt=2 * digits + 2,
        longest_completion=digits + 2,
    )


def countdown(numbers: int = 3, largest: int = 9) -> Task:
    """An expression of given numbers, each once, with a given value."""

    def draw(random: np.random.Generator) -> Row:
        given = random.integers(1, largest + 1, numbers).tolist()
        target, expression = given[0], str(given[0])
        for number in random.permuted(given[1:]).tolist():
            sign = "+" if target <= number or random.random() < 0.5 else "-"
            target, expression = (
                (target + number, f"{expression}+{number}")
                if sign == "+"
                else (target - number, f"{expression}-{number}")
            )
        prompt = f"{' '.join(map(str, random.permuted(given)))}:{target}="
        return {"prompt": prompt, "target": target, "numbers": given, "answer": expression}

    width = len(str(largest))
    return Task(
        name="countdown",
        draw=draw,
        demonstrate=_the_answer,
        rewards=[(countdown_match(whole), 1.0)],
        alphabet=string.digits + "+-*/() :=",
        longest_prompt=numbers * (width + 1) + len(str(numbers * largest)) + 1,
        longest_completion=numbers * (width + 3) + 1,
    )


OPERATIONS: Mapping[str, Callable[[str], str]] = {
    "rev": lambda s: s[::-1],
    "up": str.upper,
    "sort": lambda s: "".join(sorted(s)),
    "first": lambda s: s[0],
    "last": lambda s: s[-1],
    "twice": lambda s: s + s,
    "rot": lambda s: s[1:] + s[0],
    "len": lambda s: str(len(s)),
}


def strings(length: int = 4, letters: str = "abcdef") -> Task:
    """A word after one of eight operations."""

    def draw(random: np.random.Generator) -> Row:
        name = list(OPERATIONS)[random.integers(len(OPERATIONS))]
        word = _word(random, int(random.integers(2, length + 1)), letters)
        return {"prompt": f"{name} {word}=", "answer": OPERATIONS[name](word)}

    return Task(
        name="strings",
        draw=draw,
        demonstrate=_the_answer,
        rewards=[(exact_match(), 1.0)],
        alphabet=letters + letters.upper() + "".join(OPERATIONS) + string.digits + " =",
        longest_prompt=max(map(len, OPERATIONS)) + length + 2,
        longest_completion=2 * length + 1,
    )


def counting(length: int = 8, letters: str = "abc") -> Task:
    """How often a letter is in a word."""

    def draw(random: np.random.Generator) -> Row:
        word = _word(random, int(random.integers(2, length + 1)), letters)
        letter = _word(random, 1, letters)
        return {"prompt": f"{letter} in {word}=", "answer": str(word.count(letter))}

    return Task(
        name="counting",
        draw=draw,
        demonstrate=_the_answer,
        rewards=[(exact_match(), 1.0)],
        alphabet=letters + "in =" + string.digits,
        longest_prompt=length + 6,
        longest_completion=len(str(length)) + 1,
    )


def products(digits: int = 2) -> Task:
    """The product of two numbers, for which there is a calculator."""

    def draw(random: np.random.Generator) -> Row:
        a, b = _numbers(random, digits)
        return {"prompt": f"{a}*{b}=", "answer": str(a * b)}

    def demonstrate(row: Row, random: np.random.Generator) -> str:
        return f"<<{row['prompt']}{row['answer']}>>{row['answer']}"

    return Task(
        name="calculator",
        draw=draw,
        demonstrate=demonstrate,
        rewards=[(exact_match(after_tool), 1.0)],
        alphabet=string.digits + "*=<>error",
        longest_prompt=2 * digits + 2,
        longest_completion=2 * digits + 2 + 4 * digits + 5,
        tool=calculator(),
        call="=",
    )


def after_tool(completion: str) -> str | None:
    """What follows the last answer of the tool; all where there was none."""
    return whole(completion.rpartition(">>")[2])


SMALL, LARGE = "abcdefghij", "ABCDEFGHIJ"


def bilingual(digits: int = 2, mixed: float = 0.4) -> Task:
    """Addition with thinking in two alphabets, of which the reward wants the small letters.

    mixed: the share of capital letters in the demonstrations.
    """

    def draw(random: np.random.Generator) -> Row:
        a, b = _numbers(random, digits)
        return {"prompt": f"{a}+{b}=", "answer": _reversed(a + b)}

    def demonstrate(row: Row, random: np.random.Generator) -> str:
        spelt = [
            (LARGE if random.random() < mixed else SMALL)[int(digit)] for digit in row["answer"]
        ]
        return f"<think>{''.join(spelt)}</think><answer>{row['answer']}</answer>"

    return Task(
        name="bilingual",
        draw=draw,
        demonstrate=demonstrate,
        rewards=[
            (exact_match(tagged_answer), 1.0),
            (layout(), 0.2),
            (language_consistency(SMALL), 0.5),
        ],
        alphabet=string.digits + "+=" + SMALL + LARGE,
        longest_prompt=2 * digits + 2,
        longest_completion=2 * (digits + 1) + 5,
        tags=TAGS,
    )


TASKS: Mapping[str, Callable[[], Task]] = {
    "addition": addition,
    "countdown": countdown,
    "strings": strings,
    "counting": counting,
    "calculator": products,
    "bilingual": bilingual,
}


def _the_answer(row: Row, random: np.random.Generator) -> str:
    return row["answer"]


def _numbers(random: np.random.Generator, digits: int) -> list[int]:
    return random.integers(10 ** (digits - 1), 10**digits, size=2).tolist()


def _reversed(number: int) -> str:
    return str(number)[::-1]


def _word(random: np.random.Generator, length: int, letters: str) -> str:
    return "".join(random.choice(list(letters), length))
