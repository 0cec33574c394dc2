"""Latent attention before the softmax (csrc/cpu/kernels/latent.cpp): its heads, each token visited
once, alone or with the projections that they come from.
"""

from typing import Any

import numpy as np

from minitorch.backend import bfloat16, compute_dtype, float32, float64
from minitorch.kernels.cpu.arrays import contiguous, fit
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import latent as reference
from minitorch.kernels.reference.latent import swapped
from minitorch.kernels.table import register

Array = np.ndarray


@register("latent_heads", "cpu", half=(bfloat16,))
def latent_heads(
    query: Array, made: Array, key: Array, cos: Array, sin: Array, *, heads: int, interleaved: bool
) -> tuple[Array, Array]:
    """The reference's."""
    if not fit(query, made, key):
        return reference.latent_heads(
            query, made, key, cos, sin, heads=heads, interleaved=interleaved
        )
    given, made = (np.ascontiguousarray(x).reshape(*x.shape[:2], heads, -1) for x in (query, made))
    queries, keys = (np.empty(given.shape, query.dtype) for _ in range(2))
    inputs = given, made, np.ascontiguousarray(key), *_tables(cos, sin, query.dtype)
    extension.latent_heads(*inputs, queries, keys, interleaved)
    return swapped(queries), swapped(keys)


@register("latent_heads_backward", "cpu", half=(bfloat16,))
def latent_heads_backward(
    dqueries: Array, dkeys: Array, dvalues: Array, cos: Array, sin: Array, *, interleaved: bool
) -> tuple[Array, Array, Array]:
    """The reference's."""
    if not fit(dqueries, dkeys, dvalues):
        return reference.latent_heads_backward(
            dqueries, dkeys, dvalues, cos, sin, interleaved=interleaved
        )
    dquery, dkeys, dvalues = (np.ascontiguousarray(swapped(x)) for x in (dqueries, dkeys, dvalues))
    batch, time, heads, both = dquery.shape
    turned = 2 * cos.shape[1]
    dmade = np.empty((batch, time, heads, both - turned + dvalues.shape[-1]), dquery.dtype)
    dkey = np.empty((batch, time, turned), dquery.dtype)
    grads = dquery, dkeys, dvalues, *_tables(cos, sin, dquery.dtype)
    extension.latent_heads_backward(*grads, dquery, dmade, dkey, interleaved)
    return dquery.reshape(batch, time, -1), dmade.reshape(batch, time, -1), dkey


@register("latent_projections", "cpu")
def latent_projections(
    x: Array,
    *given: Any,
    heads: int,
    interleaved: bool,
    eps: float,
) -> tuple[Array | None, ...]:
    """The reference's, in one call."""
    if not _projects(x, *given):
        return reference.latent_projections(
            x, *given, heads=heads, interleaved=interleaved, eps=eps
        )
    q_a, _, q_b, _, _, kv_b, *_ = given
    rows = x.shape[:2]
    queries, keys = (np.empty((*rows, heads, len(q_b) // heads), x.dtype) for _ in range(2))
    made = np.empty((*rows, heads, len(kv_b) // heads), x.dtype)
    of_query = (None,) * 3 if q_a is None else _of_latent(rows, len(q_a), x.dtype)
    kept = *of_query, *_of_latent(rows, kv_b.shape[1], x.dtype)
    arrays = *contiguous(x, *given), queries, keys, made, *kept
    extension.latent_projections(*arrays, interleaved, eps)
    return swapped(queries), swapped(keys), made.reshape(*rows, -1), *kept


@register("latent_projections_backward", "cpu")
def latent_projections_backward(
    dqueries: Array,
    dkeys: Array,
    dvalues: Array,
    x: Array,
    *given: Any,
    interleaved: bool,
    needs: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """The reference's, in one call."""
    grads, inputs, kept = (dqueries, dkeys, dvalues), given[:8], given[8:]
    if not _projects(x, *inputs) or not fit(x, *grads):
        options: dict[str, Any] = {"interleaved": interleaved, "needs": needs}
        return reference.latent_projections_backward(*grads, x, *given, **options)
    results = [
        np.empty(array.shape, array.dtype) if need and array is not None else None
        for array, need in zip((x, *inputs[:6]), needs, strict=True)
    ]
    by_time = contiguous(*(swapped(grad) for grad in grads))
    arrays = *by_time, *contiguous(x, *inputs), *kept, *results
    extension.latent_projections_backward(*arrays, interleaved)
    return tuple(results)


def _projects(x: Array, *given: Array | None) -> bool:
    return x.dtype in (float32, float64) and fit(x, *given)


def _of_latent(rows: tuple[int, ...], rank: int, dtype: np.dtype) -> tuple[Array, Array, Array]:
    """Room for a latent, for the same normalised, and for 1 / deviation."""
    return np.empty((*rows, rank), dtype), np.empty((*rows, rank), dtype), np.empty(rows, dtype)


def _tables(cos: Array, sin: Array, dtype: np.dtype) -> list[Array]:
    compute = compute_dtype(dtype)
    return [np.ascontiguousarray(x, compute) for x in (cos, sin)]
