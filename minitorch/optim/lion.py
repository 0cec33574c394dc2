"""Lion: every weight moves by lr, and only the sign is learnt.

    u = sign(beta1 m + (1 - beta1) g)
    w = w - lr (u + weight_decay w)
    m = beta2 m + (1 - beta2) g

These lines are the kernel `lion_steps`, for all parameters in one sweep; its reference is in
kernels/reference/optimizers.py.

One moment instead of Adam's two. The update has the same size everywhere, which is larger than
Adam's, so lr is 3 to 10 times smaller and weight_decay as many times larger than for AdamW.

Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms" (arXiv 2302.06675),
program 1 and section 5. sign(0) is 0.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from minitorch.backend import device_of
from minitorch.kernels import lookup
from minitorch.kernels.reference.optimizers import Scale
from minitorch.optim.optimizer import BETAS, NON_NEGATIVE, Group, Numbers, Optimizer, Part
from minitorch.tensor import Tensor


class Lion(Optimizer):
    """Sign of an interpolated momentum, with decoupled weight decay."""

    rules: ClassVar = {"lr": NON_NEGATIVE, "betas": BETAS, "weight_decay": NON_NEGATIVE}
    in_rows: ClassVar = True
    capturable: ClassVar = True

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

    def update_all(self, parts: Sequence[Part], grad_scale: Scale) -> None:
        if not parts:
            return
        lookup("lion_steps", device_of(parts[0].weight))(
            [part.weight for part in parts],
            [part.grad for part in parts],
            [part.state["exp_avg"] for part in parts],
            Numbers(parts, lambda part: self._numbers(part.group)),
            grad_scale=grad_scale,
            copies=[part.copy for part in parts],
            rows=[part.rows for part in parts],
        )
