r"""Which experts a token goes to, with what weights, and what spreading tokens evenly costs.

    weights, indices, places, offs = route(logits, k)

The choice has no derivative; the weights of those that were chosen have one, and so does the sum
that the losses for balance are, `expected_cost`. What is done with places and offs is in
ops/experts.py. Source: Shazeer et al. 2017, "Outrageously large neural networks", section 2.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minitorch import backend, kernels, modes
from minitorch.errors import ConfigError, ShapeError
from minitorch.ops.definition import _kernel
from minitorch.ops.general import softmax
from minitorch.ops.indexing import one_hot, topk
from minitorch.ops.primitive import fused
from minitorch.ops.samples import real, sample
from minitorch.tape import apply, computed
from minitorch.tensor import Tensor, wrap


def rows_of(x: Any) -> Any:
    """(..., features) as (tokens, features)."""
    return x.reshape(-1, x.shape[-1])


def _routing_reference(
    logits: Tensor,
    indices: Tensor,
    *,
    score_function: str,
    norm_topk_prob: bool,
    scaling_factor: float,
) -> Tensor:
    logits = rows_of(logits)
    if score_function == "softmax":
        if norm_topk_prob:
            return scaling_factor * softmax(logits.gather(1, indices), 1)
        return scaling_factor * softmax(logits, 1).gather(1, indices)
    weights = logits.gather(1, indices).sigmoid()
    if norm_topk_prob:
        weights = weights / weights.sum(1, keepdim=True)
    return scaling_factor * weights


def _weights_backward(
    grad: Any, logits: Any, indices: Any, score_function: str, norm_topk_prob: bool,
    scaling_factor: float,
) -> Any:  # fmt: skip
    found = _kernel("routing_weights_backward")(
        grad,
        rows_of(logits),
        indices,
        score_function=score_function,
        norm_topk_prob=norm_topk_prob,
        scaling_factor=scaling_factor,
    )
    return [found.reshape(logits.shape)]


_routing_weights = fused(
    "routing_weights",
    lambda logits, indices, **options: _kernel("routing_weights")(
        rows_of(logits), indices, **options
    ),
    kernel="routing_weights",
    reference=_routing_reference,
    backward=_weights_backward,
    autocast="raise",
    inputs=("logits", "indices"),
    formula=r"\lambda \, s_{i_j} / \textstyle\sum_l s_{i_l}",
    samples=lambda: [
        sample(
            2 * real(*shape),
            np.array([[4, 0], [1, 2], [3, 1], [0, 1]])[: math.prod(shape[:-1])],
            score_function=score_function,
            norm_topk_prob=norm_topk_prob,
            scaling_factor=1.5,
        )
        for score_function, shape in (("softmax", (3, 5)), ("sigmoid", (2, 2, 5)))
        for norm_topk_prob in (True, False)
    ],
)


def _expected_reference(logits: Tensor, cost: Tensor, *, score_function: str) -> Tensor:
    if score_function == "softmax":
        return (softmax(logits, -1) * cost).sum()
    scores = logits.sigmoid()
    return (scores / scores.sum(-1, keepdim=True) * cost).sum()


_expected_cost = fused(
    "expected_cost",
    _kernel("expected_cost"),
    kernel="expected_cost",
    reference=_expected_reference,
    backward=lambda grad, logits, cost, score_function, needs: _kernel("expected_cost_backward")(
        grad, logits, cost, score_function=score_function, needs=needs
    ),
    autocast="raise",
    inputs=("logits", "cost"),
    formula=r"\sum_{te} s_{te} c_{te}",
    samples=lambda: [
        sample(real(2, 3, 5), cost, score_function=score_function)
        for score_function in ("softmax", "sigmoid")
        for cost in (real(2, 1, 5), real(2, 3, 5, seed=1))
    ],
)


def expected_cost(logits: Tensor, cost: Tensor, score_function: str = "softmax") -> Tensor:
    """The sum over tokens of what an expert costs, its scores taken as probabilities: ().

    logits: (..., experts); cost: broadcastable to it; scores: "softmax", or "sigmoid" divided by
    their sum. The losses that spread tokens over experts are such sums, for costs that grow with
    how often an expert is chosen. Raises ConfigError and ShapeError for what does not fit.
    """
    check_score_function("expected_cost", score_function)
    fits = (
        logits.ndim
        and cost.ndim <= logits.ndim
        and all(
            n in (1, wanted)
            for n, wanted in zip(cost.shape[::-1], logits.shape[::-1], strict=False)
        )
    )
    if not fits:
        raise ShapeError(
            "expected_cost: expected logits (..., experts) and a cost broadcastable to them; got "
            f"{logits.shape} and {cost.shape}"
        )
    return apply(_expected_cost, [logits, cost], {"score_function": score_function})


def _balance_forward(logits: Any, indices: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    out, cost = _kernel("expert_balance")(logits, indices, **options)
    return out, {"cost": cost}


def _balance_backward(
    grad: Any, logits: Any, indices: Any, score_function: str, cost: Any
) -> tuple[Any, None]:
    rows = logits.reshape(len(cost), -1, logits.shape[-1])
    slope, _ = _kernel("expected_cost_backward")(
        grad, rows, cost, score_function=score_function, needs=(True, False)
    )
    return slope.reshape(logits.shape), None


def _balance_reference(
    logits: Tensor, indices: Tensor, *, score_function: str, sequences: int, factor: float
) -> Tensor:
    experts, k = logits.shape[-1], indices.shape[1]
    rows = logits.reshape(sequences, -1, experts)
    chosen = one_hot(indices.detach(), experts).reshape(sequences, -1, experts)
    often = chosen.to(logits.dtype).sum(1, keepdim=True) * (experts / (k * rows.shape[1]))
    return factor / len(indices) * _expected_reference(rows, often, score_function=score_function)


_expert_balance = fused(
    "expert_balance",
    _balance_forward,
    reference=_balance_reference,
    backward=_balance_backward,
    extras=("cost",),
    autocast="raise",
    inputs=("logits", "indices"),
    formula=r"\lambda \sum_e f_e P_e",
    samples=lambda: [
        sample(
            real(*shape),
            np.array([[4, 0], [1, 2], [3, 1], [0, 1], [1, 4], [2, 1]]),
            score_function=score_function,
            sequences=sequences,
            factor=0.7,
        )
        for score_function in ("softmax", "sigmoid")
        for shape, sequences in (((2, 3, 5), 2), ((6, 5), 1))
    ],
)


def expert_balance(
    logits: Tensor,
    indices: Tensor,
    score_function: str = "softmax",
    factor: float = 1.0,
    sequences: int = 1,
) -> Tensor:
    """factor times the mean over sequences of Σ_e f_e P_e: ().

    logits: (..., experts), of so many sequences of one length, which may be all tokens as one;
    indices: (tokens, k), the experts that `route` chose. f_e is how often those of a sequence chose
    expert e, 1 when even; P_e the mean of their scores, as in `expected_cost`, and alone has a
    gradient. Raises ConfigError and ShapeError for what does not fit.
    Source: Fedus et al. 2021, equation 4; with k > 1, Dai et al. 2024, equations 12 to 14.
    """
    check_score_function("expert_balance", score_function)
    tokens = math.prod(logits.shape[:-1])
    if (
        logits.ndim < 2
        or indices.ndim != 2
        or len(indices) != tokens
        or sequences < 1
        or tokens % sequences
    ):
        raise ShapeError(
            "expert_balance: expected logits (..., experts), indices (tokens, k) and a number of "
            f"sequences that divides the tokens; got {logits.shape}, {indices.shape} and "
            f"{sequences}"
        )
    meta = {"score_function": score_function, "sequences": sequences, "factor": factor}
    return apply(_expert_balance, [logits, indices], meta)


class Routed(NamedTuple):
    """weights, indices, places: (tokens, k); offs: (experts,). See `route` and `moe_permute`."""

    weights: Tensor
    indices: Tensor
    places: Tensor
    offs: Tensor


def route(
    logits: Tensor,
    k: int,
    score_function: str = "softmax",
    norm_topk_prob: bool = False,
    expert_bias: Tensor | None = None,
    scaling_factor: float = 1.0,
    groups: int = 1,
    kept_groups: int = 1,
    group_best: int = 1,
) -> Routed:
    """The k experts with the highest scores for each token, their weights, and its rows' places.

    logits: (..., experts), the tokens counted through whatever dimensions there are. Scores s are
    the "softmax" over all experts or the "sigmoid" of each; the weights are those of the chosen,
    divided by their sum with norm_topk_prob (of a softmax, the softmax over the chosen), and times
    scaling_factor. expert_bias: (experts,), added to s to choose, not to weigh, and without a
    gradient: it balances the load (DeepSeek-V3). A token's experts are in kept_groups of so many
    equal groups, those whose group_best highest scores (with the bias) sum highest, which bounds
    how many devices it is sent to. Returns weights; indices, int64, in descending order of what
    chose them, the lower index first in a tie; and the places and offs of moe_permute. One kernel,
    on the CPU and on a GPU; by parts in half precision.
    Raises ConfigError and ShapeError for what does not fit.

    Source: Shazeer et al. 2017, section 2; DeepSeek-AI 2024, "DeepSeek-V2", section 2.2.2, and
    "DeepSeek-V3", equations 13 to 16. In Megatron-LM: topk_routing_with_score_function; the options
    are named as in transformers.
    """
    check_score_function("route", score_function)
    experts = logits.shape[-1]
    size = experts // max(groups, 1)
    if (
        logits.ndim < 2
        or size * groups != experts
        or not 1 <= kept_groups <= groups
        or not 1 <= k <= kept_groups * size
        or not 1 <= group_best <= size
    ):
        raise ShapeError(
            "route: expected logits (..., experts), groups that divide the experts, "
            "kept_groups from 1 to groups, k from 1 to the experts of those, and group_best from "
            f"1 to those of a group; got {logits.shape}, {groups}, {kept_groups}, {k} and "
            f"{group_best}"
        )
    if expert_bias is not None and expert_bias.shape != (experts,):
        raise ShapeError(f"route: expected expert_bias {(experts,)}; got {expert_bias.shape}")
    limits = {"groups": groups, "kept_groups": kept_groups, "group_best": group_best}
    weighing = {
        "score_function": score_function,
        "norm_topk_prob": norm_topk_prob,
        "scaling_factor": scaling_factor,
    }
    mode, device = modes.thread.mode, backend.device_of(logits.data)
    samples = hasattr(logits.data, "levels")  # of vmap
    there = device == "cpu" or device in kernels.implementations("route")
    whole = there and not samples and not backend.half_precision(logits.dtype)
    if not whole or mode.observers or mode.anomaly:
        return _route_by_parts(logits, k, expert_bias, weighing, **limits)
    run = backend.arithmetic.copy().run
    kernel = partial(kernels.lookup("route", device), k=k, **weighing, **limits)
    bias = None if expert_bias is None else expert_bias.data
    array, *found = run(kernel, rows_of(logits.data), bias)
    indices, places, offs = map(wrap, found)
    weights = computed(_routing_weights, [logits, indices], weighing, array)
    return Routed(weights, indices, places, offs)


def _route_by_parts(
    logits: Tensor,
    k: int,
    expert_bias: Tensor | None,
    weighing: dict[str, Any],
    groups: int,
    kept_groups: int,
    group_best: int,
) -> Routed:
    ranks = rows_of(logits.detach())
    ranks = ranks.sigmoid() if weighing["score_function"] == "sigmoid" else softmax(ranks, -1)
    if expert_bias is not None:
        ranks = ranks + expert_bias.detach()
    if kept_groups < groups:
        by_group = ranks.reshape(len(ranks), groups, -1)
        strength = topk(by_group, group_best).values.sum(-1)
        chosen = one_hot(topk(strength, kept_groups).indices, groups).sum(1) > 0
        ranks = by_group.masked_fill(~chosen.unsqueeze(-1), -math.inf).reshape(*ranks.shape)
    indices = topk(ranks, k).indices
    weights = routing_weights(logits, indices, **weighing)
    return Routed(weights, indices, *expert_places(indices, logits.shape[-1]))


def topk_routing(
    logits: Tensor,
    k: int,
    score_function: str = "softmax",
    norm_topk_prob: bool = False,
    expert_bias: Tensor | None = None,
    scaling_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The weights and indices of `route`: (tokens, k) both."""
    return route(logits, k, score_function, norm_topk_prob, expert_bias, scaling_factor)[:2]


def routing_weights(
    logits: Tensor,
    indices: Tensor,
    score_function: str = "softmax",
    norm_topk_prob: bool = False,
    scaling_factor: float = 1.0,
) -> Tensor:
    """The weights of experts that were chosen in any way; the options are topk_routing's.

    logits: (..., experts); indices: (tokens, k), each token's experts, whose shape is returned.
    Raises ConfigError and ShapeError for what does not fit.
    """
    check_score_function("routing_weights", score_function)
    if logits.ndim < 2 or indices.ndim != 2 or math.prod(logits.shape[:-1]) != len(indices):
        raise ShapeError(
            "routing_weights: expected logits (..., experts) and indices (tokens, k); got "
            f"{logits.shape} and {indices.shape}"
        )
    meta = {
        "score_function": score_function,
        "norm_topk_prob": norm_topk_prob,
        "scaling_factor": scaling_factor,
    }
    return apply(_routing_weights, [logits, indices], meta)


def check_score_function(operation: str, score_function: str) -> None:
    """Raises ConfigError for any but "softmax" and "sigmoid"."""
    if score_function not in ("softmax", "sigmoid"):
        raise ConfigError(
            f'{operation}: expected score_function "softmax" or "sigmoid"; got {score_function!r}'
        )


def expert_places(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """places and offs of `moe_permute` for indices (tokens, k)."""
    find = kernels.lookup("moe_places", backend.device_of(indices.data))
    places, offs = find(indices.data, num_experts=num_experts)
    return wrap(backend.beside(places, indices.data)), wrap(backend.beside(offs, indices.data))
