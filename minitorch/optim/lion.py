"""Lion: every weight moves by lr, and only the sign is learnt.

    u = sign(beta1 m + (1 - beta1) g)
    w = w - lr (u + weight_decay w)
    m = beta2 m + (1 - beta2) g

One moment instead of Adam's two. The update has the same size everywhere, which is larger than
Adam's, so lr is 3 to 10 times smaller and weight_decay as many times larger than for AdamW.

Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms" (arXiv 2302.06675),
program 1 and section 5. sign(0) is 0.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from minitorch.optim.optimizer import BETAS, NON_NEGATIVE, Group, Optimizer
from minitorch.tensor import Tensor


class Lion(Optimizer):
    """Sign of an interpolated momentum, with decoupled weight decay."""

    rules: ClassVar = {"lr": NON_NEGATIVE, "betas": BETAS, "weight_decay": NON_NEGATIVE}

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)

    def state_shapes(self, shape: tuple[int, ...], group: Group) -> dict[str, tuple[int, ...]]:
        return {"exp_avg": shape}

    def update(
        self, weight: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: Group
    ) -> None:
        lr, (beta1, beta2), exp_avg = group["lr"], group["betas"], state["exp_avg"]
        weight *= 1 - lr * group["weight_decay"]
        direction = beta1 * exp_avg
        direction += (1 - beta1) * grad
        np.sign(direction, out=direction)
        direction *= lr
        weight -= direction
        exp_avg *= beta2
        exp_avg += (1 - beta2) * grad
