"""Mixture of experts on the CPU (csrc/cpu/kernels/routing.cpp, experts.cpp): all in one call."""

from itertools import accumulate
from typing import Any

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels.cpu.arrays import FLOATS, contiguous, fit, integers
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import experts as reference
from minitorch.kernels.table import register

Array = np.ndarray


@register("route", "cpu")
def route(
    logits: Array,
    bias: Array | None,
    *,
    k: int,
    groups: int,
    kept_groups: int,
    group_best: int,
    **options: Any,
) -> tuple[Array, Array, Array, Array]:
    """The reference's, one token after another."""
    if not _routes(logits):
        options |= {"groups": groups, "kept_groups": kept_groups, "group_best": group_best}
        return reference.route(logits, bias, k=k, **options)
    tokens, experts = logits.shape
    weights = np.empty((tokens, k), logits.dtype)
    indices, places = np.empty((2, tokens, k), np.int64)
    offs = np.empty(experts, np.int64)
    if bias is not None:
        bias = np.ascontiguousarray(bias, logits.dtype)
    arrays = np.ascontiguousarray(logits), bias, weights, indices, places, offs
    extension.route(*arrays, *_numbers(**options), groups, kept_groups, group_best)
    return weights, indices, places, offs


@register("moe_places", "cpu")
def moe_places(indices: Array, *, num_experts: int) -> tuple[Array, Array]:
    """The reference's, by counting."""
    reference.check_experts(indices, num_experts)
    places, offs = np.empty(indices.shape, np.int64), np.empty(num_experts, np.int64)
    extension.moe_places(integers(indices), places, offs)
    return places, offs


@register("routing_weights", "cpu")
def routing_weights(logits: Array, indices: Array, **options: Any) -> Array:
    """The reference's."""
    if not _routes(logits):
        return reference.routing_weights(logits, indices, **options)
    out = np.empty(indices.shape, logits.dtype)
    extension.routing_weights(
        np.ascontiguousarray(logits), integers(indices), out, *_numbers(**options)
    )
    return out


@register("routing_weights_backward", "cpu")
def routing_weights_backward(grad: Array, logits: Array, indices: Array, **options: Any) -> Array:
    """The reference's."""
    if not _routes(logits) or grad.dtype != logits.dtype:
        return reference.routing_weights_backward(grad, logits, indices, **options)
    dx = np.empty(logits.shape, logits.dtype)
    arrays = np.ascontiguousarray(grad), np.ascontiguousarray(logits), integers(indices), dx
    extension.routing_weights_backward(*arrays, *_numbers(**options))
    return dx


@register("expected_cost", "cpu")
def expected_cost(logits: Array, cost: Array, *, score_function: str) -> Array:
    """The reference's, a token at a time."""
    if not _routes(logits) or cost.dtype != logits.dtype:
        return reference.expected_cost(logits, cost, score_function=score_function)
    out = np.empty((), logits.dtype)
    extension.expected_cost(*_costs(logits, cost), out, *_whole(score_function))
    return out


@register("expected_cost_backward", "cpu")
def expected_cost_backward(
    grad: Array, logits: Array, cost: Array, *, score_function: str, needs: tuple[bool, bool]
) -> tuple[Array, Array | None]:
    """The reference's."""
    if not _routes(logits) or cost.dtype != logits.dtype or needs[1]:
        return reference.expected_cost_backward(
            grad, logits, cost, score_function=score_function, needs=needs
        )
    dlogits = np.empty(logits.shape, logits.dtype)
    arrays = *_costs(logits, cost), dlogits
    extension.expected_cost_backward(*arrays, *_whole(score_function), float(grad))
    return dlogits, None


@register("expert_balance", "cpu")
def expert_balance(
    logits: Array, indices: Array, *, score_function: str, sequences: int, factor: float
) -> tuple[Array, Array]:
    """The reference's, by counting."""
    experts = logits.shape[-1]
    if not _routes(logits):
        return reference.expert_balance(
            logits, indices, score_function=score_function, sequences=sequences, factor=factor
        )
    rows = np.ascontiguousarray(logits).reshape(sequences, -1, experts)
    cost = np.empty((sequences, 1, experts), logits.dtype)
    out = np.empty((), logits.dtype)
    numbers = *_whole(score_function), factor
    extension.expert_balance(rows, integers(indices), cost, out, *numbers)
    return out, cost


def _costs(logits: Array, cost: Array) -> tuple[Array, Array]:
    """logits, contiguous, and for each row, or for each of several, its cost, side by side."""
    if cost.ndim != logits.ndim or cost.shape[-1] != logits.shape[-1]:
        cost = np.broadcast_to(cost, logits.shape)
    if cost.strides[-1] != cost.itemsize:
        cost = np.ascontiguousarray(cost)
    return np.ascontiguousarray(logits), cost


def _whole(score_function: str) -> tuple[bool, bool, float]:
    """The numbers of scores that are not weighed any further."""
    return _numbers(score_function=score_function, norm_topk_prob=False, scaling_factor=1.0)


def _routes(logits: Array) -> bool:
    return logits.dtype in (float32, float64) and logits.size > 0


def _numbers(
    *, score_function: str, norm_topk_prob: bool, scaling_factor: float
) -> tuple[bool, bool, float]:
    return score_function == "sigmoid", norm_topk_prob, scaling_factor


@register("grouped_mm", "cpu", half=(bfloat16,))
def grouped_mm(x: Array, weight: Array, offs: Array) -> Array:
    """The reference's."""
    if x.dtype not in FLOATS or weight.dtype != x.dtype:
        return reference.grouped_mm(x, weight, offs)
    out = np.empty((len(x), weight.shape[2]), x.dtype)
    extension.grouped_mm(x, weight, integers(offs), out)
    return out


@register("grouped_outer", "cpu", half=(bfloat16,))
def grouped_outer(x: Array, grad: Array, offs: Array) -> Array:
    """The reference's."""
    if x.dtype not in FLOATS or grad.dtype != x.dtype:
        return reference.grouped_outer(x, grad, offs)
    out = np.empty((len(offs), x.shape[1], grad.shape[1]), x.dtype)
    extension.grouped_outer(x, grad, integers(offs), out)
    return out


@register("moe_swiglu", "cpu", half=(bfloat16,))
def moe_swiglu(
    x: Array,
    weights: Array | None,
    gate_up: Array,
    down: Array,
    places: Array,
    offs: Array,
    *shared: Array | None,
) -> tuple[Array, Array, Array | None, Array | None]:
    """The reference's."""
    if not fit(x, weights, gate_up, down, *shared):
        return reference.moe_swiglu(x, weights, gate_up, down, places, offs, *shared)
    gate, *_, scale = shared or (None,) * 4
    tokens, width = x.shape
    both = np.empty((places.size, gate_up.shape[1]), x.dtype)
    shared_both = None if gate is None else np.empty((tokens, 2 * len(gate)), x.dtype)
    shares = None if scale is None else np.empty(tokens, x.dtype)
    rows = np.empty((places.size + (0 if gate is None else tokens), width), x.dtype)
    out = np.empty(x.shape, x.dtype)
    inputs = *contiguous(x, weights, gate_up, down), integers(places), integers(offs)
    of_shared = contiguous(*shared) if shared else [None] * 4
    extension.moe_swiglu(*inputs, *of_shared, both, shared_both, shares, rows, out)
    return out, both, shared_both, shares


@register("moe_swiglu_backward", "cpu", half=(bfloat16,))
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
    """The reference's."""
    shared = shared_gate, shared_up, shared_down, shared_scale
    given = x, weights, gate_up, down, places, offs, *shared
    if not fit(x, weights, gate_up, down, *shared) or grad.dtype != x.dtype:
        return reference.moe_swiglu_backward(grad, *given, both, shared_both, shares, needs=needs)
    rows, width = places.size, x.shape[1]
    tokens, wide = (0, 0) if shared_gate is None else (len(x), len(shared_gate))
    sizes = [rows * width, rows * width, (rows + tokens) * width, both.size]
    room = _room([*sizes, rows * down.shape[2], tokens * 2 * wide, tokens * wide], x.dtype)
    results = [
        np.empty(array.shape, array.dtype) if need and array is not None else None
        for array, need in zip(given, needs, strict=True)
    ]
    inputs = *contiguous(grad, x, weights, gate_up, down), integers(places), integers(offs)
    of_shared = contiguous(*shared)
    kept = both, shared_both, shares
    extension.moe_swiglu_backward(*inputs, *of_shared, *kept, *room, *results[:4], *results[6:])
    return tuple(results)


def _room(sizes: list[int], dtype: np.dtype) -> list[Array]:
    """Arrays of these sizes out of one: the allocator, too, has left the caches by now."""
    begins = [0, *accumulate(-(-size // 64) * 64 for size in sizes)]
    whole = np.empty(begins.pop(), dtype)
    return [whole[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]
