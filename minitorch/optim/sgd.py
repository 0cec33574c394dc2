"""Stochastic gradient descent with momentum.

    g = grad + weight_decay * w            (an L2 penalty: its gradient joins the loss's)
    b = momentum * b + (1 - dampening) * g (b = g in the first step)
    w = w - lr * b                         or, with Nesterov, w - lr * (g + momentum * b)

These lines are the kernel `sgd_steps`, for all parameters in one sweep; its reference is in
kernels/reference/optimizers.py.

The learning rate multiplies the buffer, as in PyTorch. In Sutskever et al. 2013 ("On the importance
of initialization and momentum in deep learning", eq. 3-4) it is inside the buffer, so that a change
of lr there acts on new gradients alone.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from minitorch.backend import device_of
from minitorch.errors import ConfigError
from minitorch.kernels import lookup
from minitorch.kernels.reference.optimizers import Scale
from minitorch.optim.optimizer import FLAG, NON_NEGATIVE, Group, Numbers, Optimizer, Part, Rule
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
    capturable: ClassVar = True
    in_rows: ClassVar = True

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

    def update_all(self, parts: Sequence[Part], grad_scale: Scale) -> None:
        if not parts:
            return
        lookup("sgd_steps", device_of(parts[0].weight))(
            [part.weight for part in parts],
            [part.grad for part in parts],
            [part.state["momentum_buffer"] if part.group["momentum"] else None for part in parts],
            Numbers(parts, lambda part: {"step": part.state["step"], **self._numbers(part.group)}),
            grad_scale=grad_scale,
            copies=[part.copy for part in parts],
            rows=[part.rows for part in parts],
        )
