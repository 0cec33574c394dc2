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

    In float64, a fused primitive's value and gradient are also compared with its reference's on
    NumPy's kernels, for all implementations of its own that take NumPy's arrays.
    """
    inputs = [
        Tensor(x.astype(dtype) if x.dtype == np.float64 else x) if isinstance(x, np.ndarray) else x
        for x in sample.inputs
    ]

    def call(*tensors: Any) -> Tensor:
        return apply(primitive, tensors, sample.meta)

    report = gradcheck(call, inputs, order=order, seed=seed, raise_exception=False)
    if isinstance(primitive, Fused) and dtype == backend.float64:
        _compare_with_reference(report, primitive, inputs, sample.meta, seed)
    return report


@np.errstate(all="ignore")
def _compare_with_reference(
    report: Report, primitive: Fused, inputs: Sequence[Any], meta: dict[str, Any], seed: int
) -> None:
    moving = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]

    def problem(f: Function) -> Problem:
        return Problem(f, inputs, moving, LONGEST, TOLERANCES[backend.float64], seed)

    kernel = problem(lambda *xs: apply(primitive, xs, meta))
    reference = problem(lambda *xs: primitive.reference(*xs, **meta))
    point = reference.point
    with kernels.prefer("numpy"):
        value = reference.evaluate(point)[None]
        rows = reference.random.standard_normal((PROJECTIONS, value.size))
        if value.size <= FULL_JACOBIAN:
            rows = np.eye(value.size)
        gradient = reference.reverse(point, rows, create_graph=True)

    @kernels.prefer("numpy")
    def noise() -> np.ndarray:
        return AMPLIFICATION * reference.noise()[None]

    for name in ("numpy", "cpu", "simt"):
        check, entry = f"{name} kernel", lambda _, i: f"output entry {i}"
        with kernels.prefer(name):
            found = kernel.evaluate(point)[None], kernel.reverse(point, rows)
            kernel.compare(report, f"{check}, value", found[0], value, entry, 0.0, noise)
            kernel.compare_gradients(report, f"{check}, gradient", found[1], gradient, rows, point)
