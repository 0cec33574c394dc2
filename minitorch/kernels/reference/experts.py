"""Mixture of experts: places of tokens sorted by expert, the way there and back, grouped products.

An assignment is a token t and one of its k choices j; places[t, j] is where it stands when all are
sorted by expert, equal ones in their order. Rows there belong to expert e from offs[e - 1] to
offs[e]. `moe_permute`, `moe_unpermute` and `moe_dot` are the derivatives of one trilinear form,

    Σ over t, j of weights[t, j] <rows[places[t, j]], x[t]>

and each is the derivative of the others; so are `grouped_mm` and `grouped_outer`. Source: Gale et
al. 2022, "MegaBlocks"; Tan et al. 2024, "Scattered mixture-of-experts".
"""

from itertools import pairwise
from typing import Any

import numpy as np

from minitorch.backend import array_module
from minitorch.errors import ShapeError
from minitorch.kernels.reference.parts import part
from minitorch.kernels.table import register

Array = Any


@register("moe_places", "numpy")
def moe_places(indices: Array, *, num_experts: int) -> tuple[Array, Array]:
    """places: the shape of indices, (tokens, k), which are experts; offs: (num_experts,). int64."""
    check_experts(indices, num_experts)
    places = np.empty(indices.size, np.int64)
    places[np.argsort(indices.reshape(-1), kind="stable")] = np.arange(indices.size)
    counts = np.bincount(indices.reshape(-1), minlength=num_experts)
    return places.reshape(indices.shape), np.cumsum(counts)


def check_experts(indices: Array, num_experts: int) -> None:
    """Raises ShapeError unless all indices are in [0, num_experts)."""
    if indices.size and not 0 <= indices.min() <= indices.max() < num_experts:
        raise ShapeError(
            f"moe_permute: expected indices in [0, {num_experts}), the experts; "
            f"got values from {indices.min()} to {indices.max()}"
        )


@register("moe_permute", "numpy")
def moe_permute(x: Array, weights: Array | None, places: Array) -> Array:
    """rows[places[t, j]] = weights[t, j] x[t]; weights None: 1.

    x: (tokens, features); weights, places: (tokens, k). Returns (tokens k, features).
    """
    rows = np.empty((places.size, x.shape[1]), x.dtype)
    rows[places] = x[:, None] if weights is None else weights[:, :, None] * x[:, None]
    return rows


@register("moe_unpermute", "numpy")
def moe_unpermute(rows: Array, weights: Array | None, places: Array) -> Array:
    """x[t] = Σ over j of weights[t, j] rows[places[t, j]]. Returns (tokens, features)."""
    picked = rows[places]
    return picked.sum(1) if weights is None else (weights[:, None] @ picked)[:, 0]


@register("moe_dot", "numpy")
def moe_dot(rows: Array, x: Array, places: Array) -> Array:
    """weights[t, j] = <rows[places[t, j]], x[t]>. Returns (tokens, k)."""
    return (rows[places] @ x[:, :, None])[:, :, 0]


@register("grouped_mm", "numpy")
def grouped_mm(x: Array, weight: Array, offs: Array) -> Array:
    """out[r] = x[r] weight[e] for the rows r of each group e.

    x: (rows, k); weight: (groups, k, n); offs: (groups,), where groups end. Returns (rows, n).
    """
    out = np.empty((len(x), weight.shape[2]), x.dtype)
    for e, group in enumerate(groups_of(offs)):
        np.matmul(x[group], weight[e], out=out[group])
    return out


@register("grouped_outer", "numpy")
def grouped_outer(x: Array, grad: Array, offs: Array) -> Array:
    """out[e] = x_eᵀ grad_e, of the rows of each group. x: (rows, m); grad: (rows, n).

    Returns (groups, m, n).
    """
    out = np.empty((len(offs), x.shape[1], grad.shape[1]), x.dtype)
    for e, group in enumerate(groups_of(offs)):
        np.matmul(x[group].T, grad[group], out=out[e])
    return out


def groups_of(offs: Array) -> list[slice]:
    """The rows of each group."""
    ends = [0, *offs.tolist()]
    return [slice(begin, end) for begin, end in pairwise(ends)]


@register("moe_swiglu", "numpy")
def moe_swiglu(
    x: Array,
    weights: Array | None,
    gate_up: Array,
    down: Array,
    places: Array,
    offs: Array,
    shared_gate: Array | None = None,
    shared_up: Array | None = None,
    shared_down: Array | None = None,
    shared_scale: Array | None = None,
) -> tuple[Array, Array, Array | None, Array | None]:
    """out[t] = Σ over j of weights[t, j] down[e] (silu(gate) * up), (gate, up) = gate_up[e] x[t].

    x: (tokens, width); weights, places: (tokens, k); gate_up: (experts, 2 hidden, width); down:
    (experts, width, hidden); offs: (experts,). To this the shared expert, with matrices (its
    hidden, width) twice and (width, its hidden), adds what it makes of x[t], times the logistic
    function of shared_scale x[t], if that is given: (1, width).

    Returns (tokens, width), and what the backward needs: gate and up of all rows, (tokens k, 2
    hidden), those of the shared expert, (tokens, 2 its hidden), and its weights, (tokens,).
    """
    mm, linear = part("grouped_mm", x), part("linear", x)
    both = mm(part("moe_permute", x)(x, None, places), gate_up.swapaxes(1, 2), offs)
    rows = mm(part("swiglu", x)(*_halves(both)), down.swapaxes(1, 2), offs)
    out, shared_both, shares = part("moe_unpermute", x)(rows, weights, places), None, None
    if shared_gate is not None:
        pair = linear(x, shared_gate, None), linear(x, shared_up, None)
        shared_both = np.concatenate(pair, 1)
        shared = linear(part("swiglu", x)(*pair), shared_down, None)
        if shared_scale is not None:
            shares = part("sigmoid", x)(x @ shared_scale[0])
            shared = shares[:, None] * shared
        out = out + shared
    return out, both, shared_both, shares


@register("moe_swiglu_backward", "numpy")
def moe_swiglu_backward(
    grad: Array,
    x: Array,
    weights: Array | None,
    gate_up: Array,
    down: Array,
    places: Array,
    offs: Array,
    shared_gate: Array | None,
    shared_up: Array | None,
    shared_down: Array | None,
    shared_scale: Array | None,
    both: Array,
    shared_both: Array | None,
    shares: Array | None,
    *,
    needs: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Gradients for all that moe_swiglu takes, None for those not needed.

    What stands between both and the sum is computed again; <silu(gate) * up, downᵀ grad> is the
    gradient of a weight, so that the rows of the result are not needed for it.
    """
    mm, outer = part("grouped_mm", x), part("grouped_outer", x)
    permute, unpermute = part("moe_permute", x), part("moe_unpermute", x)
    grads = permute(grad, None, places)
    units, back = part("swiglu", x)(*_halves(both)), mm(grads, down, offs)
    dweights = (units * back).sum(1)[places] if needs[1] else None
    if weights is not None:
        by_row = permute(np.ones_like(x[:, :1]), weights, places)
        units, back = by_row * units, by_row * back
    dboth = np.concatenate(part("swiglu_backward", x)(back, *_halves(both)), 1)
    dx = unpermute(mm(dboth, gate_up, offs), None, places) if needs[0] else None
    dgate_up = outer(dboth, permute(x, None, places), offs) if needs[2] else None
    ddown = outer(grads, units, offs) if needs[3] else None
    dshared: list[Array | None] = [None] * 4
    if shared_both is not None:
        more, *dshared = _shared_backward(
            grad, x, shared_gate, shared_up, shared_down, shared_scale, shared_both, shares, needs
        )
        dx = None if dx is None else dx + more
    return dx, dweights, dgate_up, ddown, None, None, *dshared


def _shared_backward(
    grad: Array, x: Array, gate: Array, up: Array, down: Array, scale: Array | None, both: Array,
    shares: Array | None, needs: tuple[bool, ...],
) -> tuple[Array | None, ...]:  # fmt: skip
    """Gradients for x, gate, up, down and scale of the shared expert alone."""
    linear_backward = part("linear_backward", x)
    units = part("swiglu", x)(*_halves(both))
    back, ddown, _ = linear_backward(
        grad if shares is None else shares[:, None] * grad,
        units,
        down,
        needs=(True, needs[8], False),
    )
    dgate, dup = part("swiglu_backward", x)(back, *_halves(both))
    of_gate, dgate, _ = linear_backward(dgate, x, gate, needs=(needs[0], needs[6], False))
    of_up, dup, _ = linear_backward(dup, x, up, needs=(needs[0], needs[7], False))
    dx = of_gate + of_up if needs[0] else None
    if scale is None or shares is None:
        return dx, dgate, dup, ddown, None
    dlogits = (units * back).sum(1, keepdims=True) * (1 - shares[:, None])  # shares are in back
    if dx is not None:
        dx = dx + dlogits * scale
    return dx, dgate, dup, ddown, dlogits.T @ x if needs[9] else None


def _halves(both: Array) -> tuple[Array, Array]:
    middle = both.shape[1] // 2
    return both[:, :middle], both[:, middle:]


@register("route", "numpy")
def route(
    logits: Array,
    bias: Array | None,
    *,
    k: int,
    score_function: str,
    norm_topk_prob: bool,
    scaling_factor: float,
    groups: int,
    kept_groups: int,
    group_best: int,
) -> tuple[Array, Array, Array, Array]:
    """The k experts of each token that score highest, their weights, and where its rows stand.

    logits: (tokens, experts); bias: (experts,), added to the scores to choose, not to weigh. They
    are chosen from the kept_groups of so many equal groups of experts whose group_best highest
    scores sum highest. Returns weights and indices, (tokens, k); places and offs of `moe_places`.
    """
    ranks = _scores(logits, score_function)
    if bias is not None:
        ranks = ranks + bias
    if kept_groups < groups:
        ranks = _within_groups(ranks, groups, kept_groups, group_best)
    indices = part("topk", ranks)(ranks, k=k)[1]
    weights = part("routing_weights", ranks)(
        logits,
        indices,
        score_function=score_function,
        norm_topk_prob=norm_topk_prob,
        scaling_factor=scaling_factor,
    )
    return weights, indices, *part("moe_places", ranks)(indices, num_experts=logits.shape[1])


def _within_groups(ranks: Array, groups: int, kept: int, best: int) -> Array:
    """ranks, but -inf outside of the kept groups."""
    by_group = ranks.reshape(len(ranks), groups, -1)
    topk = part("topk", ranks)
    strength = topk(by_group, k=best)[0].sum(-1)
    out = np.full_like(by_group, -np.inf)
    chosen = topk(strength, k=kept)[1][:, :, None]
    np.put_along_axis(out, chosen, np.take_along_axis(by_group, chosen, 1), 1)
    return out.reshape(ranks.shape)


@register("routing_weights", "numpy")
def routing_weights(
    logits: Array,
    indices: Array,
    *,
    score_function: str,
    norm_topk_prob: bool,
    scaling_factor: float,
) -> Array:
    """The scores of the chosen experts, divided by their sum with norm_topk_prob, and scaled.

    logits: (tokens, experts); indices: (tokens, k), distinct in each row; score_function: "softmax"
    or "sigmoid". Returns (tokens, k).
    """
    chosen, _, total = _weighed(logits, indices, score_function, norm_topk_prob)
    return scaling_factor * chosen / total


@register("routing_weights_backward", "numpy")
def routing_weights_backward(
    grad: Array,
    logits: Array,
    indices: Array,
    *,
    score_function: str,
    norm_topk_prob: bool,
    scaling_factor: float,
) -> Array:
    """The gradient for logits: zero where nothing was chosen, but of a softmax over all."""
    chosen, scores, total = _weighed(logits, indices, score_function, norm_topk_prob)
    flow = scaling_factor * grad * chosen / total
    sum = flow.sum(1, keepdims=True)
    dx = np.zeros_like(logits)
    if norm_topk_prob:
        flow -= chosen / total * sum
    elif score_function == "softmax":
        dx -= scores * sum
    if score_function == "sigmoid":
        flow *= 1 - chosen
    np.put_along_axis(dx, indices, np.take_along_axis(dx, indices, 1) + flow, 1)
    return dx


@register("expected_cost", "numpy")
def expected_cost(logits: Array, cost: Array, *, score_function: str) -> Array:
    """The sum of cost times scores that sum to 1 for each token: ().

    logits: (..., experts); cost: broadcastable to it. The scores are the softmax, or the sigmoids
    over their sum.
    """
    return (_shares(logits, score_function)[0] * cost).sum()


@register("expert_balance", "numpy")
def expert_balance(
    logits: Array, indices: Array, *, score_function: str, sequences: int, factor: float
) -> tuple[Array, Array]:
    """factor times the mean over sequences of Σ_e f_e P_e: (), and what a token costs there.

    logits: (..., experts), of so many sequences of one length; indices: (tokens, k), chosen. f_e is
    how often a sequence's tokens chose e, 1 when even, and P_e their mean score: so the cost,
    (sequences, 1, experts), is factor f_e / tokens, and the result their `expected_cost`.
    """
    experts, k = logits.shape[-1], indices.shape[1]
    rows = logits.reshape(sequences, -1, experts)
    chosen = (indices.reshape(sequences, -1, 1) == array_module(logits).arange(experts)).sum(1)
    cost = chosen[:, None] * (factor * experts / (k * rows.shape[1] * len(indices)))
    cost = cost.astype(logits.dtype)
    return part("expected_cost", logits)(rows, cost, score_function=score_function), cost


@register("expected_cost_backward", "numpy")
def expected_cost_backward(
    grad: Array, logits: Array, cost: Array, *, score_function: str, needs: tuple[bool, bool]
) -> tuple[Array, Array | None]:
    """The gradients for logits, and for cost, spread over all tokens, if it is needed."""
    scores, slope = _shares(logits, score_function)
    dlogits = scores * (cost - (scores * cost).sum(-1, keepdims=True))
    dlogits *= grad if slope is None else grad * slope
    return dlogits, grad * scores if needs[1] else None


def _shares(logits: Array, score_function: str) -> tuple[Array, Array | None]:
    """Scores that sum to 1, and, of the sigmoid, what their slope has besides."""
    scores = _scores(logits, score_function)
    if score_function == "softmax":
        return scores, None
    return scores / scores.sum(-1, keepdims=True), 1 - scores


def _weighed(
    logits: Array, indices: Array, score_function: str, norm_topk_prob: bool
) -> tuple[Array, Array, Any]:
    """The scores of the chosen and of all, and what they are divided by."""
    scores = _scores(logits, score_function)
    chosen = np.take_along_axis(scores, indices, 1)
    total = chosen.sum(1, keepdims=True) + logits.dtype.type(_TINY) if norm_topk_prob else 1
    return chosen, scores, total


def _scores(logits: Array, score_function: str) -> Array:
    return part(score_function, logits)(logits)


_TINY = 1e-20
"""Added to the sum of the chosen scores, which may all be 0. As in DeepSeek-V3's code."""
