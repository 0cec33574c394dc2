"""The public checker: which inputs move, which orders and dtypes are checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch import backend
from minitorch.errors import GradcheckError, GraphError
from minitorch.gradcheck.differences import LONGEST
from minitorch.gradcheck.problem import Problem
from minitorch.gradcheck.report import TOLERANCES, Report, Tolerance
from minitorch.gradcheck.sweeps import Function
from minitorch.tensor import Tensor


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
    problem = Problem(f, arguments, moving, step, tolerance, seed)
    report = problem.check()
    if order >= 2:
        report.merge(problem.gradient().check(), "second order, ")
    dtypes = {arguments[i].dtype for i in moving} - {backend.float64}
    for dtype in dtypes:
        problem.compare_dtype(report, dtype)
    if raise_exception and not report.ok:
        raise GradcheckError(f"gradcheck failed\n{report}")
    return report
