"""Adam and AdamW, which differ in one line: where the weight decay enters.

    m = beta1 m + (1 - beta1) g            mean of the gradients
    v = beta2 v + (1 - beta2) g²           mean of their squares
    m̂ = m / (1 - beta1^t),  v̂ = v / (1 - beta2^t)        both began at 0; this undoes the bias
    w = w - lr m̂ / (sqrt(v̂) + eps)

These lines are the kernel `adamw_step`; its reference is in kernels/reference.py.

Adam (Kingma & Ba 2014, arXiv 1412.6980, algorithm 1) with an L2 penalty adds weight_decay * w to g
before the moments. The penalty is then divided by sqrt(v̂) like everything else: weights with large
gradients are hardly decayed, and where the loss is flat every weight moves by about lr, whatever
its size. AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm 2) shrinks the weight itself,
w = (1 - lr weight_decay) w, by the same factor everywhere.

eps is outside the root and added after the correction of v, as in the paper's algorithm and in
PyTorch. The form at the end of the paper's section 2, which TensorFlow and OpenAI's code use, adds
it before: lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps), a larger eps early on.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from minitorch.backend import device_of
from minitorch.kernels import lookup
from minitorch.optim.optimizer import BETAS, NON_NEGATIVE, Group, Optimizer
from minitorch.tensor import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw_step(weight: np.ndarray, grad: np.ndarray, state: dict[str, Any], **numbers: Any) -> None:
    """The kernel on a parameter and its state, in place."""
    kernel = lookup("adamw_step", device_of(weight))
    kernel(weight, grad, *[state[name] for name in MOMENTS], step=state["step"], **numbers)


class Adam(Optimizer):
    """Adam; weight_decay is an L2 penalty that passes through the moments."""

    rules: ClassVar = {
        "lr": NON_NEGATIVE,
        "betas": BETAS,
        "eps": NON_NEGATIVE,
        "weight_decay": NON_NEGATIVE,
    }

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def state_shapes(self, shape: tuple[int, ...], group: Group) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(MOMENTS, shape)

    def update(
        self, weight: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: Group
    ) -> None:
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * weight
        numbers = {key: group[key] for key in ("lr", "betas", "eps")}
        adamw_step(weight, grad, state, **numbers, weight_decay=0.0)


class AdamW(Adam):
    """Adam with decoupled weight decay, scaled by the (scheduled) learning rate."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)

    def update(
        self, weight: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: Group
    ) -> None:
        adamw_step(weight, grad, state, **{key: group[key] for key in self.rules})
