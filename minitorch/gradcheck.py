r"""Is this derivative right? Every way of computing it against every other.

For a function y = f(x_1, ..., x_n) the Jacobian is computed three times: from the reverse sweep,
row by row; from the forward sweep, column by column; and from central differences,

    J u  =  (f(x + h u) - f(x - h u)) / 2h  +  O(h^2)

in float64, where the truncation error h^2 and the rounding error 1e-16 / h balance at about 1e-5.
Small functions are compared entry by entry; large ones along random directions u and random
cotangents v. Nothing here back-propagates a plain sum: the gradient of sum(softmax(x)) is zero, and
a rule that returns zero would pass.

Where the numeric and the analytic value differ, one-sided differences at two steps tell a wrong
rule from a kink: across a kink they stay apart as the step shrinks. A kink is reported as one, and
the tolerance is not widened for it. A complex step, f(x + ih) with no subtraction to lose digits,
would need every kernel in complex arithmetic; float64 differences reach a relative error of 1e-9.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitorch import autograd, backend, kernels, modes
from minitorch.errors import GradcheckError, GraphError
from minitorch.ops.primitive import Fused, Primitive, Sample
from minitorch.tensor import Tensor, wrap

Function = Callable[..., Any]


@dataclass(frozen=True)
class Tolerance:
    """|analytic - expected| <= atol + rtol * scale, scale being the largest expected magnitude."""

    rtol: float
    atol: float


TOLERANCES = {
    backend.float64: Tolerance(rtol=1e-6, atol=1e-8),
    backend.float32: Tolerance(rtol=2e-5, atol=2e-6),
    backend.float16: Tolerance(rtol=2e-2, atol=2e-3),
    backend.bfloat16: Tolerance(rtol=1e-1, atol=2e-2),
}
"""float64 is compared with finite differences; the others with the float64 gradient."""

STEP = 1e-5
FULL_JACOBIAN = 64  # inputs or outputs of up to so many elements are compared entry by entry
PROJECTIONS = 6  # random directions, or cotangents, for larger ones


@dataclass(frozen=True)
class Finding:
    """The worst disagreement of one check.

    check: what was compared, such as "reverse" or "second order, forward".
    where: the input and the entry, or the direction; kink: the function has no derivative there.
    """

    check: str
    where: str
    analytic: float
    expected: float
    error: float
    kink: bool = False

    def __str__(self) -> str:
        kind = "a kink: no derivative exists" if self.kink else f"error {self.error:.3g}"
        return (
            f"{self.check}: at {self.where} analytic {self.analytic:.9g}, expected "
            f"{self.expected:.9g} ({kind})"
        )


@dataclass
class Report:
    """What `gradcheck` found: `ok`, the findings that fail, and the worst relative error."""

    findings: list[Finding] = field(default_factory=list)
    worst: float = 0.0
    comparisons: int = 0

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.findings

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.ok:
            return f"{self.comparisons} values agree, worst relative error {self.worst:.2g}"
        return "\n".join(str(finding) for finding in self.findings)

    def merge(self, other: "Report", prefix: str = "") -> None:
        """Take in another report, its checks named with a prefix."""
        self.worst = max(self.worst, other.worst)
        self.comparisons += other.comparisons
        for f in other.findings:
            self.findings.append(
                Finding(prefix + f.check, f.where, f.analytic, f.expected, f.error, f.kink)
            )


def gradcheck(
    f: Function,
    inputs: Sequence[Any] | Tensor,
    *,
    order: int = 1,
    eps: float = STEP,
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
    order=2 also checks the derivatives of the gradient. Also checked: <v, J u> = <v J, u>, zero
    cotangents, non-contiguous and broadcast inputs, and that a second run gives the same bits.
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
    problem = _Problem(f, arguments, moving, eps, tolerance, seed)
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
        eps: float,
        tolerance: Tolerance,
        seed: int,
    ):
        self.f, self.arguments, self.moving = f, list(arguments), list(moving)
        self.eps, self.tolerance, self.seed = eps, tolerance, seed
        self.point = [np.array(arguments[i].data, np.float64) for i in moving]
        self.random = np.random.default_rng(seed)

    def evaluate(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The values of f, off the tape."""
        return [y.data for y in self._call([wrap(a) for a in arrays])[0]]

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

    def pull(
        self, arrays: Sequence[np.ndarray], cotangents: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """v J for each variable, by a fresh reverse sweep."""
        variables, outputs = self.record(arrays)
        return _reverse(variables, outputs, cotangents)

    def check(self) -> Report:
        """Every check of the first order, on contiguous inputs and on others."""
        report = Report()
        variables, outputs = self.record(self.point)
        directions = list(self._directions([x.shape for x in variables]))
        cotangents = list(self._directions([y.shape for y in outputs]))
        numeric = [_join(self._difference(u)) for _, u in directions]
        forward = [_join(_forward(variables, outputs, u)) for _, u in directions]
        reverse = [_join(_reverse(variables, outputs, v)) for _, v in cotangents]
        names = [name for name, _ in directions]
        self._compare(report, "forward", forward, numeric, names, directions)
        rows = [_join(v) for _, v in cotangents]
        columns = [_join(u) for _, u in directions]
        pulled = [np.array([row @ u for row in reverse]) for u in columns]
        expected = [np.array([v @ y for v in rows]) for y in numeric]
        self._compare(report, "reverse", pulled, expected, names, directions, rows)
        inner = [np.array([v @ y for v in rows]) for y in forward]
        self._compare(report, "<v, Ju> = <vJ, u>", pulled, inner, names)
        self._check_zero(report, variables, outputs)
        self._check_layouts(report, cotangents[-1][1])
        return report

    def _directions(
        self, shapes: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Named unit vectors of the joined space, or random ones where it is large."""
        total = sum(int(np.prod(shape)) for shape in shapes)
        if 0 < total <= FULL_JACOBIAN:
            for i, shape in enumerate(shapes):
                for entry in np.ndindex(shape):
                    unit = [np.zeros(s) for s in shapes]
                    unit[i][entry] = 1.0
                    yield f"{i}{list(entry)}", unit
        else:
            for k in range(PROJECTIONS):
                yield (
                    f"random direction {k}",
                    [self.random.standard_normal(shape) for shape in shapes],
                )

    def _difference(self, u: Sequence[np.ndarray], scale: float = 1.0) -> list[np.ndarray]:
        h = self.eps * scale
        above = self.evaluate([x + h * d for x, d in zip(self.point, u, strict=True)])
        below = self.evaluate([x - h * d for x, d in zip(self.point, u, strict=True)])
        return [(a - b) / (2 * h) for a, b in zip(above, below, strict=True)]

    def _is_kink(self, u: Sequence[np.ndarray], row: np.ndarray | None, entry: int) -> bool:
        """Whether the one-sided slopes stay apart as the step shrinks tenfold."""

        def gap(scale: float) -> float:
            h = self.eps * scale
            above, here, below = (
                _join(self.evaluate([x + t * d for x, d in zip(self.point, u, strict=True)]))
                for t in (h, 0.0, -h)
            )
            bend = (above - 2 * here + below) / h
            return abs(float(bend[entry] if row is None else row @ bend))

        wide, narrow = gap(10.0), gap(1.0)
        return wide > 1e-3 and narrow > 0.5 * wide

    def _compare(
        self,
        report: Report,
        check: str,
        analytic: Sequence[np.ndarray],
        expected: Sequence[np.ndarray],
        names: Sequence[str],
        directions: Sequence[tuple[str, list[np.ndarray]]] | None = None,
        rows: Sequence[np.ndarray] | None = None,
    ) -> None:
        if not analytic or not analytic[0].size:
            return
        a, e = np.array(analytic), np.array(expected)
        report.comparisons += a.size
        scale = float(np.max(np.abs(e), initial=0.0, where=np.isfinite(e)))
        with np.errstate(invalid="ignore"):
            error = np.where((a == e) | (np.isnan(a) & np.isnan(e)), 0.0, np.abs(a - e))
        error = np.where(np.isnan(error), np.inf, error)
        limit = self.tolerance.atol + self.tolerance.rtol * scale
        k, entry = (int(i) for i in np.unravel_index(int(np.argmax(error)), error.shape))
        report.worst = max(report.worst, float(error[k, entry]) / max(scale, 1e-2))
        if error[k, entry] <= limit:
            return
        kink = directions is not None and self._is_kink(
            directions[k][1], None if rows is None else rows[entry], entry
        )
        where = f"input {names[k]}, output entry {entry}"
        report.findings.append(
            Finding(check, where, float(a[k, entry]), float(e[k, entry]), error[k, entry], kink)
        )

    def _check_zero(
        self, report: Report, variables: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        zeros = [np.zeros(y.shape) for y in outputs]
        pulled = _join(_reverse(variables, outputs, zeros))
        if pulled.size and not np.all(pulled == 0):
            worst = float(pulled[np.argmax(np.abs(np.nan_to_num(pulled, nan=np.inf)))])
            report.findings.append(Finding("zero cotangent", "some input", worst, 0.0, abs(worst)))

    def _check_layouts(self, report: Report, cotangent: Sequence[np.ndarray]) -> None:
        """The same gradient twice, from permuted memory, and from broadcast inputs."""
        expected = _join(self.pull(self.point, cotangent))
        again = _join(self.pull(self.point, cotangent))
        if not np.array_equal(expected, again, equal_nan=True):
            gap = float(np.max(np.abs(expected - again)))
            report.findings.append(Finding("reentrancy", "a second run", gap, 0.0, gap))
        permuted = [np.array(x, order="F") for x in self.point]
        transposed = [np.array(v, order="F") for v in cotangent]
        name = ["some entry"]
        self._compare(
            report, "permuted memory", [_join(self.pull(permuted, transposed))], [expected], name
        )
        for i, x in enumerate(self.point):
            if x.ndim == 0 or x.shape[0] < 2:
                continue
            wide = np.broadcast_to(x[:1], x.shape)
            plain, strided = list(self.point), list(self.point)
            plain[i], strided[i] = wide.copy(), wide
            try:
                outcomes = [_join(self.pull(arrays, cotangent)) for arrays in (strided, plain)]
            except ValueError:
                continue  # f is not defined where rows are equal, or its shape depends on values
            self._compare(report, f"input {i} broadcast", [outcomes[0]], [outcomes[1]], name)

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
                    create_graph=True,
                    allow_unused=True,
                )
            return [g for g in found if g is not None]

        point = [wrap(x) for x in [*self.point, *v]]
        return _Problem(pulled, point, range(len(point)), self.eps, self.tolerance, self.seed + 1)

    def compare_dtype(self, report: Report, dtype: np.dtype) -> None:
        """Gradients in a smaller dtype against float64's, both at the rounded point."""
        rounded = [x.astype(dtype) for x in self.point]
        _, outputs = self.record([x.astype(np.float64) for x in rounded])
        v = [self.random.standard_normal(y.shape).astype(dtype) for y in outputs]
        exact = _join(
            self.pull([x.astype(np.float64) for x in rounded], [c.astype(np.float64) for c in v])
        )
        small = _join(self.pull(rounded, v))
        before, self.tolerance = self.tolerance, TOLERANCES[dtype]
        inner = Report()
        self._compare(inner, f"{dtype} against float64", [small], [exact], ["some entry"])
        self.tolerance = before
        inner.worst = 0.0
        report.merge(inner)


def _reverse(
    variables: Sequence[Tensor], outputs: Sequence[Tensor], cotangents: Sequence[np.ndarray]
) -> list[np.ndarray]:
    pairs = [(y, wrap(v)) for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [np.zeros_like(x.data) for x in variables]
    roots, seeds = zip(*pairs, strict=True)
    found = autograd.grad(list(roots), variables, list(seeds), retain_graph=True, allow_unused=True)
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
        return autograd.apply(primitive, tensors, sample.meta)

    report = gradcheck(call, inputs, order=order, seed=seed, raise_exception=False)
    if isinstance(primitive, Fused):
        for name in kernels.IMPLEMENTATIONS:
            with kernels.prefer(name):
                _compare_with_reference(report, primitive, inputs, sample.meta, name, seed)
    return report


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
        return _Problem(f, inputs, moving, STEP, TOLERANCES[backend.float64], seed)

    kernel = problem(lambda *xs: autograd.apply(primitive, xs, meta))
    reference = problem(lambda *xs: primitive.reference(*xs, **meta))
    values = [_join(p.evaluate(p.point)) for p in (kernel, reference)]
    _, outputs = kernel.record(kernel.point)
    v = [kernel.random.standard_normal(y.shape) for y in outputs]
    gradients = [_join(p.pull(p.point, v)) for p in (kernel, reference)]
    name = ["some entry"]
    kernel._compare(report, f"{implementation} kernel, value", values[:1], values[1:], name)
    kernel._compare(
        report, f"{implementation} kernel, gradient", gradients[:1], gradients[1:], name
    )
