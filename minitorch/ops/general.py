r"""Softmax and its relatives, whose Jacobians are diagonal plus rank one.

For s = softmax(x): J = diag(s) - s s^T, so v J = s * (v - <v, s>). The all-ones cotangent gives
zero, which is why a gradient check must never back-propagate a plain sum.
"""

from typing import Any

import numpy as np

from minitorch.errors import ShapeError
from minitorch.ops.definition import _kernel
from minitorch.ops.dims import many_dims, one_dim
from minitorch.ops.primitive import general
from minitorch.ops.reductions import _restore
from minitorch.ops.samples import real, sample
from minitorch.tensor import Tensor, method


def _softmax_samples() -> list[Any]:
    return [
        sample(real(3, 4), dim=1),
        sample(real(2, 3, 4), dim=0),
        sample(1000 * real(2, 3), dim=-1),
        sample(np.array([[0.3, float("-inf"), 1.0]]), dim=1, singular=True),
        sample(real(3, 1), dim=1),
    ]


_softmax = general(
    "softmax",
    _kernel("softmax"),
    lambda grad, out, dim: out * (grad - (grad * out).sum(dim, keepdim=True)),
    kernel="softmax",
    backward=lambda grad, out, dim: [_kernel("softmax_backward")(grad, out, dim=dim)],
    autocast="raise",
    inputs=("x",),
    formula=r"s_i = e^{x_i} / \sum_j e^{x_j}",
    jacobian=r"\operatorname{diag}(s) - s s^\top",
    samples=_softmax_samples,
    floating=True,
)


@method
def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along dim, without overflow."""
    return _softmax(x, dim=one_dim("softmax", dim, x.ndim))


_log_softmax = general(
    "log_softmax",
    _kernel("log_softmax"),
    lambda grad, out, dim: grad - out.exp() * grad.sum(dim, keepdim=True),
    kernel="log_softmax",
    backward=lambda grad, out, dim: [_kernel("log_softmax_backward")(grad, out, dim=dim)],
    autocast="raise",
    inputs=("x",),
    formula=r"y_i = x_i - \ln \sum_j e^{x_j}",
    jacobian=r"I - \mathbf{1} s^\top",
    samples=lambda: _softmax_samples()[:3],
    floating=True,
)


@method
def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """log(softmax(x)) along dim, without overflow or underflow."""
    return _log_softmax(x, dim=one_dim("log_softmax", dim, x.ndim))


def _logsumexp_vjp(
    grad: Tensor, x: Tensor, out: Tensor, dim: tuple[int, ...], keepdim: bool
) -> Tensor:
    peak = _restore(out, x.shape, dim, keepdim)
    nothing = Tensor(np.isneginf(peak.data))
    weights = (x - peak.masked_fill(nothing, 0.0)).exp()
    return _restore(grad, x.shape, dim, keepdim) * weights


_logsumexp = general(
    "logsumexp",
    _kernel("logsumexp"),
    _logsumexp_vjp,
    kernel="logsumexp",
    backward=lambda grad, x, out, dim, keepdim: [
        _kernel("logsumexp_backward")(grad, x, out, dim=dim, keepdim=keepdim)
    ],
    autocast="raise",
    inputs=("x",),
    formula=r"y = \ln \sum_i e^{x_i}",
    jacobian=r"\operatorname{softmax}(x)^\top",
    samples=lambda: [
        sample(real(3, 4), dim=(1,), keepdim=False),
        sample(real(2, 3, 4), dim=(0, 2), keepdim=True),
        sample(1000 * real(2, 3), dim=(1,), keepdim=False),
    ],
    floating=True,
)


@method
def logsumexp(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) over dim, without overflow; -inf where all of x is -inf."""
    dims = many_dims("logsumexp", dim, x.ndim)
    if not dims:
        return x
    if any(x.shape[i] == 0 for i in dims):
        raise ShapeError(f"logsumexp: no elements to reduce in shape {x.shape} over {dims}")
    return _logsumexp(x, dim=dims, keepdim=keepdim)
