r"""Which experts a token goes to, with what weights, and what spreading tokens evenly costs.

    weights, indices, places, offs = route(logits, k)

The choice has no derivative; the weights of those that were chosen have one, and so does the sum
that the losses for balance are, `expected_cost`. What is done with places and offs is in
ops/experts.py. Source: Shazeer et al. 2017, "Outrageously large neural networks", section 2.
"""

from functools import partial
from math import inf
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


def _routing_reference(
    logits: Tensor,
    indices: Tensor,
    *,
    score_function: str,
    norm_topk_prob: bool,
    scaling_factor: float,
) -> Tensor:
    if score_function == "softmax":
        if norm_topk_prob:
            return scaling_factor * softmax(logits.gather(1, indices), 1)
        return scaling_factor * softmax(logits, 1).gather(1, indices)
    weights = logits.gather(1, indices).sigmoid()
    if norm_topk_prob:
        weights = weights / weights.sum(1, keepdim=True)
    return scaling_factor * weights


_routing_weights = fused(
    "routing_weights",
    _kernel("routing_weights"),
    kernel="routing_weights",
    reference=_routing_reference,
    backward=lambda grad, logits, indices, score_function, norm_topk_prob, scaling_factor: [
        _kernel("routing_weights_backward")(
            grad,
            logits,
            indices,
            score_function=score_function,
            norm_topk_prob=norm_topk_prob,
            scaling_factor=scaling_factor,
        )
    ],
    autocast="raise",
    inputs=("logits", "indices"),
    formula=r"\lambda \, s_{i_j} / \textstyle\sum_l s_{i_l}",
    samples=lambda: [
        sample(
            2 * real(3, 5),
            np.array([[4, 0], [1, 2], [3, 1]]),
            score_function=score_function,
            norm_topk_prob=norm_topk_prob,
            scaling_factor=1.5,
        )
        for score_function in ("softmax", "sigmoid")
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

    logits: (tokens, experts). Scores s are the "softmax" over all experts or the "sigmoid" of each;
    the weights are those of the chosen, divided by their sum with norm_topk_prob (of a softmax, the
    softmax over the chosen), and times scaling_factor. expert_bias: (experts,), added to s to
    choose, not to weigh, and without a gradient: it balances the load (DeepSeek-V3). A token's
    experts are in kept_groups of so many equal groups, those whose group_best highest scores (with
    the bias) sum highest, which bounds how many devices it is sent to. Returns weights; indices,
    int64, in descending order of what chose them, the lower index first in a tie; and the places
    and offs of moe_permute. One kernel, on the CPU and on a GPU; by parts in half precision.
    Raises ConfigError and ShapeError for what does not fit.

    Source: Shazeer et al. 2017, section 2; DeepSeek-AI 2024, "DeepSeek-V2", section 2.2.2, and
    "DeepSeek-V3", equations 13 to 16. In Megatron-LM: topk_routing_with_score_function; the options
    are named as in transformers.
    """
    check_score_function("route", score_function)
    experts = logits.shape[-1]
    size = experts // max(groups, 1)
    if (
        logits.ndim != 2
        or size * groups != experts
        or not 1 <= kept_groups <= groups
        or not 1 <= k <= kept_groups * size
        or not 1 <= group_best <= size
    ):
        raise ShapeError(
            "route: expected logits (tokens, experts), groups that divide the experts, "
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
    array, *found = run(kernel, logits.data, None if expert_bias is None else expert_bias.data)
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
    ranks = logits.detach()
    ranks = ranks.sigmoid() if weighing["score_function"] == "sigmoid" else softmax(ranks, -1)
    if expert_bias is not None:
        ranks = ranks + expert_bias.detach()
    if kept_groups < groups:
        by_group = ranks.reshape(len(ranks), groups, -1)
        strength = topk(by_group, group_best).values.sum(-1)
        chosen = one_hot(topk(strength, kept_groups).indices, groups).sum(1) > 0
        ranks = by_group.masked_fill(~chosen.unsqueeze(-1), -inf).reshape(*ranks.shape)
    indices = topk(ranks, k).indices
    weights = routing_weights(logits, indices, **weighing)
    return Routed(weights, indices, *expert_places(indices, logits.shape[1]))


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

    logits: (tokens, experts); indices: (tokens, k), the experts of each token, whose shape is
    returned. Raises ConfigError and ShapeError for what does not fit.
    """
    check_score_function("routing_weights", score_function)
    if logits.ndim != 2 or indices.ndim != 2 or len(logits) != len(indices):
        raise ShapeError(
            "routing_weights: expected logits (tokens, experts) and indices (tokens, k); got "
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
