"""Adafactor: Adam's second moment from its row and column means alone.

For a matrix of n rows and m columns it keeps n + m numbers instead of n m:

    beta2_t = 1 - t^beta2_decay                             0 in the first step, then towards 1
    R = beta2_t R + (1 - beta2_t) mean over columns of g²   (n, 1)
    C = beta2_t C + (1 - beta2_t) mean over rows of g²      (1, m)
    V = R C / mean(R)                                       rank one, the best in I-divergence
    U = g / sqrt(V),  U = U / max(1, rms(U) / d)            no update larger than d
    w = w - max(eps2, rms(w)) min(lr, 1 / sqrt(t)) U        relative to the weight's own size

Vectors keep the full V. Arrays of more than two dimensions are factored over their last two.

Source: Shazeer & Stern 2018 (arXiv 1804.04235), algorithms 4 and 5. The implementations disagree
with it and with each other, and this one is PyTorch's:

- lr. The paper's relative step size is min(0.01, 1/sqrt(t)), with no lr; here lr takes the place
  of 0.01. transformers has the paper's under relative_step=True.
- eps1. The paper, and transformers, add 1e-30 to g² before the means. Here nothing is added; V is
  kept at or above eps1², and mean(R) at or above eps1, where None means the dtype's own spacing.
  The difference shows only where gradients are near 0.
- Weight decay. The paper has none. Here w shrinks by lr * weight_decay; in transformers by
  weight_decay times the whole relative step, rms(w) included.
- The paper sums where all of these take means, which is the same V.
"""

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from minitorch.optim.optimizer import NON_NEGATIVE, Group, Optimizer, Rule
from minitorch.tensor import Tensor


class Adafactor(Optimizer):
    """Factored second moment, clipped updates, steps relative to the size of the weights.

    eps = (eps1, eps2): eps1 keeps the second moment off 0, eps2 is the least size that a weight
    is taken to have. d is the largest root mean square that an update may have.
    """

    by_number: ClassVar = False
    rules: ClassVar = {
        "lr": NON_NEGATIVE,
        "beta2_decay": Rule(lambda value: value <= 0, "a number of at most 0"),
        "eps": Rule(
            lambda value: len(value) == 2 and (value[0] is None or value[0] >= 0) and value[1] >= 0,
            "a pair: None or a number of at least 0, and a number of at least 0",
        ),
        "d": Rule(lambda value: value >= 1, "a number of at least 1"),
        "weight_decay": NON_NEGATIVE,
    }

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
    ):
        super().__init__(
            params, lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay
        )

    def state_shapes(self, shape: tuple[int, ...], group: Group) -> dict[str, tuple[int, ...]]:
        if len(shape) < 2:
            return {"variance": shape}
        return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}

    def update(
        self, weight: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: Group
    ) -> None:
        step, lr, (eps1, eps2) = state["step"], group["lr"], group["eps"]
        eps1 = float(np.finfo(weight.dtype).eps) if eps1 is None else eps1
        relative_step = min(lr, 1 / math.sqrt(step)) * max(eps2, _rms(weight))
        weight *= 1 - lr * group["weight_decay"]
        update = _second_moment(grad, state, rate=step ** group["beta2_decay"], eps=eps1)
        np.maximum(update, eps1**2, out=update)
        np.sqrt(update, out=update)
        np.divide(grad, update, out=update)
        update *= relative_step / max(1.0, _rms(update) / group["d"])
        weight -= update


def _second_moment(
    grad: np.ndarray, state: dict[str, Any], *, rate: float, eps: float
) -> np.ndarray:
    """Move the means towards grad² by rate; return V, a new array of the shape of grad."""
    squared = grad * grad
    if grad.ndim < 2:
        _lerp(state["variance"], squared, rate)
        return state["variance"].copy()
    row_var, col_var = state["row_var"], state["col_var"]
    _lerp(row_var, squared.mean(axis=-1, keepdims=True), rate)
    _lerp(col_var, squared.mean(axis=-2, keepdims=True), rate)
    mean = np.maximum(row_var.mean(axis=-2, keepdims=True), eps)
    return np.multiply(row_var / mean, col_var, out=squared)


def _lerp(mean: np.ndarray, value: np.ndarray, rate: float) -> None:
    mean *= 1 - rate
    mean += rate * value


def _rms(array: np.ndarray) -> float:
    return float(np.linalg.norm(array)) / math.sqrt(array.size)
