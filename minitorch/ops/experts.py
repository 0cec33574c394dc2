r"""Mixture of experts: routing, the way of tokens to their experts and back, grouped products.

    weights, indices, places, offs = route(logits, k)
    out = moe_swiglu(x, weights, gate_up, down, places, offs)

or, where experts are something else,

    rows, places, offs = moe_permute(x, indices, num_experts)
    rows = grouped_mm(rows, weight, offs)                          # and whatever else experts do
    out = moe_unpermute(rows, places, weights)

Behind the latter are two forms that are linear in each of their parts. With places[t, j] the row of
choice j of token t, and e(r) the expert of row r, they are

    \sum_{t, j} w_{t j} \langle r_{places[t, j]}, x_t \rangle
    \sum_r \langle x_r W_{e(r)}, v_r \rangle

Their derivatives are the primitives here, each bilinear, and the transpose of each is another one
of them: so there are derivatives of every order.

Source: Shazeer et al. 2017, "Outrageously large neural networks"; Gale et al. 2022, "MegaBlocks".
"""

from functools import partial
from math import inf
from typing import Any, NamedTuple

import numpy as np

from minitorch import backend, kernels, modes
from minitorch.errors import ConfigError, DtypeError, ShapeError
from minitorch.ops.definition import Primitive, _kernel
from minitorch.ops.fused import swiglu_packed
from minitorch.ops.general import softmax
from minitorch.ops.indexing import one_hot, topk
from minitorch.ops.primitive import bilinear, fused, nondifferentiable
from minitorch.ops.promotion import promote
from minitorch.ops.samples import real, sample
from minitorch.tape import apply, computed
from minitorch.tensor import Tensor, wrap

_PLACES = np.array([[2, 7], [0, 4], [1, 3], [6, 5]])
_OFFS = np.array([2, 2, 5])
_ENDS = np.array([3, 3, 8])

_permute: Primitive = bilinear(
    "moe_permute",
    _kernel("moe_permute"),
    lambda grad, weights, places: apply(_unpermute, [grad, weights, places], {}),
    lambda grad, x, places: apply(_dot, [grad, x, places], {}),
    None,
    kernel="moe_permute",
    inputs=("x", "weights", "places"),
    formula=r"r_{p_{tj}} = w_{tj} x_t",
    samples=lambda: [
        sample(real(4, 3), real(4, 2), _PLACES),
        sample(real(8, 2), None, _PLACES.reshape(8, 1)),
    ],
)

_unpermute: Primitive = bilinear(
    "moe_unpermute",
    _kernel("moe_unpermute"),
    lambda grad, weights, places: apply(_permute, [grad, weights, places], {}),
    lambda grad, rows, places: apply(_dot, [rows, grad, places], {}),
    None,
    kernel="moe_unpermute",
    inputs=("rows", "weights", "places"),
    formula=r"x_t = \sum_j w_{tj} r_{p_{tj}}",
    samples=lambda: [
        sample(real(8, 3), real(4, 2), _PLACES),
        sample(real(8, 2), None, _PLACES.reshape(2, 4)),
    ],
)

_dot: Primitive = bilinear(
    "moe_dot",
    _kernel("moe_dot"),
    lambda grad, x, places: apply(_permute, [x, grad, places], {}),
    lambda grad, rows, places: apply(_unpermute, [rows, grad, places], {}),
    None,
    kernel="moe_dot",
    inputs=("rows", "x", "places"),
    formula=r"w_{tj} = \langle r_{p_{tj}}, x_t \rangle",
    samples=lambda: [sample(real(8, 3), real(4, 3), _PLACES)],
)

_grouped_mm: Primitive = bilinear(
    "grouped_mm",
    _kernel("grouped_mm"),
    lambda grad, weight, offs: apply(_grouped_mm, [grad, weight.mT, offs], {}),
    lambda grad, x, offs: apply(_grouped_outer, [x, grad, offs], {}),
    None,
    kernel="grouped_mm",
    autocast="lower",
    inputs=("x", "weight", "offs"),
    formula=r"y_r = x_r W_{e(r)}",
    samples=lambda: [sample(real(5, 4), real(3, 4, 2), _OFFS)],
)

_grouped_outer: Primitive = bilinear(
    "grouped_outer",
    _kernel("grouped_outer"),
    lambda grad, y, offs: apply(_grouped_mm, [y, grad.mT, offs], {}),
    lambda grad, x, offs: apply(_grouped_mm, [x, grad, offs], {}),
    None,
    kernel="grouped_outer",
    autocast="lower",
    inputs=("x", "y", "offs"),
    formula=r"W_e = \sum_{r : e(r) = e} x_r y_r^\top",
    samples=lambda: [sample(real(5, 4), real(5, 2), _OFFS)],
)


def _swiglu_reference(
    x: Tensor, weights: Tensor | None, gate_up: Tensor, down: Tensor, places: Tensor, offs: Tensor
) -> Tensor:
    rows = apply(_permute, [x, None, places], {})
    both = apply(_grouped_mm, [rows, gate_up.mT, offs], {})
    rows = apply(_grouped_mm, [swiglu_packed(both), down.mT, offs], {})
    return apply(_unpermute, [rows, weights, places], {})


def _swiglu_forward(
    x: Any, weights: Any, gate_up: Any, down: Any, places: Any, offs: Any
) -> tuple[Any, dict[str, Any]]:
    out, both = _kernel("moe_swiglu")(x, weights, gate_up, down, places, offs)
    return out, {"both": both}


def _swiglu_backward(
    grad: Any, x: Any, weights: Any, gate_up: Any, down: Any, places: Any, offs: Any, both: Any,
    needs: Any,
) -> Any:  # fmt: skip
    return _kernel("moe_swiglu_backward")(
        grad, x, weights, gate_up, down, places, offs, both, needs=needs
    )


_moe_swiglu = fused(
    "moe_swiglu",
    _swiglu_forward,
    kernel="moe_swiglu",
    reference=_swiglu_reference,
    backward=_swiglu_backward,
    extras=("both",),
    autocast="lower",
    inputs=("x", "weights", "gate_up", "down", "places", "offs"),
    formula=r"\sum_j w_{tj} W_{e_{tj}} (\sigma(g) g \odot u), \; (g, u) = V_{e_{tj}} x_t",
    samples=lambda: [
        sample(real(4, 3), real(4, 2), real(3, 10, 3), real(3, 3, 5), _PLACES, _ENDS),
        sample(real(4, 3), None, real(3, 4, 3), real(3, 3, 2), _PLACES, _ENDS),
    ],
)


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


def _scores(logits: Any, score_function: str) -> tuple[Any, Any]:
    """Scores that sum to 1, and, of the sigmoid, what their slope has besides; arrays."""
    if score_function == "softmax":
        return _kernel("softmax")(logits), None
    sigmoids = 1 / (1 + np.exp(-logits))
    return sigmoids / sigmoids.sum(-1, keepdims=True), 1 - sigmoids


def _expected_forward(logits: Any, cost: Any, *, score_function: str) -> Any:
    return (_scores(logits, score_function)[0] * cost).sum()


def _expected_backward(
    grad: Any, logits: Any, cost: Any, score_function: str, needs: tuple[bool, ...]
) -> tuple[Any, Any]:
    scores, slope = _scores(logits, score_function)
    dlogits = scores * (cost - (scores * cost).sum(-1, keepdims=True))
    dlogits *= grad if slope is None else grad * slope
    return dlogits, grad * scores if needs[1] else None


def _expected_reference(logits: Tensor, cost: Tensor, *, score_function: str) -> Tensor:
    if score_function == "softmax":
        return (softmax(logits, -1) * cost).sum()
    scores = logits.sigmoid()
    return (scores / scores.sum(-1, keepdim=True) * cost).sum()


_expected_cost = fused(
    "expected_cost",
    _expected_forward,
    reference=_expected_reference,
    backward=_expected_backward,
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
    _check_score_function("expected_cost", score_function)
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


def _feed_forward(
    x: Any, router: Any, bias: Any, gate_up: Any, down: Any, shared_gate: Any, shared_up: Any,
    shared_down: Any, scale: Any, **routing: Any,
) -> Any:  # fmt: skip
    linear = _kernel("linear")
    logits = linear(x, router, None)
    weights, _, places, offs = _kernel("route")(logits, bias, **routing)
    out, _ = _kernel("moe_swiglu")(x, weights, gate_up, down, places, offs)
    if shared_gate is None:
        return out
    units = _kernel("swiglu")(linear(x, shared_gate, None), linear(x, shared_up, None))
    shared = linear(units, shared_down, None)
    return out + (shared if scale is None else shared / (1 + np.exp(-linear(x, scale, None))))


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
            *(real(3, 4), real(5, 4, seed=1), real(5), real(5, 6, 4), real(5, 4, 3)),
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
    shared: tuple[Tensor, Tensor, Tensor] | None = None,
    shared_scale: Tensor | None = None,
) -> Tensor:
    """A layer of experts in one call, without derivatives: for one token Python is most of it.

    x: (tokens, width); router: (experts, width); gate_up, down: moe_swiglu's; from k on the options
    are route's. shared: the weights of a gated layer that every token sees, (hidden, width) twice
    and (width, hidden); shared_scale: (1, width), the logistic function of whose product with x
    scales what that gives. All of one dtype, float32 or float64. It computes what linear, route,
    moe_swiglu and swiglu would. Raises ShapeError where x and the weights disagree.
    """
    _check_score_function("moe_feed_forward", score_function)
    experts, width = router.shape if router.ndim == 2 else (0, 0)
    hidden = down.shape[-1]
    wanted: list[tuple[int, ...]] = [(experts, 2 * hidden, width), (experts, width, hidden)]
    given: list[tuple[int, ...]] = [gate_up.shape, down.shape]
    if shared is not None:
        inner = len(shared[0])
        wanted += [(inner, width), (inner, width), (width, inner)]
        given += [part.shape for part in shared]
    if shared_scale is not None:
        wanted.append((1, width))
        given.append(shared_scale.shape)
    if x.shape[1:] != (width,) or given != wanted:
        raise ShapeError(
            f"moe_feed_forward: expected x (tokens, {width}) and weights {wanted} for a router "
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
    and offs of moe_permute. On the CPU one kernel.
    Raises ConfigError and ShapeError for what does not fit.

    Source: Shazeer et al. 2017, section 2; DeepSeek-AI 2024, "DeepSeek-V2", section 2.2.2, and
    "DeepSeek-V3", equations 13 to 16. In Megatron-LM: topk_routing_with_score_function; the options
    are named as in transformers.
    """
    _check_score_function("route", score_function)
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
    mode = modes.thread.mode
    plain = type(logits.data) is np.ndarray and not backend.half_precision(logits.dtype)
    if not plain or mode.observers or mode.anomaly:
        return _route_by_parts(logits, k, expert_bias, weighing, **limits)
    run = backend.arithmetic.copy().run
    kernel = partial(kernels.lookup("route"), k=k, **weighing, **limits)
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
    return Routed(weights, indices, *_places(indices, logits.shape[1]))


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
    _check_score_function("routing_weights", score_function)
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


def _check_score_function(operation: str, score_function: str) -> None:
    if score_function not in ("softmax", "sigmoid"):
        raise ConfigError(
            f'{operation}: expected score_function "softmax" or "sigmoid"; got {score_function!r}'
        )


def moe_permute(x: Tensor, indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each token once for every expert that it goes to, sorted by expert.

    x: (tokens, features); indices: (tokens, k), integers below num_experts. Returns rows,
    (tokens k, features), of which those of expert e are offs[e - 1] to offs[e]; places, (tokens,
    k), where in rows each token is; and offs, (num_experts,). The tokens of an expert keep their
    order.
    Raises ShapeError where x and indices disagree or an index is no expert.
    In Transformer Engine: moe_permute, with places as row_id_map.
    """
    if backend.is_float(indices.dtype):
        raise DtypeError(f"moe_permute: expected integer indices; got {indices.dtype}")
    if x.ndim != 2 or indices.ndim != 2 or x.shape[0] != indices.shape[0]:
        raise ShapeError(
            "moe_permute: expected x (tokens, features) and indices (tokens, k); got "
            f"{x.shape} and {indices.shape}"
        )
    places, offs = _places(indices, num_experts)
    return apply(_permute, [x, None, places], {}), places, offs


def _places(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    find = kernels.lookup("moe_places", backend.device_of(indices.data))
    places, offs = find(indices.data, num_experts=num_experts)
    return wrap(backend.beside(places, indices.data)), wrap(backend.beside(offs, indices.data))


def moe_unpermute(rows: Tensor, places: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sum over a token's experts of its rows, times weights: (tokens, features).

    rows: (tokens k, features), as moe_permute gives them, places likewise; weights: (tokens, k), in
    the dtype of rows or converted to it. In Transformer Engine: moe_unpermute.
    """
    if (
        rows.ndim != 2
        or places.ndim != 2
        or rows.shape[0] != places.numel()
        or (weights is not None and weights.shape != places.shape)
    ):
        raise ShapeError(
            "moe_unpermute: expected rows (tokens k, features), places (tokens, k) and weights "
            f"(tokens, k); got {rows.shape}, {places.shape} and "
            f"{None if weights is None else weights.shape}"
        )
    if weights is not None:
        weights = weights.to(rows.dtype)
    return apply(_unpermute, [rows, weights, places], {})


def moe_swiglu(
    x: Tensor, weights: Tensor | None, gate_up: Tensor, down: Tensor, places: Tensor, offs: Tensor
) -> Tensor:
    """Each token through its experts, gated feed-forward layers, and their sum: (tokens, width).

    x: (tokens, width); weights: (tokens, k), or None for 1; gate_up: (experts, 2 hidden, width);
    down: (experts, width, hidden); places: (tokens, k) and offs: (experts,), of moe_permute or
    `route`. The same as moe_permute, grouped_mm, swiglu_packed, grouped_mm and moe_unpermute; on
    the CPU one kernel, which keeps gate and up of every row and nothing else.
    Raises ShapeError where these disagree. In vLLM: fused_experts.
    """
    experts, both, width = gate_up.shape if gate_up.ndim == 3 else (0, 0, 0)
    if (
        x.shape[1:] != (width,)
        or down.shape != (experts, width, both // 2)
        or both % 2
        or places.ndim != 2
        or len(places) != len(x)
        or offs.shape != (experts,)
        or (weights is not None and weights.shape != places.shape)
    ):
        raise ShapeError(
            "moe_swiglu: expected x (tokens, width), weights and places (tokens, k), gate_up "
            "(experts, 2 hidden, width), down (experts, width, hidden) and offs (experts,); got "
            f"{x.shape}, {None if weights is None else weights.shape}, {places.shape}, "
            f"{gate_up.shape}, {down.shape} and {offs.shape}"
        )
    x, gate_up, down = promote([x, gate_up, down])
    if weights is not None:
        weights = weights.to(x.dtype)
    return apply(_moe_swiglu, [x, weights, gate_up, down, places, offs], {})


def grouped_mm(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """x[r] weight[e] for each row r, e being the group of the row: (rows, n).

    x: (rows, k); weight: (groups, k, n), a view such as weight.mT perhaps; offs: (groups,)
    integers, where each group ends: it begins where the one before ends, the last ends with x.
    Raises ShapeError where these disagree. In PyTorch: torch.nn.functional.grouped_mm.
    """
    if (
        x.ndim != 2
        or weight.ndim != 3
        or x.shape[1] != weight.shape[1]
        or offs.shape != weight.shape[:1]
    ):
        raise ShapeError(
            "grouped_mm: expected x (rows, k), weight (groups, k, n) and offs (groups,); got "
            f"{x.shape}, {weight.shape} and {offs.shape}"
        )
    if isinstance(offs.data, np.ndarray):
        ends = offs.data
        if not ends.size or ends[-1] != len(x) or (np.diff(ends, prepend=0) < 0).any():
            raise ShapeError(
                f"grouped_mm: expected offs that do not fall and end with {len(x)}, the rows; got "
                f"{ends.tolist()}"
            )
    return apply(_grouped_mm, [*promote([x, weight]), offs], {})
