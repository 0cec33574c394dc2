"""A primitive on its samples, and each of its kernels against its reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch import backend, kernels
from minitorch.gradcheck.check import gradcheck
from minitorch.gradcheck.differences import AMPLIFICATION, LONGEST
from minitorch.gradcheck.problem import FULL_JACOBIAN, PROJECTIONS, Problem
from minitorch.gradcheck.report import TOLERANCES, Report
from minitorch.gradcheck.sweeps import Function
from minitorch.ops.definition import Primitive, Sample
from minitorch.ops.primitive import Fused
from minitorch.tape import apply
from minitorch.tensor import Tensor


def check_primitive(
    primitive: Primitive,
    sample: Sample,
    *,
    order: int = 2,
    dtype: np.dtype = backend.float64,
    seed: int = 0,
) -> Report:
    """gradcheck of a primitive on one of its samples, and of each of its kernels.

    A fused primitive's value and gradient are also compared with its reference's, for the
    implementations of its kernels that take NumPy's arrays.
    """
    inputs = [
        Tensor(x.astype(dtype) if x.dtype == np.float64 else x) if isinstance(x, np.ndarray) else x
        for x in sample.inputs
    ]

    def call(*tensors: Any) -> Tensor:
        return apply(primitive, tensors, sample.meta)

    report = gradcheck(call, inputs, order=order, seed=seed, raise_exception=False)
    if isinstance(primitive, Fused):
        for name in ("numpy", "cpu", "simt"):
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

    def problem(f: Function) -> Problem:
        return Problem(f, inputs, moving, LONGEST, TOLERANCES[backend.float64], seed)

    kernel = problem(lambda *xs: apply(primitive, xs, meta))
    reference = problem(lambda *xs: primitive.reference(*xs, **meta))
    point = kernel.point
    values = [p.evaluate(point)[None] for p in (kernel, reference)]
    rows = kernel.random.standard_normal((PROJECTIONS, values[0].size))
    if values[0].size <= FULL_JACOBIAN:
        rows = np.eye(values[0].size)
    name = f"{implementation} kernel"
    kernel.compare(
        report,
        f"{name}, value",
        values[0],
        values[1],
        lambda _, i: f"output entry {i}",
        0.0,
        lambda: AMPLIFICATION * reference.noise()[None],
    )
    found, expected = kernel.reverse(point, rows), reference.reverse(point, rows, create_graph=True)
    kernel.compare_gradients(report, f"{name}, gradient", found, expected, rows, point)
