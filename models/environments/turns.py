"""Conversations with a tool: the model calls it, reads what it says, and goes on.

A call ends with a token of its own kind, `call_id`. The tool's words are put after it as ids that
the mask leaves out, so that nobody learns to write them, and the model continues. What the model
wrote stays the ids that it drew: text is decoded to be read and never encoded again, since the same
text can be other tokens than those that were drawn.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from minitorch.tokenizers import Tokenizer
from models.environments.arithmetic import calculate
from models.families import Model
from models.rollouts import Rollout, extend

Tool = Callable[[str], str]
"""What the model has written since it was last told something, to what it is told."""


def calculator(opening: str = "<<", closing: str = ">>") -> Tool:
    """Of "… <<12*34=" the value of what stands between: "408>>"; "error>>" where it has none."""

    def answer(text: str) -> str:
        _, found, expression = text.rpartition(opening)
        return (calculate(expression.removesuffix("=")) if found else "error") + closing

    return answer


def converse(
    model: Model,
    rollouts: Sequence[Rollout],
    tool: Tool,
    tokenizer: Tokenizer,
    *,
    call_id: int,
    stop_ids: Collection[int],
    max_tokens: int,
    max_calls: int,
    **options: Any,
) -> list[Rollout]:
    """The rollouts with what the model writes, until it ends, calls too often, or is too long.

    max_tokens: of a completion, the tool's among them; an answer that has no room left is not told.
    options: those of `models.rollouts.extend`.
    """
    done = {i: rollout for i, rollout in enumerate(rollouts) if rollout.finished}
    open_ = [(i, rollout) for i, rollout in enumerate(rollouts) if i not in done]
    for calls in range(max_calls + 1):
        left = [max_tokens - len(rollout.completion_ids) for _, rollout in open_]
        stops = {*stop_ids, call_id} if calls < max_calls else set(stop_ids)
        written = extend(model, [r for _, r in open_], max_tokens=left, stop_ids=stops, **options)
        again = []
        for (i, _), rollout in zip(open_, written, strict=True):
            calls_again = _calls(rollout, call_id)
            told = _told(rollout, tool, tokenizer, max_tokens) if calls_again else None
            if told is None:
                done[i] = replace(rollout, finished=rollout.finished and not calls_again)
            else:
                again.append((i, told))
        open_ = again
    return [done[i] for i in range(len(rollouts))]


def _told(rollout: Rollout, tool: Tool, tokenizer: Tokenizer, max_tokens: int) -> Rollout | None:
    """With the tool's answer after it; None where there is no room for it and a token more."""
    spoken = 0
    while spoken < len(rollout.mask) and rollout.mask[-1 - spoken]:
        spoken += 1
    answer = tokenizer.encode(tool(tokenizer.decode(rollout.completion_ids[-spoken:])))
    if len(rollout.completion_ids) + len(answer) >= max_tokens:
        return None
    return rollout.told(answer)


def _calls(rollout: Rollout, call_id: int) -> bool:
    return rollout.finished and rollout.completion_ids[-1] == call_id
