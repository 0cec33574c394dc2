r"""Which problem comes next: the easy ones at first, and those that are failed rather than others.

    p(i) ∝ 1 - s_i        over the problems that may come by now, s_i the success rate of problem i

A problem that was never tried counts as failed. Its rate is a moving average over the groups that
were written of it, as the policy of long ago says little of that of today. How hard a problem is,
for the curriculum, is a number that came with it: the easiest tenth may come at once, the others
one after another. Source: Kimi Team 2025, "Kimi k1.5" (arXiv 2501.12599), section 2.3.3, which says
neither how the rate is tracked nor at which pace problems are added.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch.errors import ConfigError
from minitorch.kernels.philox import stream
from models.recipes.prompts import Prompt
from models.recipes.recipe import Metrics
from models.sampling import draw_at

KEY = 1 << 65
"""Added to the seed: the streams that choose are not those of rows and rollouts."""

AT_ONCE = 0.1
"""The share of the problems that a curriculum begins with."""


class Problems:
    """Problems with their success rates, NaN where one was never tried: rates, (problems,).

    priority: whether those that are failed come more often. memory: the share of the old rate in
    the new one. curriculum: the column that says how hard a problem is, none where it is empty;
    pace: the steps until all may come. Raises ConfigError where that column holds no numbers.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        *,
        priority: bool = True,
        memory: float = 0.5,
        curriculum: str = "",
        pace: int = 100,
    ):
        self.prompts, self.seed, self.priority, self.memory = prompts, seed, priority, memory
        self.pace = pace if curriculum else 1
        self.rates = np.full(len(prompts), np.nan)
        hardness = [_hardness(p, curriculum) if curriculum else 0.0 for p in prompts]
        self._easiest = np.argsort(hardness, kind="stable")

    def choose(self, count: int, step: int, first: int) -> list[int]:
        """So many problems for a step. first: how many were chosen before."""
        probs = np.broadcast_to(self.probabilities(step), (count, len(self.prompts)))
        uniform = [stream(self.seed + KEY, first + i).random() for i in range(count)]
        return draw_at(probs, np.array(uniform)).tolist()

    def probabilities(self, step: int) -> np.ndarray:
        """Of each problem to be chosen in a step; where all are solved, all that may come alike."""
        may = np.zeros(len(self.prompts))
        may[self._admitted(step)] = 1.0
        failed = may * (1 - np.nan_to_num(self.rates)) if self.priority else may
        weights = failed if failed.any() else may
        return weights / weights.sum()

    def _admitted(self, step: int) -> np.ndarray:
        share = min(max(AT_ONCE, (step + 1) / self.pace), 1.0)
        return self._easiest[: math.ceil(share * len(self.prompts))]

    def judged(self, problem: int, success: float) -> None:
        """A group was written of a problem, of which this share was right."""
        old = self.rates[problem]
        new = success if math.isnan(old) else self.memory * old + (1 - self.memory) * success
        self.rates[problem] = new

    def metrics(self, step: int) -> Metrics:
        """The shares that may come and that were tried, and the mean success rate of the latter."""
        tried = self.rates[~np.isnan(self.rates)]
        success = {"success": float(tried.mean())} if len(tried) else {}
        admitted = len(self._admitted(step)) / len(self.prompts)
        return {"admitted": admitted, "tried": len(tried) / len(self.prompts), **success}


def _hardness(prompt: Prompt, column: str) -> float:
    value: Any = prompt.columns.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(
            f"curriculum: expected a number under {column!r} that says how hard a prompt is; got "
            f"{value!r} for {prompt.text!r}. Its columns are {', '.join(prompt.columns) or 'none'}"
        )
    return float(value)
