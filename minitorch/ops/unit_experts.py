r"""Experts of one hidden unit each, of tables with any number of them: what PEER computes.

Source: He 2024, "Mixture of a million experts" (arXiv 2407.04153), equation 1.
"""

from typing import Any

import numpy as np

from minitorch.errors import ShapeError
from minitorch.ops.definition import _kernel
from minitorch.ops.fused import gelu
from minitorch.ops.indexing import embedding
from minitorch.ops.primitive import fused
from minitorch.ops.promotion import promote
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor


def _reference(x: Tensor, weights: Tensor, down: Tensor, up: Tensor, index: Tensor) -> Tensor:
    read = (embedding(index, down) @ x.unsqueeze(-1)).squeeze(-1)
    units = weights * gelu(read)
    return (units.unsqueeze(1) @ embedding(index, up)).squeeze(1)


def _forward(x: Any, weights: Any, down: Any, up: Any, index: Any) -> tuple[Any, dict[str, Any]]:
    out, pre = _kernel("unit_experts")(x, weights, down, up, index)
    return out, {"pre": pre}


_INDEX = np.array([[4, 0, 1], [1, 1, 3]])

_unit_experts = fused(
    "unit_experts",
    _forward,
    kernel="unit_experts",
    reference=_reference,
    backward=lambda grad, x, weights, down, up, index, pre, needs: _kernel("unit_experts_backward")(
        grad, x, weights, down, up, index, pre, needs=needs
    ),
    extras=("pre",),
    autocast="lower",
    inputs=("x", "weights", "down", "up", "index"),
    formula=r"\sum_j w_{tj} \operatorname{gelu}(\langle d_{i_{tj}}, x_t \rangle) u_{i_{tj}}",
    samples=lambda: [sample(real(2, 4), real(2, 3), real(5, 4), real(5, 4), _INDEX)],
)


def unit_experts(x: Tensor, weights: Tensor, down: Tensor, up: Tensor, index: Tensor) -> Tensor:
    """The sum over each token's experts of weight gelu(<down row, x>) up row: (tokens, width).

    x: (tokens, width); weights: (tokens, k), in the dtype of x or converted to it; down, up:
    (experts, width), of which expert i is row i; index: (tokens, k), integers. The same as two
    embeddings and two products; on the CPU one kernel, which reads the k rows of a token where they
    lie and copies none. Raises ShapeError where these disagree.
    In PyTorch: embedding_bag(index, up, per_sample_weights) of what an embedding of down gives.
    """
    if (
        x.ndim != 2
        or index.ndim != 2
        or len(index) != len(x)
        or weights.shape != index.shape
        or down.ndim != 2
        or down.shape != up.shape
        or down.shape[1] != x.shape[1]
    ):
        raise ShapeError(
            "unit_experts: expected x (tokens, width), weights and index (tokens, k), down and up "
            f"(experts, width); got {x.shape}, {weights.shape}, {index.shape}, {down.shape} and "
            f"{up.shape}"
        )
    x, down, up = promote([x, down, up])
    weights = weights.to(x.dtype)
    return apply(_unit_experts, [x, weights, down, up, index], {})
