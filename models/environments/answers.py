"""Where in a completion the answer is: the part that a reward looks at.

A part is a function of a completion that returns a text, or None where the completion does not have
it. To be cheated is what these are made for: whoever puts an answer into the thinking, or writes
two and hopes that one is read, has given none.
"""

import re
from collections.abc import Callable

Part = Callable[[str], str | None]

THINKING = re.compile(r"<think>(.*?)</think>", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
LAYOUT = re.compile(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def whole(completion: str) -> str | None:
    """All of it, spaces around it aside; None where there is nothing."""
    return completion.strip() or None


def after_equals(completion: str) -> str | None:
    """What follows the last "=": the result of a chain of steps."""
    return whole(completion.rpartition("=")[2])


def tagged_answer(completion: str) -> str | None:
    """What the only <answer>…</answer> after the thinking holds; None where there are several."""
    _, closed, rest = completion.rpartition("</think>")
    if not closed and "<think>" in completion:
        return None
    found = ANSWER.findall(rest)
    once = all(completion.count(tag) <= 1 for tag in ("<answer>", "</answer>"))
    return whole(found[0]) if len(found) == 1 and once else None


def thinking(completion: str) -> str | None:
    """What the only <think>…</think> holds."""
    found = THINKING.findall(completion)
    once = all(completion.count(tag) == 1 for tag in ("<think>", "</think>"))
    return whole(found[0]) if len(found) == 1 and once else None


def is_laid_out(completion: str) -> bool:
    """Whether it is <think>…</think><answer>…</answer> and nothing else, either with content."""
    match = LAYOUT.fullmatch(completion)
    once = all(completion.count(tag) == 1 for tag in TAGS)
    return match is not None and once and all(map(whole, match.groups()))
