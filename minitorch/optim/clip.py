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
            f"clip_grad_norm_: expected finite gradients; got a norm of {float(total)}. Skip this "
            "step, or find the operation with minitorch.detect_anomaly()"
        )
    scale = _scale(total, max_norm)
    if scale.device != "cpu" or scale.item() != 1:
        for grad in grads:
            grad.data *= scale.data.astype(grad.dtype)
            grad.bump_version()
    return total if any(grad.dtype == np.float64 for grad in grads) else total.float()


def clip_grad_scale(
    parameters: Tensor | Iterable[Tensor], max_norm: float
) -> tuple[Tensor, Tensor]:
    """(the gradients' joint norm, the factor that clips it to max_norm): nothing is changed.

    `optimizer.step(grad_scale=factor)` then clips as it updates, without a pass of its own over the
    gradients. Parameters without a gradient do not count. Both are of no dimensions, in float64,
    where the gradients are; nothing waits for a GPU.
    """
    if not max_norm >= 0:
        raise ConfigError(f"clip_grad_scale: expected max_norm of at least 0; got {max_norm}")
    total = _total_norm(_gradients(parameters), 2.0)
    return total, _scale(total, max_norm)


def _scale(total: Tensor, max_norm: float) -> Tensor:
    return (max_norm / (total + 1e-6)).clamp(max=1.0)


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


def _total_norm(grads: list[Tensor], norm_type: float) -> Tensor:
    """Of no dimensions, in float64."""
    if norm_type == 2 and grads:
        return Tensor(lookup("l2_norm", device_of(grads[0].data))([grad.data for grad in grads]))
    norms = np.array([_norm(grad.data, norm_type) for grad in grads], dtype=np.float64)
    return Tensor(np.array(_norm(norms, norm_type)))


def _norm(array: np.ndarray, norm_type: float) -> float:
    flat = array.ravel()
    if half_precision(flat.dtype):
        flat = flat.astype(np.float32)
    if norm_type == math.inf:
        return float(np.max(np.abs(flat), initial=0.0))
    return float(np.sum(np.abs(flat) ** norm_type)) ** (1 / norm_type)
