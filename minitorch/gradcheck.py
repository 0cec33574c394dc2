r"""Is this derivative right? Every way of computing it against every other.

For a function y = f(x_1, ..., x_n) the Jacobian is computed three times: from the reverse sweep,
row by row; from the forward sweep, column by column; and from central differences in float64,

    J u  =  D(h) + O(h^2),    D(h) = (f(x + h u) - f(x - h u)) / 2h .

A few steps h, each 7.3 times shorter than the one before, are extrapolated to h = 0 (Ridders 1982).
That gives every entry of J an error of its own: the spread of the extrapolations, and the noise of
f in that output divided by h. An entry has to agree within rtol times itself and its own error,
whatever its neighbours are; no tolerance is derived from the largest entry. The rounding error of
an analytic value is measured where it may matter, by moving the last digits of the inputs.

Small functions are compared entry by entry; large ones along random directions u and random
cotangents v, and along directions that keep entries of different magnitude apart. Nothing here
back-propagates a plain sum: the gradient of sum(softmax(x)) is zero, and a rule that returns zero
would pass.

Where the numeric and the analytic value differ, one-sided differences at two steps tell a wrong
rule from a kink: across a kink they stay apart as the step shrinks. A kink is reported as one, and
the tolerance is not widened for it. A complex step, f(x + ih) with no subtraction to lose digits,
would need every kernel in complex arithmetic; extrapolation from long steps loses few.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import ml_dtypes
import numpy as np

from minitorch import autograd, backend, kernels, modes
from minitorch.errors import GradcheckError, GraphError
from minitorch.ops.definition import Primitive, Sample
from minitorch.ops.primitive import Fused
from minitorch.tape import apply
from minitorch.tensor import Tensor, wrap

Function = Callable[..., Any]


@dataclass(frozen=True)
class Tolerance:
    """|analytic - expected| <= atol + rtol * |expected| + their own errors, entry by entry."""

    rtol: float
    atol: float


TOLERANCES = {
    backend.float64: Tolerance(rtol=1e-6, atol=0.0),
    backend.float32: Tolerance(rtol=2e-5, atol=0.0),
    backend.float16: Tolerance(rtol=2e-2, atol=1e-6),
    backend.bfloat16: Tolerance(rtol=1e-1, atol=0.0),
}
"""float64 is compared with finite differences; the others with the float64 gradient.

Only float16 has an absolute part: it spaces the numbers below 6e-5 by 6e-8, however small they are.
"""

FULL_JACOBIAN = 64  # inputs or outputs of up to so many elements are compared entry by entry
PROJECTIONS = 6  # random directions, or cotangents, for larger ones
BAND = 1e3  # entries of a large gradient that differ by more are projected apart
LONGEST, SHRINK = 0.06, 7.3  # steps are |x| LONGEST SHRINK**-k: no period is that of f
DEEPEST, HIGHEST = 10, -4  # the range of k
NOISE_SPACING = 1e-8  # the noise of f is measured so far around x, relative to x
CONVERGED = 1e-3  # differences that agree no better than this prove nothing
ULP = float(np.finfo(np.float64).eps)
HIDDEN = 1e-2  # a value of which rounding errors could hide so large a part is not resolved
SAFETY = 16.0  # measured rounding errors of f are believed within this factor
NOISE_SHARE = 1e-9  # no more of the largest entry passes for noise after a first comparison
NUDGES, NUDGE = 3, 16 * ULP  # the last digits are moved so often and so far, relative to x
AMPLIFICATION = 8.0  # rounding errors are so many times the largest change that this makes

_ORDERS: tuple[Literal["C", "F"], ...] = ("C", "F")


@dataclass(frozen=True)
class Finding:
    """The worst disagreement of one check.

    check: what was compared, such as "reverse" or "second order, forward".
    where: the input and the entry, or the direction; kink: the function has no derivative there.
    allowed: the error that would have passed; count: how many of the `total` values are wrong.
    """

    check: str
    where: str
    analytic: float
    expected: float
    error: float
    kink: bool = False
    allowed: float = 0.0
    count: int = 1
    total: int = 1

    def __str__(self) -> str:
        kind = f"error {self.error:.3g}, allowed {self.allowed:.2g}"
        if self.kink:
            kind = "a kink: no derivative exists"
        elif self.count > 1:
            kind += f"; {self.count} of {self.total} values are wrong"
        return (
            f"{self.check}: at {self.where} analytic {self.analytic:.9g}, expected "
            f"{self.expected:.9g} ({kind})"
        )


@dataclass
class Report:
    """What `gradcheck` found: `ok`, the findings that fail, and the worst relative error.

    worst: the largest error relative to its own entry, beyond rounding; what rtol is compared with.
    unresolved: values in which the rounding errors of f could hide an error of one percent.
    """

    findings: list[Finding] = field(default_factory=list)
    worst: float = 0.0
    comparisons: int = 0
    unresolved: int = 0

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.findings

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.ok:
            agree = f"{self.comparisons} values agree, worst relative error {self.worst:.2g}"
            if self.unresolved:
                agree += f"; in {self.unresolved} rounding errors could hide a wrong percent"
            return agree
        return "\n".join(str(finding) for finding in self.findings)

    def merge(self, other: "Report", prefix: str = "") -> None:
        """Take in another report, its checks named with a prefix."""
        self.worst = max(self.worst, other.worst)
        self.comparisons += other.comparisons
        self.unresolved += other.unresolved
        self.findings += [replace(f, check=prefix + f.check) for f in other.findings]


@np.errstate(all="ignore")  # a step may lead out of the domain of f
def gradcheck(
    f: Function,
    inputs: Sequence[Any] | Tensor,
    *,
    order: int = 1,
    step: float = LONGEST,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    raise_exception: bool = True,
) -> Report:
    """Check the derivatives of f at inputs, forward and reverse; returns a Report.

    f takes the inputs and returns a tensor (or several, in a list or tuple). inputs: tensors, and
    anything else that is handed on as it is. Derivatives are checked for the tensors that require a
    gradient, or, if none does, for all floating ones. They are checked in float64, whatever their
    dtype; gradients in a smaller dtype are then compared with those.
    order=2 also checks the derivatives of the gradient. Also checked: <v, J u> = <v J, u>, that
    create_graph=True gives the same gradient (it leaves backward kernels aside), zero cotangents,
    non-contiguous and broadcast inputs, and that a second run gives the same bits.
    step: the first step of the differences, times |x|; shorter and longer ones follow as needed.
    rtol, atol: the agreement asked of each entry beyond its own numeric error, by default 1e-6 and
    0. seed: of random directions.
    Raises GradcheckError with the worst entries, unless raise_exception is False.
    In PyTorch: torch.autograd.gradcheck and gradgradcheck.
    """
    arguments = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    moving = [i for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.requires_grad]
    if not moving:
        moving = [
            i for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.is_floating_point()
        ]
    if not moving:
        raise GraphError("gradcheck: none of the inputs is a floating tensor")
    base = TOLERANCES[backend.float64]
    tolerance = Tolerance(base.rtol if rtol is None else rtol, base.atol if atol is None else atol)
    problem = _Problem(f, arguments, moving, step, tolerance, seed)
    report = problem.check()
    if order >= 2:
        report.merge(problem.gradient().check(), "second order, ")
    dtypes = {arguments[i].dtype for i in moving} - {backend.float64}
    for dtype in dtypes:
        problem.compare_dtype(report, dtype)
    if raise_exception and not report.ok:
        raise GradcheckError(f"gradcheck failed\n{report}")
    return report


class _Problem:
    """A function of float64 arrays, the point at which it is checked, and the checks."""

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
        self.f, self.arguments, self.moving = f, list(arguments), list(moving)
        self.step, self.tolerance, self.seed = step, tolerance, seed
        self.is_gradient = is_gradient
        self.point = [np.array(arguments[i].data, np.float64) for i in moving]
        self.shapes = [x.shape for x in self.point]
        self.flat = _join(self.point)
        self.sizes = _join([_sizes(x) for x in self.point])
        self.random = np.random.default_rng(seed)

    def evaluate(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The values of f, off the tape, joined."""
        return _join([y.data for y in self._call([wrap(a) for a in arrays])[0]])

    def _call(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        full = list(self.arguments)
        for i, x in zip(self.moving, tensors, strict=True):
            full[i] = x
        value = self.f(*full)
        outputs = [value] if isinstance(value, Tensor) else list(value)
        return [y for y in outputs if y.is_floating_point()], value

    def record(self, arrays: Sequence[np.ndarray]) -> tuple[list[Tensor], list[Tensor]]:
        """(variables, outputs) on a fresh tape. The variables are nodes, so that f may write."""
        variables = [wrap(a).requires_grad_() for a in arrays]
        with modes.enable_grad():
            outputs, _ = self._call([x.alias() for x in variables])
        return variables, outputs

    def forward(self, arrays: Sequence[np.ndarray], directions: np.ndarray) -> np.ndarray:
        """J u for each row u of directions, by a fresh tape: (directions, outputs)."""
        variables, outputs = self.record(arrays)
        rows = [_forward(variables, outputs, _split(u, self.shapes)) for u in directions]
        return _stack(rows, outputs)

    def reverse(
        self,
        arrays: Sequence[np.ndarray],
        cotangents: np.ndarray,
        create_graph: bool = False,
        order: Literal["C", "F"] = "C",
    ) -> np.ndarray:
        """v J for each row v of cotangents, by a fresh tape: (cotangents, inputs).

        order: of the memory in which the cotangents arrive.
        """
        variables, outputs = self.record(arrays)
        shapes = [y.shape for y in outputs]
        rows = []
        for row in cotangents:
            v = [np.array(part, order=order) for part in _split(row, shapes)]
            rows.append(_reverse(variables, outputs, v, create_graph))
        return _stack(rows, variables)

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
        forward_inexact = cache(lambda: _tiny(self._rounding(self.forward, columns), forward))
        reverse_inexact = cache(
            lambda: np.abs(columns) @ _tiny(self._rounding(self.reverse, rows), reverse).T
        )
        scatter = cache(lambda: self._scatter(columns, forward, numeric))
        self._compare(
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
        self._compare(
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
        self._compare(
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

    def _differences(
        self, directions: np.ndarray, analytic: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(J u, a bound of its error) for each row u of directions: (directions, outputs) each.

        Shorter steps follow while the extrapolations of some entry disagree with each other or
        with the analytic value, longer ones while rounding errors hide it.
        """
        noise = self._noise()
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
        return self.evaluate(_split(self.flat + h * u, self.shapes))

    def _noise(self) -> np.ndarray:
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
        return _tiny(AMPLIFICATION * np.max(changes, axis=0), numeric)

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

    def _compare(
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
        pulled = _join(_reverse(variables, outputs, zeros))
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
        return _join(_reverse(variables, outputs, cotangent))[None]

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

        self._compare(
            report,
            check,
            found,
            expected,
            lambda k, entry: f"{_entry_name(points[0], entry)}, cotangent {k}",
            0.0,
            inexact,
        )

    def gradient(self) -> "_Problem":
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
        return _Problem(
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
        self._compare(
            inner,
            f"{dtype} against float64",
            found,
            expected,
            lambda k, entry: _entry_name(point, entry),
            0.0,
            lambda: self._rounding(self.reverse, _join(exact)[None], point, ulp),
        )
        self.tolerance = before
        inner.worst = 0.0
        report.merge(inner)


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


def _reverse(
    variables: Sequence[Tensor],
    outputs: Sequence[Tensor],
    cotangents: Sequence[np.ndarray],
    create_graph: bool = False,
) -> list[np.ndarray]:
    pairs = [(y, wrap(v)) for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [np.zeros_like(x.data) for x in variables]
    roots, seeds = zip(*pairs, strict=True)
    found = autograd.grad(
        list(roots),
        variables,
        list(seeds),
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
    )
    return [
        np.zeros_like(x.data) if g is None else g.data
        for x, g in zip(variables, found, strict=True)
    ]


def _forward(
    variables: Sequence[Tensor], outputs: Sequence[Tensor], tangents: Sequence[np.ndarray]
) -> list[np.ndarray]:
    pairs = [(x, wrap(u)) for x, u in zip(variables, tangents, strict=True)]
    with modes.no_grad():
        pushed = [autograd.pushforward(y, pairs) if y.requires_grad else None for y in outputs]
    return [
        np.zeros_like(y.data) if t is None else t.data for y, t in zip(outputs, pushed, strict=True)
    ]


def _join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    flat = [np.asarray(a, np.float64).reshape(-1) for a in arrays]
    return np.concatenate(flat) if flat else np.zeros(0)


def _stack(rows: Sequence[Sequence[np.ndarray]], like: Sequence[Tensor]) -> np.ndarray:
    """A matrix of joined rows, each as long as `like`, which also holds where there is no row."""
    return np.array([_join(row) for row in rows]).reshape(len(rows), sum(x.numel() for x in like))


def _split(flat: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The inverse of _join."""
    parts, start = [], 0
    for shape in shapes:
        end = start + math.prod(shape)
        parts.append(flat[start:end].reshape(shape))
        start = end
    return parts


def _tiny(noise: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The noise, as far as it is tiny beside the largest value: at a jump all values move far."""
    largest = np.max(np.abs(values), initial=0.0, where=np.isfinite(values))
    return np.minimum(noise, NOISE_SHARE * largest)


def _sizes(x: np.ndarray) -> np.ndarray:
    """How far each element may move: |x|, and where x is zero what is usual in the others."""
    size = np.abs(x)
    usual = float(np.median(size[size > 0])) if size.any() else 1.0
    return np.where(size > 0, size, usual)


def _entry_name(arrays: Sequence[np.ndarray], entry: int) -> str:
    """The input and the index of an entry of the joined space, such as "input 0[1, 2]"."""
    for i, x in enumerate(arrays):
        if entry < x.size:
            return f"input {i}{[int(n) for n in np.unravel_index(entry, x.shape)]}"
        entry -= x.size
    raise IndexError(entry)


def check_primitive(
    primitive: Primitive,
    sample: Sample,
    *,
    order: int = 2,
    dtype: np.dtype = backend.float64,
    seed: int = 0,
) -> Report:
    """gradcheck of a primitive on one of its samples, and of each of its kernels.

    A fused primitive's value and gradient are also compared with its reference's, for every
    implementation of the kernels that is there.
    """
    inputs = [
        Tensor(x.astype(dtype) if x.dtype == np.float64 else x) if isinstance(x, np.ndarray) else x
        for x in sample.inputs
    ]

    def call(*tensors: Any) -> Tensor:
        return apply(primitive, tensors, sample.meta)

    report = gradcheck(call, inputs, order=order, seed=seed, raise_exception=False)
    if isinstance(primitive, Fused):
        for name in kernels.IMPLEMENTATIONS:
            with kernels.prefer(name):
                _compare_with_reference(report, primitive, inputs, sample.meta, name, seed)
    return report


@np.errstate(all="ignore")
def _compare_with_reference(
    report: Report,
    primitive: Fused,
    inputs: Sequence[Any],
    meta: dict[str, Any],
    implementation: str,
    seed: int,
) -> None:
    moving = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]

    def problem(f: Function) -> _Problem:
        return _Problem(f, inputs, moving, LONGEST, TOLERANCES[backend.float64], seed)

    kernel = problem(lambda *xs: apply(primitive, xs, meta))
    reference = problem(lambda *xs: primitive.reference(*xs, **meta))
    point = kernel.point
    values = [p.evaluate(point)[None] for p in (kernel, reference)]
    rows = kernel.random.standard_normal((PROJECTIONS, values[0].size))
    if values[0].size <= FULL_JACOBIAN:
        rows = np.eye(values[0].size)
    name = f"{implementation} kernel"
    kernel._compare(
        report,
        f"{name}, value",
        values[0],
        values[1],
        lambda _, i: f"output entry {i}",
        0.0,
        lambda: AMPLIFICATION * reference._noise()[None],
    )
    found, expected = kernel.reverse(point, rows), reference.reverse(point, rows, create_graph=True)
    kernel.compare_gradients(report, f"{name}, gradient", found, expected, rows, point)
