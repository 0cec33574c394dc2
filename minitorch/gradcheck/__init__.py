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

from minitorch.gradcheck.check import gradcheck
from minitorch.gradcheck.primitives import check_primitive
from minitorch.gradcheck.report import TOLERANCES, Finding, Report, Tolerance

__all__ = ["TOLERANCES", "Finding", "Report", "Tolerance", "check_primitive", "gradcheck"]
