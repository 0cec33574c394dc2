"""Heads of latent attention (csrc/cpu/kernels/latent.cpp), each token visited once."""

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels.cpu.arrays import fit
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


def _tables(cos: Array, sin: Array, dtype: np.dtype) -> list[Array]:
    compute = float64 if dtype == float64 else float32
    return [np.ascontiguousarray(x, compute) for x in (cos, sin)]
