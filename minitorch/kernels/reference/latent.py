"""Heads of latent attention: what stands between its projections and the softmax, and the way back.

Queries and keys have a plain part and one that is turned by its position; of the keys that one is
the same for all heads. Results lie in memory as (batch, time, heads, features).
"""

from typing import Any

from minitorch import backend
from minitorch.kernels.reference.parts import part
from minitorch.kernels.table import register

Array = Any


@register("latent_heads", "numpy")
def latent_heads(
    query: Array,
    made: Array,
    key: Array,
    cos: Array,
    sin: Array,
    *,
    heads: int,
    interleaved: bool,
) -> tuple[Array, Array]:
    """Queries and keys of every head, (batch, heads, time, plain + turned) both.

    query: (batch, time, heads (plain + turned)); made: (batch, time, heads (plain + value)), of
    each head the plain key and the value; key: (batch, time, turned); cos, sin: (time, turned / 2).
    """
    rope, turned = part("rope", query), key.shape[-1]
    given, made = (x.reshape(*x.shape[:2], heads, x.shape[2] // heads) for x in (query, made))
    plain = given.shape[-1] - turned
    empty = backend.array_module(query).empty
    queries, keys = (swapped(empty(given.shape, query.dtype)) for _ in range(2))
    queries[..., :plain] = swapped(given)[..., :plain]
    rope(swapped(given)[..., plain:], cos, sin, interleaved=interleaved, out=queries[..., plain:])
    keys[..., :plain] = swapped(made)[..., :plain]
    keys[..., plain:] = rope(key[:, None], cos, sin, interleaved=interleaved)
    return queries, keys


@register("latent_heads_backward", "numpy")
def latent_heads_backward(
    dqueries: Array, dkeys: Array, dvalues: Array, cos: Array, sin: Array, *, interleaved: bool
) -> tuple[Array, Array, Array]:
    """The gradients of query, made and key, from those of queries, keys and values by head.

    A kernel may overwrite dqueries.
    """
    rope, back = part("rope", dqueries), {"interleaved": interleaved, "inverse": True}
    batch, heads, time, both = dqueries.shape
    plain = both - 2 * cos.shape[1]
    empty = backend.array_module(dqueries).empty
    dquery, dmade = (
        swapped(empty((batch, time, heads, features), dqueries.dtype))
        for features in (both, plain + dvalues.shape[-1])
    )
    dquery[..., :plain] = dqueries[..., :plain]
    rope(dqueries[..., plain:], cos, sin, **back, out=dquery[..., plain:])
    dmade[..., :plain], dmade[..., plain:] = dkeys[..., :plain], dvalues
    dkey = rope(dkeys[..., plain:].sum(1, keepdims=True), cos, sin, **back)[:, 0]
    dquery, dmade = (swapped(x).reshape(batch, time, heads * x.shape[-1]) for x in (dquery, dmade))
    return dquery, dmade, dkey


def swapped(x: Array) -> Array:
    """(batch, time, heads, features) as (batch, heads, time, features), or the other way round."""
    return x.transpose(0, 2, 1, 3)
