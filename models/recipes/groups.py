"""Completions in groups, those of one prompt together, and what they earned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.recipes.prompts import Prompt
from models.recipes.recipe import Metrics
from models.recipes.supervision import Scores
from models.rollouts import Rollout


@dataclass(frozen=True)
class Group:
    """A prompt and its completions.

    earlier: how many tokens of each completion earlier steps wrote. rewards: (size,), with all that
    is added and taken. given: by function, as it came. steps: the scores of each completion's
    steps, where these are judged.
    """

    prompt: Prompt
    rollouts: Sequence[Rollout]
    earlier: Sequence[int]
    rewards: np.ndarray
    given: Mapping[str, Sequence[float | None]]
    steps: Sequence[Scores] = ()

    @cached_property
    def teaches(self) -> bool:
        """Whether what is compared differs; one reward, which is not compared, counts as such."""
        scores = [score for steps in self.steps for score in steps.values()]
        compared = np.array(scores) if scores else self.rewards
        return len(compared) == 1 or bool(np.ptp(compared) > 0)


@dataclass(frozen=True)
class Batch:
    """The groups of a step. Completions are in the order of their groups."""

    groups: Sequence[Group]

    @cached_property
    def prompts(self) -> list[Prompt]:
        """One for each group."""
        return [group.prompt for group in self.groups]

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """All completions."""
        return [rollout for group in self.groups for rollout in group.rollouts]

    @cached_property
    def earlier(self) -> list[int]:
        """How many tokens of each completion earlier steps wrote."""
        return [count for group in self.groups for count in group.earlier]

    @cached_property
    def rewards(self) -> np.ndarray:
        """(groups, size)."""
        return np.stack([group.rewards for group in self.groups])

    @cached_property
    def given(self) -> dict[str, list[float | None]]:
        """What each function said of all completions."""
        names = self.groups[0].given
        return {name: [x for group in self.groups for x in group.given[name]] for name in names}

    @cached_property
    def steps(self) -> list[Scores]:
        """The scores of all completions' steps, none where these are not judged."""
        return [scores for group in self.groups for scores in group.steps]

    @property
    def teaching(self) -> float:
        """The share of groups that teach something."""
        return float(np.mean([group.teaches for group in self.groups]))

    def mended(self, more: "Batch") -> "Batch":
        """With groups of another that teach in place of those that do not, as far as they go."""
        spare = iter([group for group in more.groups if group.teaches])
        return Batch([g if g.teaches else next(spare, g) for g in self.groups])

    def metrics(self) -> Metrics:
        """Of rewards and lengths."""
        found = {
            "reward": float(self.rewards.mean()),
            "zero_variance": 1 - self.teaching,
            "finished": float(np.mean([rollout.finished for rollout in self.rollouts])),
        }
        if self.steps:
            scores = [score for steps in self.steps for score in steps.values()]
            found |= {"step_score": float(np.mean(scores)), "steps": len(scores) / len(self.steps)}
        for name, values in self.given.items():
            said = [value for value in values if value is not None]
            if said:
                found[f"reward/{name}"] = float(np.mean(said))
        return found
