"""Gradient clipping: one scale for all gradients, so that the direction of the step is kept.

    total = |(g_1, g_2, ...)|,   g_i = g_i min(1, max_norm / (total + 1e-6))

The norm is that of all gradients together as one vector, not of each by itself. Source: Pascanu et
al. 2012 (arXiv 1211.5063), algorithm 1; the 1e-6 is PyTorch's, so that figures agree.
"""

import math
from collections.abc import Iterable

import numpy as np

from minitorch.backend import device_of, half_precision
from minitorch.errors import ConfigError, GraphError
from minitorch.kernels import lookup
from minitorch.tensor import Tensor


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale the gradients so that their joint norm is at most max_norm; return the norm before.

    norm_type: the p of the p-norm, or math.inf for the largest absolute value. Parameters without
    a gradient do not count. A norm that is not finite spreads to all gradients, unless
    error_if_nonfinite asks for a GraphError.
    """
    if not (max_norm >= 0 and norm_type > 0):
        raise ConfigError(
            "clip_grad_norm_: expected max_norm of at least 0 and norm_type above 0; "
            f"got {max_norm} and {norm_type}"
        )
    grads = _gradients(parameters)
    total = _total_norm(grads, norm_type)
    if error_if_nonfinite and not math.isfinite(total):
        raise GraphError(
            f"clip_grad_norm_: expected finite gradients; got a norm of {total}. Skip this step, "
            "or find the operation with minitorch.detect_anomaly()"
        )
    scale = _scale(total, max_norm)
    if scale != 1:
        for grad in grads:
            grad.data *= grad.dtype.type(scale)
            grad.bump_version()
    wide = any(grad.dtype == np.float64 for grad in grads)
    return Tensor(total, dtype=np.float64 if wide else np.float32)


def clip_grad_scale(parameters: Tensor | Iterable[Tensor], max_norm: float) -> tuple[float, float]:
    """(the gradients' joint norm, the factor that clips it to max_norm): nothing is changed.

    `optimizer.step(grad_scale=factor)` then clips as it updates, without a pass of its own over the
    gradients. Parameters without a gradient do not count.
    """
    if not max_norm >= 0:
        raise ConfigError(f"clip_grad_scale: expected max_norm of at least 0; got {max_norm}")
    total = _total_norm(_gradients(parameters), 2.0)
    return total, _scale(total, max_norm)


def _scale(total: float, max_norm: float) -> float:
    scale = max_norm / (total + 1e-6)
    return 1.0 if scale >= 1 else scale


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Bring every entry of every gradient into [-clip_value, clip_value]."""
    if not clip_value >= 0:
        raise ConfigError(f"clip_grad_value_: expected clip_value of at least 0; got {clip_value}")
    for grad in _gradients(parameters):
        bound = grad.dtype.type(clip_value)
        np.clip(grad.data, -bound, bound, out=grad.data)
        grad.bump_version()


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """The distinct gradients: one that two parameters hold is to be scaled once."""
    params = [parameters] if isinstance(parameters, Tensor) else parameters
    grads = [param.grad for param in params]
    return list({id(grad): grad for grad in grads if grad is not None}.values())


def _total_norm(grads: list[Tensor], norm_type: float) -> float:
    if norm_type == 2 and grads:
        return lookup("l2_norm", device_of(grads[0].data))([grad.data for grad in grads])
    norms = np.array([_norm(grad.data, norm_type) for grad in grads], dtype=np.float64)
    return _norm(norms, norm_type)


def _norm(array: np.ndarray, norm_type: float) -> float:
    flat = array.ravel()
    if half_precision(flat.dtype):
        flat = flat.astype(np.float32)
    if norm_type == math.inf:
        return float(np.max(np.abs(flat), initial=0.0))
    return float(np.sum(np.abs(flat) ** norm_type)) ** (1 / norm_type)
