r"""Numeric derivatives, each entry with an error of its own; the rounding errors of analytic ones.

Central differences at a few steps h, each 7.3 times shorter than the one before, are extrapolated
to h = 0 (Ridders 1982). The error of an entry is the spread of the extrapolations, and the noise of
f in that output divided by h. The rounding error of an analytic value is measured by moving the
last digits of the inputs. One-sided differences tell a kink from a wrong rule.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np

from minitorch.gradcheck.report import Tolerance
from minitorch.gradcheck.sweeps import Function, Sweeps, join, split

LONGEST, SHRINK = 0.06, 7.3  # steps are |x| LONGEST SHRINK**-k: no period is that of f
DEEPEST, HIGHEST = 10, -4  # the range of k
NOISE_SPACING = 1e-8  # the noise of f is measured so far around x, relative to x
CONVERGED = 1e-3  # differences that agree no better than this prove nothing
ULP = float(np.finfo(np.float64).eps)
SAFETY = 16.0  # measured rounding errors of f are believed within this factor
NOISE_SHARE = 1e-9  # no more of the largest entry passes for noise after a first comparison
NUDGES, NUDGE = 3, 16 * ULP  # the last digits are moved so often and so far, relative to x
AMPLIFICATION = 8.0  # rounding errors are so many times the largest change that this makes


class Differences(Sweeps):
    """Derivatives of the function from its values alone."""

    def __init__(
        self,
        f: Function,
        arguments: Sequence[Any],
        moving: Sequence[int],
        step: float,
        tolerance: Tolerance,
        seed: int,
    ):
        super().__init__(f, arguments, moving, seed)
        self.step, self.tolerance = step, tolerance
        self.sizes = join([sizes(x) for x in self.point])

    def _differences(
        self, directions: np.ndarray, analytic: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(J u, a bound of its error) for each row u of directions: (directions, outputs) each.

        Shorter steps follow while the extrapolations of some entry disagree with each other or
        with the analytic value, longer ones while rounding errors hide it.
        """
        noise = self.noise()
        shape = (len(directions), noise.size)
        levels: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        everything = np.ones(shape[0], bool)
        queue = [(0, everything), (1, everything)]
        while queue:
            for level, chosen in queue:
                slopes, rounding = np.full(shape, np.nan), np.full(shape, np.inf)
                for k in np.flatnonzero(chosen):
                    slopes[k], rounding[k] = self._difference(directions[k], level, noise)
                levels[level] = slopes, rounding
                if level > 1:
                    shorter = chosen
                elif level < 0:
                    longer = chosen
                else:
                    shorter = longer = everything
            value, spread, rounding = _extrapolate([levels[k] for k in sorted(levels) if k >= 0])
            bound = np.minimum(spread, CONVERGED * np.abs(value)) + SAFETY * rounding
            if min(levels) < 0:
                better = _extrapolate([levels[level] for level in sorted(levels)])
                agree = np.abs(better[0] - value) <= bound
                value, spread, rounding = (
                    np.where(agree, new, old)
                    for new, old in zip(better, (value, spread, rounding), strict=True)
                )
                bound = np.minimum(spread, CONVERGED * np.abs(value)) + SAFETY * rounding
            goal = self.tolerance.rtol * np.abs(value)
            rough = ~(spread <= np.maximum(goal, rounding)) | (
                np.abs(analytic - value) > self.tolerance.atol + goal + bound
            )
            hidden = (rounding > goal) & (value != 0)
            shorter, longer = shorter & rough.any(1), longer & hidden.any(1)
            queue = []
            if shorter.any() and max(levels) < DEEPEST:
                queue.append((max(levels) + 1, shorter))
            if longer.any() and min(levels) > HIGHEST:
                queue.append((min(levels) - 1, longer))
        return value, bound

    def _difference(
        self, u: np.ndarray, level: int, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """D(h) and its rounding error: of f, and of the points at which it is evaluated."""
        share = self.step * SHRINK**-level
        h = share * self._reach(u)
        above, below = self._moved(u, h), self._moved(u, -h)
        slopes = (above - below) / (2 * h)
        largest = np.maximum(np.abs(above), np.abs(below))
        return slopes, np.maximum(noise, ULP * largest) / h + ULP / share * np.abs(slopes)

    def _reach(self, u: np.ndarray) -> float:
        """The h for which h u is typically as large as x: the unit of the steps."""
        moving = np.flatnonzero(u)
        if not moving.size:
            return 1.0
        if moving.size == 1:
            j = int(moving[0])
            return abs(float(self.sizes[j] / u[j]))
        return float(np.median(self.sizes[moving] / np.abs(u[moving])))

    def _moved(self, u: np.ndarray, h: float) -> np.ndarray:
        return self.evaluate(split(self.flat + h * u, self.shapes))

    def noise(self) -> np.ndarray:
        """The rounding error of f at the point, for each output.

        Of a smooth function fourth differences at near points leave nothing but noise.
        """
        signs = self.random.choice([-1.0, 1.0], self.flat.shape)
        u = NOISE_SPACING * self.flat * signs
        near = np.stack([self._moved(u, t) for t in range(-4, 5)])
        differences = np.abs(np.diff(near, 4, axis=0)) / math.sqrt(70)  # of unit noise: 1
        return np.fmax(ULP * np.abs(near[4]), np.max(differences, axis=0))

    def _nudge(self, x: np.ndarray, nudge: float = NUDGE) -> np.ndarray:
        moved = np.array(x)  # in the order of x
        moved *= 1 + nudge * self.random.choice([-1.0, 1.0], x.shape)
        return moved

    def _scatter(
        self, directions: np.ndarray, analytic: np.ndarray, numeric: np.ndarray
    ) -> np.ndarray:
        """How the differences move with the last digits of the point."""
        twin = copy(self)
        changes = []
        for _ in range(NUDGES):
            twin.flat = self._nudge(self.flat)
            changes.append(np.abs(twin._differences(directions, analytic)[0] - numeric))
        return tiny(AMPLIFICATION * np.max(changes, axis=0), numeric)

    def _rounding(
        self,
        sweep: Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray],
        vectors: np.ndarray,
        point: Sequence[np.ndarray] | None = None,
        nudge: float = NUDGE,
    ) -> np.ndarray:
        """The rounding error of each entry of a sweep: how it moves with its inputs' last digit."""
        arrays = self.point if point is None else point
        here = sweep(arrays, vectors)
        changes = [
            np.abs(
                sweep([self._nudge(x, nudge) for x in arrays], self._nudge(vectors, nudge)) - here
            )
            for _ in range(NUDGES)
        ]
        return AMPLIFICATION * np.max(changes, axis=0)

    def _is_kink(self, u: np.ndarray, row: np.ndarray | int, error: float) -> bool:
        """Whether one-sided slopes differ by the error, and stay apart as the step shrinks."""

        def bend(h: float) -> tuple[float, float]:
            """|slope to the right - slope to the left|, and its rounding error."""
            below, here, above = (self._moved(u, t) for t in (-h, 0.0, h))
            second, size = above - 2 * here + below, np.abs(above) + 2 * np.abs(here)
            if isinstance(row, int):
                return abs(float(second[row])) / h, ULP * float(size[row]) / h
            return abs(float(row @ second)) / h, ULP * float(np.abs(row) @ size) / h

        h = 1e-5 * self._reach(u)
        (wide, _), (narrow, rounding) = bend(10 * h), bend(h)
        return wide > 0.5 * error and narrow > max(0.5 * wide, SAFETY * rounding)


def _extrapolate(
    levels: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(value, spread, rounding error) at step 0, from slopes at shrinking steps, for each entry.

    levels: (D(h), its rounding error), the longest step first; NaN where it was not tried. The
    error of D is a series in h^2; each column of the tableau removes a power. Of all its
    extrapolations an entry takes that with the smallest error: its distance from the two that it
    was made of. One that has settled, relative to itself, goes before one that is merely small:
    with long steps all slopes of a bounded function are small.
    Source: Ridders 1982, "Accurate computation of F'(x) and F'(x) F''(x)".
    """
    best, spread, rounding = levels[-1][0], np.full_like(levels[-1][0], np.inf), levels[-1][1]
    column: list[np.ndarray] = []
    for i, (slope, noise) in enumerate(levels):
        before, column = column, [slope]
        noise = noise + 2 * ULP * np.abs(slope)
        for m in range(1, i + 1):
            gain = SHRINK ** (2 * m) - 1
            value = column[-1] + (column[-1] - before[m - 1]) / gain
            change = np.maximum(np.abs(value - column[-1]), np.abs(value - before[m - 1]))
            column.append(value)
            error, least = change + noise, spread + rounding
            close, closest = error < CONVERGED * np.abs(value), least < CONVERGED * np.abs(best)
            relative = error * np.abs(best) < least * np.abs(value)
            better = np.where(
                close & closest, relative, np.where(close == closest, error < least, close)
            )
            best = np.where(better, value, best)
            spread = np.where(better, change, spread)
            rounding = np.where(better, noise, rounding)
    return best, spread, rounding


def tiny(noise: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The noise, as far as it is tiny beside the largest value: at a jump all values move far."""
    largest = np.max(np.abs(values), initial=0.0, where=np.isfinite(values))
    return np.minimum(noise, NOISE_SHARE * largest)


def sizes(x: np.ndarray) -> np.ndarray:
    """How far each element may move: |x|, and where x is zero what is usual in the others."""
    size = np.abs(x)
    usual = float(np.median(size[size > 0])) if size.any() else 1.0
    return np.where(size > 0, size, usual)
