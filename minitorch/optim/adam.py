"""Adam and AdamW, which differ in one line: where the weight decay enters.

    m = beta1 m + (1 - beta1) g            mean of the gradients
    v = beta2 v + (1 - beta2) g²           mean of their squares
    m̂ = m / (1 - beta1^t),  v̂ = v / (1 - beta2^t)        both began at 0; this undoes the bias
    w = w - lr m̂ / (sqrt(v̂) + eps)

These lines are the kernel `adamw_steps`, for all parameters in one sweep; its reference is in
kernels/reference/optimizers.py.

Adam (Kingma & Ba 2014, arXiv 1412.6980, algorithm 1) with an L2 penalty adds weight_decay * w to g
before the moments. The penalty is then divided by sqrt(v̂) like everything else: weights with large
gradients are hardly decayed, and where the loss is flat every weight moves by about lr, whatever
its size. AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm 2) shrinks the weight itself,
w = (1 - lr weight_decay) w, by the same factor everywhere.

eps is outside the root and added after the correction of v, as in the paper's algorithm and in
PyTorch. The form at the end of the paper's section 2, which TensorFlow and OpenAI's code use, adds
it before: lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps), a larger eps early on.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from minitorch.backend import device_of
from minitorch.kernels import lookup
from minitorch.kernels.reference.optimizers import Scale, scaled
from minitorch.optim.optimizer import BETAS, NON_NEGATIVE, Group, Numbers, Optimizer, Part
from minitorch.tensor import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw_steps(
    parts: Sequence[Part], numbers: Callable[[Group], dict[str, Any]], grad_scale: Scale
) -> None:
    """The kernel on all parameters at once, in place; numbers(group) are its own but for step."""
    if not parts:
        return
    lookup("adamw_steps", device_of(parts[0].weight))(
        [part.weight for part in parts],
        [part.grad for part in parts],
        *[[part.state[name] for part in parts] for name in MOMENTS],
        Numbers(parts, lambda part: {"step": part.state["step"], **numbers(part.group)}),
        grad_scale=grad_scale,
        copies=[part.copy for part in parts],
        rows=[part.rows for part in parts],
    )


class Adam(Optimizer):
    """Adam; weight_decay is an L2 penalty that passes through the moments."""

    rules: ClassVar = {
        "lr": NON_NEGATIVE,
        "betas": BETAS,
        "eps": NON_NEGATIVE,
        "weight_decay": NON_NEGATIVE,
    }
    capturable: ClassVar = True
    in_rows: ClassVar = True

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

    def update_all(self, parts: Sequence[Part], grad_scale: Scale) -> None:
        penalised = []
        for part in parts:
            grad = scaled(part.grad, grad_scale)
            at = ... if part.rows is None else part.rows
            grad += part.group["weight_decay"] * part.weight[at]
            penalised.append(part._replace(grad=grad))
        adamw_steps(penalised, lambda group: self._numbers(group) | {"weight_decay": 0.0}, 1.0)


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

    def update_all(self, parts: Sequence[Part], grad_scale: Scale) -> None:
        adamw_steps(parts, self._numbers, grad_scale)
