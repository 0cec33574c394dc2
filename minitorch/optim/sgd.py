"""Stochastic gradient descent with momentum.

    g = grad + weight_decay * w            (an L2 penalty: its gradient joins the loss's)
    b = momentum * b + (1 - dampening) * g (b = g in the first step)
    w = w - lr * b                         or, with Nesterov, w - lr * (g + momentum * b)

The learning rate multiplies the buffer, as in PyTorch. In Sutskever et al. 2013 ("On the importance
of initialization and momentum in deep learning", eq. 3-4) it is inside the buffer, so that a change
of lr there acts on new gradients alone.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from minitorch.errors import ConfigError
from minitorch.optim.optimizer import FLAG, NON_NEGATIVE, Group, Optimizer, Rule
from minitorch.tensor import Tensor


class SGD(Optimizer):
    """Gradient descent with momentum, dampening, Nesterov's look-ahead and an L2 penalty."""

    rules: ClassVar = {
        "lr": NON_NEGATIVE,
        "momentum": NON_NEGATIVE,
        "dampening": Rule(lambda value: 0 <= value <= 1, "a number in [0, 1]"),
        "weight_decay": NON_NEGATIVE,
        "nesterov": FLAG,
    }

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ConfigError(
                "SGD: expected momentum above 0 and no dampening with nesterov; got "
                f"momentum={group['momentum']}, dampening={group['dampening']}"
            )

    def state_shapes(self, shape: tuple[int, ...], group: Group) -> dict[str, tuple[int, ...]]:
        return {"momentum_buffer": shape} if group["momentum"] else {}

    def update(
        self, weight: np.ndarray, grad: np.ndarray, state: dict[str, Any], group: Group
    ) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * weight
        direction = grad
        if momentum:
            buffer = state["momentum_buffer"]
            buffer *= momentum
            buffer += grad if state["step"] == 1 else (1 - group["dampening"]) * grad
            direction = grad + momentum * buffer if group["nesterov"] else buffer
        weight -= group["lr"] * direction
