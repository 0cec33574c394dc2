"""Every way of computing a derivative against every other, at one point of one function."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import ml_dtypes
import numpy as np

from minitorch import autograd, modes
from minitorch.gradcheck.differences import ULP, Differences, tiny
from minitorch.gradcheck.report import TOLERANCES, Finding, Report, Tolerance
from minitorch.gradcheck.sweeps import Function, join, pull
from minitorch.tensor import Tensor, wrap

FULL_JACOBIAN = 64  # inputs or outputs of up to so many elements are compared entry by entry
PROJECTIONS = 6  # random directions, or cotangents, for larger ones
BAND = 1e3  # entries of a large gradient that differ by more are projected apart
HIDDEN = 1e-2  # a value of which rounding errors could hide so large a part is not resolved
_ORDERS: tuple[Literal["C", "F"], ...] = ("C", "F")


class Problem(Differences):
    """A function at a point, and the checks of its derivatives there."""

    def __init__(
        self,
        f: Function,
        arguments: Sequence[Any],
        moving: Sequence[int],
        step: float,
        tolerance: Tolerance,
        seed: int,
        is_gradient: bool = False,
    ):
        super().__init__(f, arguments, moving, step, tolerance, seed)
        self.is_gradient = is_gradient

    def check(self) -> Report:
        """Every check of the first order, on contiguous inputs and on others."""
        report = Report()
        point = self.point
        variables, outputs = self.record(point)
        shapes = [y.shape for y in outputs]
        v = self.random.standard_normal((1, sum(y.numel() for y in outputs)))
        names, columns = self._directions(self.shapes, self.reverse(point, v)[0])
        forward = self.forward(point, columns)
        rows = self._directions(shapes, np.abs(forward).max(0, initial=0.0))[1]
        reverse = self.reverse(point, rows)
        where = lambda k, entry: f"input {names[k]}, output entry {entry}"  # noqa: E731
        numeric, error = self._differences(columns, forward)
        forward_inexact = cache(lambda: tiny(self._rounding(self.forward, columns), forward))
        reverse_inexact = cache(
            lambda: np.abs(columns) @ tiny(self._rounding(self.reverse, rows), reverse).T
        )
        scatter = cache(lambda: self._scatter(columns, forward, numeric))
        self.compare(
            report,
            "forward",
            forward,
            numeric,
            where,
            error,
            lambda: forward_inexact() + scatter(),
            columns,
        )
        pulled, products = columns @ reverse.T, np.abs(columns) @ np.abs(reverse).T
        expected, spread = numeric @ rows.T, error @ np.abs(rows).T + 8 * ULP * products
        self.compare(
            report,
            "reverse",
            pulled,
            expected,
            where,
            spread,
            lambda: reverse_inexact() + scatter() @ np.abs(rows).T,
            columns,
            rows,
        )
        self.compare(
            report,
            "<v, Ju> = <vJ, u>",
            pulled,
            forward @ rows.T,
            where,
            8 * ULP * products,
            lambda: reverse_inexact() + forward_inexact() @ np.abs(rows).T,
        )
        if not self.is_gradient:
            graph = self.reverse(point, rows, create_graph=True)
            self.compare_gradients(report, "create_graph=True", reverse, graph, rows, point)
        self._check_zero(report, variables, outputs)
        self._check_layouts(report, v)
        return report

    def _directions(
        self, shapes: Sequence[tuple[int, ...]], sizes: np.ndarray
    ) -> tuple[list[str], np.ndarray]:
        """Unit vectors of the joined space, named, or random ones where it is large.

        sizes: how large the Jacobian is along each coordinate. The random directions mix all of
        them; where sizes differ by more than BAND, there are also some for each magnitude alone.
        """
        total = sum(math.prod(shape) for shape in shapes)
        if total <= FULL_JACOBIAN:
            names = [
                f"{i}{list(entry)}" for i, shape in enumerate(shapes) for entry in np.ndindex(shape)
            ]
            return names, np.eye(total)
        names = [f"random direction {k}" for k in range(PROJECTIONS)]
        directions = [self.random.standard_normal(total) for _ in names]
        magnitude = np.floor(np.log(np.abs(sizes) / np.max(np.abs(sizes))) / np.log(BAND))
        bands = np.unique(magnitude)
        for band in bands if len(bands) > 1 else ():
            inside = magnitude == band
            names.append(f"random direction of entries {BAND**band:.0e} of the largest")
            directions.append(np.where(inside, self.random.standard_normal(total), 0.0))
        return names, np.stack(directions)

    def compare(
        self,
        report: Report,
        check: str,
        analytic: np.ndarray,
        expected: np.ndarray,
        where: Callable[[int, int], str],
        bound: np.ndarray | float,
        inexact: Callable[[], np.ndarray],
        directions: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        """Every entry against its own limit. All arrays: (directions, outputs or cotangents).

        bound: the error of what is expected. inexact(): the rounding error of what is compared
        with it, computed where it may matter.
        """
        if not analytic.size:
            return
        a, e = analytic, expected
        report.comparisons += a.size
        same = (a == e) | (np.isnan(a) & np.isnan(e))
        error = np.where(same, 0.0, np.abs(a - e))
        error = np.where(np.isnan(error), np.inf, error)
        slack = self.tolerance.atol + np.broadcast_to(bound, a.shape)
        if directions is not None:
            largest = np.maximum(np.abs(a), np.abs(e))
            report.unresolved += int(np.sum((slack > HIDDEN * largest) & (largest > 0)))
        limit = self.tolerance.rtol * np.abs(e) + slack
        if not np.all(error <= limit):
            slack = slack + inexact()
            limit = self.tolerance.rtol * np.abs(e) + slack
        wrong = ~(error <= limit) & ~same
        rtol = max(self.tolerance.rtol, ULP)
        beyond = np.where(same | (error == 0), 0.0, error / (np.abs(e) + slack / rtol))
        beyond[np.isnan(beyond)] = np.inf
        report.worst = max(report.worst, float(np.max(beyond)))
        if not wrong.any():
            return
        share = np.where(wrong, np.minimum(beyond, 1.0), -1.0)
        worst = np.where(share == share.max(), error, -1.0)
        k, entry = (int(i) for i in np.unravel_index(int(np.argmax(worst)), worst.shape))
        kink = directions is not None and self._is_kink(
            directions[k], entry if rows is None else rows[entry], float(error[k, entry])
        )
        report.findings.append(
            Finding(
                check,
                where(k, entry),
                float(a[k, entry]),
                float(e[k, entry]),
                float(error[k, entry]),
                kink,
                float(limit[k, entry]),
                int(wrong.sum()),
                wrong.size,
            )
        )

    def _check_zero(
        self, report: Report, variables: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        zeros = [np.zeros(y.shape) for y in outputs]
        pulled = join(pull(variables, outputs, zeros))
        if pulled.size and not np.all(pulled == 0):
            worst = float(pulled[np.argmax(np.abs(np.nan_to_num(pulled, nan=np.inf)))])
            report.findings.append(Finding("zero cotangent", "some input", worst, 0.0, abs(worst)))

    def _check_layouts(self, report: Report, cotangent: np.ndarray) -> None:
        """The same gradient twice, from permuted memory, and from broadcast inputs."""
        expected = self.reverse(self.point, cotangent)
        again = self.reverse(self.point, cotangent)
        if not np.array_equal(expected, again, equal_nan=True):
            gap = float(np.max(np.abs(expected - again)))
            report.findings.append(Finding("reentrancy", "a second run", gap, 0.0, gap))
        permuted = [np.array(x, order="F") for x in self.point]
        found = self.reverse(permuted, cotangent, order="F")
        self.compare_gradients(
            report, "permuted memory", found, expected, cotangent, permuted, self.point
        )
        for i, x in enumerate(self.point):
            if x.ndim == 0 or x.shape[0] < 2:
                continue
            wide = np.broadcast_to(x[:1], x.shape)
            plain, strided = list(self.point), list(self.point)
            plain[i], strided[i] = wide.copy(), wide
            try:
                found, expected = (self.reverse(arrays, cotangent) for arrays in (strided, plain))
            except ValueError:
                continue  # f is not defined where rows are equal, or its shape depends on values
            self.compare_gradients(
                report, f"input {i} broadcast", found, expected, cotangent, strided, plain
            )

    def _gradient(
        self, arrays: Sequence[np.ndarray], cotangent: Sequence[np.ndarray]
    ) -> np.ndarray:
        variables, outputs = self.record(arrays)
        return join(pull(variables, outputs, cotangent))[None]

    def compare_gradients(
        self,
        report: Report,
        check: str,
        found: np.ndarray,
        expected: np.ndarray,
        cotangents: np.ndarray,
        *points: Sequence[np.ndarray],
    ) -> None:
        """Rows v J of two computations, entry by entry: (cotangents, inputs) each.

        points: the inputs, in every layout in which they were used.
        """

        def inexact() -> np.ndarray:
            def measured(graph: bool, order: Literal["C", "F"]) -> list[np.ndarray]:
                sweep = lambda x, v: self.reverse(x, v, graph, order)  # noqa: E731
                return [self._rounding(sweep, cotangents, point) for point in points]

            ways = [measured(graph, order) for graph in (False, True) for order in _ORDERS]
            return np.max(ways, axis=(0, 1))

        self.compare(
            report,
            check,
            found,
            expected,
            lambda k, entry: f"{entry_name(points[0], entry)}, cotangent {k}",
            0.0,
            inexact,
        )

    def gradient(self) -> "Problem":
        """The problem of the gradient: (variables, cotangents) -> v J, itself differentiable."""
        _, outputs = self.record(self.point)
        v = [self.random.standard_normal(y.shape) for y in outputs]
        count = len(self.moving)

        def pulled(*tensors: Tensor) -> list[Tensor]:
            with modes.enable_grad():
                variables = [
                    x.alias() if x.requires_grad else x.detach().requires_grad_()
                    for x in tensors[:count]
                ]
                results, _ = self._call(variables)
                pairs = [
                    (y, v) for y, v in zip(results, tensors[count:], strict=True) if y.requires_grad
                ]
                if not pairs:
                    return []
                found = autograd.grad(
                    [y for y, _ in pairs],
                    variables,
                    [v for _, v in pairs],
                    create_graph=any(x.requires_grad for x in tensors),
                    allow_unused=True,
                )
            return [g for g in found if g is not None]

        point = [wrap(x) for x in [*self.point, *v]]
        return Problem(
            pulled, point, range(len(point)), self.step, self.tolerance, self.seed + 1, True
        )

    def compare_dtype(self, report: Report, dtype: np.dtype) -> None:
        """Gradients in a smaller dtype against float64's, both at the rounded point."""
        rounded = [x.astype(dtype) for x in self.point]
        point = [x.astype(np.float64) for x in rounded]
        _, outputs = self.record(point)
        v = [self.random.standard_normal(y.shape).astype(dtype) for y in outputs]
        exact = [c.astype(np.float64) for c in v]
        found, expected = self._gradient(rounded, v), self._gradient(point, exact)
        ulp = float(ml_dtypes.finfo(dtype).eps)
        before, self.tolerance = self.tolerance, TOLERANCES[dtype]
        inner = Report()
        self.compare(
            inner,
            f"{dtype} against float64",
            found,
            expected,
            lambda k, entry: entry_name(point, entry),
            0.0,
            lambda: self._rounding(self.reverse, join(exact)[None], point, ulp),
        )
        self.tolerance = before
        inner.worst = 0.0
        report.merge(inner)


def entry_name(arrays: Sequence[np.ndarray], entry: int) -> str:
    """The input and the index of an entry of the joined space, such as "input 0[1, 2]"."""
    for i, x in enumerate(arrays):
        if entry < x.size:
            return f"input {i}{[int(n) for n in np.unravel_index(entry, x.shape)]}"
        entry -= x.size
    raise IndexError(entry)
