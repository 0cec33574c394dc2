"""Keys that are pairs of halves, on the CPU (csrc/cpu/kernels/product_keys.cpp)."""

import numpy as np

from minitorch.backend import float32, float64
from minitorch.kernels.cpu.arrays import contiguous, fit, integers
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import product_keys as reference
from minitorch.kernels.table import register

Array = np.ndarray


@register("product_keys", "cpu")
def product_keys(query: Array, keys: Array, *, k: int) -> tuple[Array, Array]:
    """The reference's, some queries at a time."""
    if not _fit(query, keys):
        return reference.product_keys(query, keys, k=k)
    scores, indices = np.empty((len(query), k), query.dtype), np.empty((len(query), k), np.int64)
    extension.product_keys(*contiguous(query, keys), scores, indices)
    return scores, indices


@register("product_scores_backward", "cpu")
def product_scores_backward(
    grad: Array, query: Array, keys: Array, indices: Array, *, needs: tuple[bool, ...]
) -> tuple[Array | None, ...]:
    """The reference's, the sums of a key in the order of the queries."""
    if not _fit(query, keys, grad):
        return reference.product_scores_backward(grad, query, keys, indices, needs=needs)
    dquery, dkeys = (
        np.empty(array.shape, array.dtype) if need else None
        for array, need in zip((query, keys), needs, strict=False)
    )
    arrays = *contiguous(grad, query, keys), integers(indices), dquery, dkeys
    extension.product_scores_backward(*arrays)
    return dquery, dkeys


def _fit(*arrays: Array) -> bool:
    return fit(*arrays) and arrays[0].dtype in (float32, float64)
