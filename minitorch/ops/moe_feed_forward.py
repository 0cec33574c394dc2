r"""A layer of experts in one call, to decode with: routing, experts, and a layer that all share.

For one token the Python between operations is most of a layer's time. What it is made of, with
derivatives, is in ops/routing.py and ops/experts.py.
"""

from typing import Any

from minitorch.errors import ShapeError
from minitorch.ops.definition import _kernel
from minitorch.ops.experts import SharedExpert, check_shared
from minitorch.ops.primitive import nondifferentiable
from minitorch.ops.routing import check_score_function, rows_of
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor


def _feed_forward(
    x: Any, router: Any, bias: Any, gate_up: Any, down: Any, shared_gate: Any, shared_up: Any,
    shared_down: Any, scale: Any, **routing: Any,
) -> Any:  # fmt: skip
    rows, shared = rows_of(x), (shared_gate, shared_up, shared_down, scale)
    logits = _kernel("linear")(rows, router, None)
    weights, _, places, offs = _kernel("route")(logits, bias, **routing)
    out = _kernel("moe_swiglu")(rows, weights, gate_up, down, places, offs, *shared)[0]
    return out.reshape(x.shape)


_ROUTING: dict[str, Any] = {
    "k": 2,
    "score_function": "softmax",
    "norm_topk_prob": False,
    "scaling_factor": 1.5,
    "groups": 1,
    "kept_groups": 1,
    "group_best": 1,
}

_moe_feed_forward = nondifferentiable(
    "moe_feed_forward",
    _feed_forward,
    inputs=(
        *("x", "router", "bias", "gate_up", "down"),
        *("shared_gate", "shared_up", "shared_down", "scale"),
    ),
    formula=r"\sum_{e \in \text{top-}k} s_e E_e(x) + \sigma(w^\top x) E(x)",
    samples=lambda: [
        sample(
            *(real(3, 4), real(5, 4, seed=1), None, real(5, 6, 4), real(5, 4, 3)),
            *(real(2, 4, seed=2), real(2, 4, seed=3), real(4, 2, seed=4), real(1, 4, seed=5)),
            **_ROUTING,
        ),
        sample(
            *(real(1, 3, 4), real(5, 4, seed=1), real(5), real(5, 6, 4), real(5, 4, 3)),
            *(None, None, None, None),
            **_ROUTING | {"score_function": "sigmoid", "norm_topk_prob": True},
        ),
    ],
    why="to decode; the operations that it is made of have derivatives",
)


def moe_feed_forward(
    x: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    k: int,
    score_function: str = "softmax",
    norm_topk_prob: bool = False,
    expert_bias: Tensor | None = None,
    scaling_factor: float = 1.0,
    groups: int = 1,
    kept_groups: int = 1,
    group_best: int = 1,
    shared: SharedExpert | None = None,
    shared_scale: Tensor | None = None,
) -> Tensor:
    """A layer of experts in one call, without derivatives: for one token Python is most of it.

    x: (..., width); router: (experts, width); gate_up, down, shared, shared_scale:
    moe_swiglu's; from k on the options are route's. All of one dtype, float32 or float64. It
    computes what linear, route and moe_swiglu would. Raises ShapeError where x and the weights
    disagree.
    """
    check_score_function("moe_feed_forward", score_function)
    experts, width = router.shape if router.ndim == 2 else (0, 0)
    hidden = down.shape[-1]
    wanted: list[tuple[int, ...]] = [(experts, 2 * hidden, width), (experts, width, hidden)]
    given: list[tuple[int, ...]] = [gate_up.shape, down.shape]
    check_shared("moe_feed_forward", width, shared, shared_scale)
    if x.ndim < 2 or x.shape[-1] != width or given != wanted:
        raise ShapeError(
            f"moe_feed_forward: expected x (..., {width}) and weights {wanted} for a router "
            f"{router.shape}; got {x.shape} and {given}"
        )
    meta = {
        "k": k,
        "score_function": score_function,
        "norm_topk_prob": norm_topk_prob,
        "scaling_factor": scaling_factor,
        "groups": groups,
        "kept_groups": kept_groups,
        "group_best": group_best,
    }
    weights = [router, expert_bias, gate_up, down, *(shared or (None, None, None)), shared_scale]
    return apply(_moe_feed_forward, [x, *weights], meta)
