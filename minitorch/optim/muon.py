"""Muon: momentum whose singular values are all set to about 1.

For a weight matrix W with gradient G (n, m):

    B = momentum B + (1 - momentum) G
    M = (1 - momentum) G + momentum B      with Nesterov, else B
    W = (1 - lr weight_decay) W - lr scale(n, m) orthogonalize(M)

If M = U S Vᵀ, the update is close to U Vᵀ, the nearest semi-orthogonal matrix: every direction of
the matrix learns at the same pace, where the gradient alone is dominated by a few. It comes from
matrix products only: five Newton-Schulz steps X = (a I + b A + c A²) X with A = X Xᵀ, which apply
the polynomial a s + b s³ + c s⁵ to every singular value s. The coefficients are chosen for
steepness at 0, not for convergence: the singular values end between about 0.7 and 1.2.

The size of U Vᵀ depends on the shape, so the step is scaled:
    "original"         sqrt(max(1, n / m))
    "match_rms_adamw"  0.2 sqrt(max(n, m)), the root mean square of AdamW's updates, so that AdamW's
                       lr and weight_decay can be kept

Muon is for the matrices inside a network. Embeddings, the head, biases and norms go into a group
with use_muon=False, which AdamW updates; `muon_groups` makes that division.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon, and its code (KellerJordan/Muon);
"match_rms_adamw": Liu et al. 2025, "Muon is Scalable for LLM Training" (arXiv 2502.16982), eq. 4.
Names and defaults are those of torch.optim.Muon; the defaults in Jordan's code are lr=0.02 and no
weight decay. Both compute the Newton-Schulz steps in bfloat16, here they are in the parameter's
own precision (float32 at the least).
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from minitorch.backend import device_of
from minitorch.errors import ConfigError
from minitorch.kernels import lookup
from minitorch.kernels.reference.optimizers import Scale
from minitorch.nn import Embedding, Module
from minitorch.optim.adam import MOMENTS, adamw_steps
from minitorch.optim.optimizer import (
    BETAS,
    FLAG,
    FRACTION,
    NON_NEGATIVE,
    Group,
    Numbers,
    Optimizer,
    Part,
    Rule,
)
from minitorch.tensor import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    matrix: np.ndarray,
    *,
    coefficients: tuple[float, float, float] = NEWTON_SCHULZ,
    steps: int = 5,
    eps: float = 1e-7,
) -> np.ndarray:
    """U p(S / |S|) Vᵀ for matrix = U S Vᵀ, where p is the polynomial applied `steps` times.

    matrix: (n, m). It is divided by its Frobenius norm |S| (at least eps) first, which brings all
    singular values into [0, 1]. The products are done on the smaller side.
    """
    x = matrix.copy()
    options = {"coefficients": coefficients, "steps": steps, "eps": eps}
    lookup("newton_schulz", device_of(x))([x], **options)
    return x


SCALES = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}


class Muon(Optimizer):
    """Muon for the groups with use_muon=True (the default), AdamW for the others.

    lr, weight_decay: of either. momentum, nesterov, ns_coefficients, ns_steps, eps, adjust_lr_fn
    ("original" or "match_rms_adamw"): of Muon. betas, adamw_eps: of AdamW.
    Raises ConfigError if a group of Muon's holds anything but matrices.
    """

    rules: ClassVar = {
        "lr": NON_NEGATIVE,
        "weight_decay": NON_NEGATIVE,
        "momentum": FRACTION,
        "nesterov": FLAG,
        "ns_coefficients": Rule(lambda value: len(value) == 3, "three numbers"),
        "ns_steps": Rule(lambda value: 1 <= value < 100, "a number of steps from 1 to 99"),
        "eps": NON_NEGATIVE,
        "adjust_lr_fn": Rule(lambda value: value in SCALES, f"one of {', '.join(SCALES)}"),
        "use_muon": FLAG,
        "betas": BETAS,
        "adamw_eps": NON_NEGATIVE,
    }
    capturable: ClassVar = True
    by_number: ClassVar = False

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = NEWTON_SCHULZ,
        ns_steps: int = 5,
        eps: float = 1e-7,
        adjust_lr_fn: str = "original",
        use_muon: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
    ):
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            ns_steps=ns_steps,
            eps=eps,
            adjust_lr_fn=adjust_lr_fn,
            use_muon=use_muon,
            betas=betas,
            adamw_eps=adamw_eps,
        )

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        for param in group["params"] if group["use_muon"] else ():
            if param.ndim != 2:
                raise ConfigError(
                    f"Muon: expected matrices; got a parameter of shape {tuple(param.shape)}. Put "
                    "it into a group with use_muon=False"
                )

    def state_shapes(self, shape: tuple[int, ...], group: Group) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("momentum_buffer",) if group["use_muon"] else MOMENTS, shape)

    def update_all(self, parts: Sequence[Part], grad_scale: Scale) -> None:
        for batch in _batches([part for part in parts if part.group["use_muon"]]):
            self._update_matrices(batch, grad_scale)
        others = [part for part in parts if not part.group["use_muon"]]
        adamw_steps(others, _adamw_numbers, grad_scale)

    def _update_matrices(self, parts: Sequence[Part], grad_scale: Scale) -> None:
        """Of one group."""
        group, device = parts[0].group, device_of(parts[0].weight)
        directions = [np.empty_like(part.weight) for part in parts]
        lookup("direction_steps", device)(
            directions,
            [part.grad for part in parts],
            [part.state["momentum_buffer"] for part in parts],
            Numbers(parts, lambda _: {name: group[name] for name in ("momentum", "nesterov")}),
            grad_scale=grad_scale,
        )
        lookup("newton_schulz", device)(
            directions,
            coefficients=group["ns_coefficients"],
            steps=group["ns_steps"],
            eps=group["eps"],
        )
        lookup("sgd_steps", device)(
            [part.weight for part in parts],
            directions,
            [None] * len(parts),
            Numbers(parts, _descent_numbers),
            copies=[part.copy for part in parts],
        )


BATCH = 1 << 22
"""Numbers in the matrices of a batch, but for the last of them."""


def _batches(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Some matrices of a group at a time: a kernel takes many, but each needs a direction."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        if batch and (size >= BATCH or part.group is not batch[0].group):
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part.weight.size
    if batch:
        yield batch


def _descent_numbers(part: Part) -> dict[str, Any]:
    """w = w - lr scale (direction + weight_decay / scale w)"""
    group = part.group
    scale = SCALES[group["adjust_lr_fn"]](*part.weight.shape)
    return {"step": 1, "lr": group["lr"] * scale, "weight_decay": group["weight_decay"] / scale}


def _adamw_numbers(group: Group) -> dict[str, Any]:
    return {key: group[key] for key in ("lr", "betas", "weight_decay")} | {
        "eps": group["adamw_eps"]
    }


def muon_groups(
    model: Module, *, adamw_lr: float, exclude: Collection[str] = ("lm_head",)
) -> list[Group]:
    """The two parameter groups for Muon: the matrices inside the model, and all the rest.

    What is frozen is in neither.
    To the rest belong all that is not a matrix, the weights of every Embedding, whatever is tied
    to one, and the modules whose name ends in one of `exclude`. It gets lr=adamw_lr.
    """
    rest = {id(param) for param in model.parameters() if param.ndim != 2}
    for name, module in model.named_modules():
        if isinstance(module, Embedding) or name.rpartition(".")[2] in exclude:
            rest.update(id(param) for param in module.parameters())
    trained = [param for param in model.parameters() if param.requires_grad]
    matrices = [param for param in trained if id(param) not in rest]
    others = [param for param in trained if id(param) in rest]
    groups: list[Group] = [
        {"name": "matrices", "params": matrices},
        {"name": "others", "params": others, "use_muon": False, "lr": adamw_lr},
    ]
    return [group for group in groups if group["params"]]
