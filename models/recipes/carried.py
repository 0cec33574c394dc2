"""Completions that take several steps: what is not at its end is kept, and goes on in the next.

A step writes in rounds. In each of them as many groups are open as the step is to learn from, and
their completions grow by a few tokens at most. A group is whole once all its completions have
ended; when enough are whole the step learns from these, and the rest waits. So no step waits for
the longest completion that it has begun.

What waits keeps the log-probabilities that its tokens were drawn with. They are those of the policy
of that step, which has moved on since: the ratio to them is the right one for each token, whoever
drew it. Source: Kimi Team 2025, "Kimi k1.5" (arXiv 2501.12599), section 2.6.2, "Partial rollouts",
where rollouts are written asynchronously instead of in rounds.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from models.recipes.prompts import Prompt
from models.rollouts import Rollout


@dataclass(frozen=True)
class Opened:
    """A group that is being written.

    row: the number of its prompt. earlier: how many tokens of each completion earlier steps wrote.
    """

    row: int
    prompt: Prompt
    rollouts: Sequence[Rollout]
    earlier: Sequence[int]

    def ended(self, max_tokens: int) -> bool:
        """Whether all its completions have, by themselves or at the limit."""
        return all(r.finished or len(r.completion_ids) >= max_tokens for r in self.rollouts)

    def settled(self) -> "Opened":
        """With all that it holds so far as written by earlier steps."""
        earlier = [len(rollout.completion_ids) for rollout in self.rollouts]
        return dataclasses.replace(self, earlier=earlier)


class Carried:
    """The groups between two steps: those that are open, and those that are whole and wait.

    segment: the most tokens that a completion gets in a round.
    """

    def __init__(self, segment: int, max_tokens: int):
        self.segment, self.max_tokens = segment, max_tokens
        self.open: list[Opened] = []
        self.whole: list[Opened] = []

    def __len__(self) -> int:
        return len(self.open) + len(self.whole)

    def take(
        self,
        count: int,
        open_more: Callable[[int], list[Opened]],
        write: Callable[[list[Rollout], list[int]], list[Rollout]],
    ) -> list[Opened]:
        """So many whole groups, which go.

        open_more(count): new groups. write(rollouts, limits): with up to so many tokens more each.
        """
        while len(self.whole) < count:
            self.open += open_more(count - len(self.open))
            self._round(write)
        taken, self.whole = self.whole[:count], self.whole[count:]
        return taken

    def _round(self, write: Callable[[list[Rollout], list[int]], list[Rollout]]) -> None:
        rollouts = [rollout for group in self.open for rollout in group.rollouts]
        left = [self.max_tokens - len(rollout.completion_ids) for rollout in rollouts]
        written = iter(write(rollouts, [min(self.segment, limit) for limit in left]))
        longer = [
            dataclasses.replace(group, rollouts=[next(written) for _ in group.rollouts])
            for group in self.open
        ]
        self.open = []
        self._sort(longer)

    def _sort(self, groups: Sequence[Opened]) -> None:
        for group in groups:
            (self.whole if group.ended(self.max_tokens) else self.open).append(group)

    def settle(self) -> None:
        """The step is over: what is here has been written by an earlier policy from now on."""
        self.open, self.whole = (
            [group.settled() for group in groups] for groups in (self.open, self.whole)
        )

    def state(self) -> list[dict[str, Any]]:
        """What is here between two steps, for JSON."""
        return [
            {"row": group.row, "rollouts": [dataclasses.asdict(r) for r in group.rollouts]}
            for group in (*self.whole, *self.open)
        ]

    def restore(self, state: Sequence[dict[str, Any]], prompt: Callable[[int], Prompt]) -> None:
        """Go on from a state. prompt: the one of a number."""
        self.open, self.whole = [], []
        for saved in state:
            rollouts = [_rollout(fields) for fields in saved["rollouts"]]
            self._sort([Opened(saved["row"], prompt(saved["row"]), rollouts, []).settled()])


def _rollout(fields: dict[str, Any]) -> Rollout:
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Rollout(**plain)
