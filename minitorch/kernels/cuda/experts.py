"""Mixture of experts on the device (csrc/cuda/experts.cu, experts_wgmma.cu, routing.cu)."""

from typing import Any

import numpy as np

from minitorch.kernels.cuda.extension import (
    FLOATS,
    call,
    capability,
    contiguous,
    device_kernel,
    empty,
)
from minitorch.kernels.cuda.ladder import lines
from minitorch.kernels.reference import experts as reference

Array = Any

_INT64 = np.dtype(np.int64)
_MOST_EXPERTS = 8192  # a number for each fits into shared memory


@device_kernel("moe_places")
def moe_places(indices: Array, *, num_experts: int) -> tuple[Array, Array]:
    """The reference's. On a GPU an index that is no expert counts as the nearest one."""
    if isinstance(indices, np.ndarray):
        reference.check_experts(indices, num_experts)
    indices = _integers(indices)
    places, offs = empty(indices), empty(indices, (num_experts,))
    call("moe_places", indices, places, offs)
    return places, offs


@device_kernel("moe_permute")
def moe_permute(x: Array, weights: Array | None, places: Array) -> Array:
    """The reference's."""
    if not _takes(x, weights) or not places.size:
        return reference.moe_permute(x, weights, places)
    rows = empty(x, (places.size, x.shape[1]))
    call("moe_permute", contiguous(x), _weights(weights), _integers(places), rows)
    return rows


@device_kernel("moe_unpermute")
def moe_unpermute(rows: Array, weights: Array | None, places: Array) -> Array:
    """The reference's, choices added in their order."""
    if not _takes(rows, weights) or not places.size:
        return reference.moe_unpermute(rows, weights, places)
    x = empty(rows, (len(places), rows.shape[1]))
    call("moe_unpermute", contiguous(rows), _weights(weights), _integers(places), x)
    return x


@device_kernel("moe_dot")
def moe_dot(rows: Array, x: Array, places: Array) -> Array:
    """The reference's."""
    if not _takes(rows, x) or not places.size:
        return reference.moe_dot(rows, x, places)
    out = empty(x, places.shape)
    call("moe_dot", contiguous(rows), contiguous(x), _integers(places), out)
    return out


@device_kernel("grouped_mm")
def grouped_mm(x: Array, weight: Array, offs: Array) -> Array:
    """The reference's; nothing waits to know how many rows a group has."""
    if not _takes(x, weight):
        return reference.grouped_mm(x, weight, offs)
    out = empty(x, (len(x), weight.shape[2]))
    arrays = x, weight, _integers(offs), out
    if _for_warpgroups(x) and lines(weight) is not None:
        call("grouped_mm_wgmma", *arrays, not lines(weight))
    else:
        call("grouped_mm", *arrays)
    return out


@device_kernel("grouped_outer")
def grouped_outer(x: Array, grad: Array, offs: Array) -> Array:
    """The reference's; nothing waits to know how many rows a group has."""
    if not _takes(x, grad):
        return reference.grouped_outer(x, grad, offs)
    out = empty(x, (len(offs), x.shape[1], grad.shape[1]))
    kernel = "grouped_outer_wgmma" if _for_warpgroups(x, grad) else "grouped_outer"
    call(kernel, x, grad, _integers(offs), out)
    return out


@device_kernel("route")
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
    """The reference's, of up to 8,192 experts, in two launches."""
    tokens, experts = logits.shape
    limits: dict[str, Any] = {
        "groups": groups,
        "kept_groups": kept_groups,
        "group_best": group_best,
    }
    if not _takes(logits, bias) or experts > _MOST_EXPERTS:
        return reference.route(logits, bias, k=k, **limits, **options)
    weights, indices = empty(logits, (tokens, k)), empty(logits, (tokens, k), _INT64)
    given = contiguous(logits), None if bias is None else contiguous(bias)
    call("route", *given, weights, indices, *_numbers(**options), *limits.values())
    return weights, indices, *moe_places(indices, num_experts=experts)


@device_kernel("routing_weights")
def routing_weights(logits: Array, indices: Array, **options: Any) -> Array:
    """The reference's, in two readings of each row."""
    if not _takes(logits) or not indices.size:
        return reference.routing_weights(logits, indices, **options)
    out = empty(logits, indices.shape)
    call("routing_weights", contiguous(logits), _integers(indices), out, *_numbers(**options))
    return out


@device_kernel("routing_weights_backward")
def routing_weights_backward(grad: Array, logits: Array, indices: Array, **options: Any) -> Array:
    """The reference's."""
    if not _takes(logits, grad) or not indices.size:
        return reference.routing_weights_backward(grad, logits, indices, **options)
    dx = empty(logits)
    arrays = contiguous(grad), contiguous(logits), _integers(indices), dx
    call("routing_weights_backward", *arrays, *_numbers(**options))
    return dx


def _for_warpgroups(*rows: Array) -> bool:
    """On Hopper, in 16 bits, and rows that the tensor memory accelerator can copy."""
    return (
        capability(rows[0]) == 90
        and rows[0].dtype.itemsize == 2
        and all(lines(x) is True for x in rows)
    )


def _takes(*arrays: Array | None) -> bool:
    given = [x for x in arrays if x is not None]
    first = given[0].dtype
    return first in FLOATS and all(x.dtype == first and x.size for x in given)


def _weights(weights: Array | None) -> Array | None:
    return None if weights is None else contiguous(weights)


def _integers(x: Array) -> Array:
    return contiguous(x.astype(_INT64, copy=False))


def _numbers(
    *, score_function: str, norm_topk_prob: bool, scaling_factor: float
) -> tuple[bool, bool, float]:
    return score_function == "sigmoid", norm_topk_prob, scaling_factor
