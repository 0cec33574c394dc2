"""How far an analytic derivative may be from what is expected, and what was found."""

from dataclasses import dataclass, field, replace

from minitorch import backend


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
