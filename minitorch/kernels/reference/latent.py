"""Latent attention before the softmax, and the way back: its heads, alone or with the projections.

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


@register("latent_projections", "numpy")
def latent_projections(
    x: Array,
    q_a: Array | None,
    q_norm: Array | None,
    q_b: Array,
    kv_a: Array,
    kv_norm: Array | None,
    kv_b: Array,
    cos: Array,
    sin: Array,
    *,
    heads: int,
    interleaved: bool,
    eps: float,
) -> tuple[Array | None, ...]:
    """`latent_heads` of x's projections, and what the way back needs.

    query = q_b norm(q_a x), or q_b x; made = kv_b norm(c), where c, and then the key, are kv_a x.
    x: (batch, time, width). Returns queries and keys, (batch, heads, time, plain + turned); made,
    (batch, time, heads (plain + value)); and of both latents, the queries' first, which may be
    None: the latent, the same normalised, and 1 / deviation.
    """
    linear, norm, rank = part("linear", x), part("rms_norm", x), kv_b.shape[1]
    query, of_query = x, (None, None, None)
    if q_a is not None:
        latent = linear(x, q_a, None)
        of_query = latent, *norm(latent, q_norm, eps=eps, ndim=1)
        query = of_query[1]
    both = linear(x, kv_a, None)
    latent, key = both[..., :rank].copy(), both[..., rank:]
    normed, rstd = norm(latent, kv_norm, eps=eps, ndim=1)
    query, made = linear(query, q_b, None), linear(normed, kv_b, None)
    queries, keys = part("latent_heads", x)(
        query, made, key, cos, sin, heads=heads, interleaved=interleaved
    )
    return queries, keys, made, *of_query, latent, normed, rstd


@register("latent_projections_backward", "numpy")
def latent_projections_backward(
    dqueries: Array,
    dkeys: Array,
    dvalues: Array,
    x: Array,
    q_a: Array | None,
    q_norm: Array | None,
    q_b: Array,
    kv_a: Array,
    kv_norm: Array | None,
    kv_b: Array,
    cos: Array,
    sin: Array,
    q_latent: Array | None,
    q_normed: Array | None,
    q_rstd: Array | None,
    latent: Array,
    normed: Array,
    rstd: Array,
    *,
    interleaved: bool,
    needs: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """The gradients of x and of those of the six weights that need one.

    dqueries, dkeys, dvalues: by head; the others are what `latent_projections` was given and kept.
    A kernel may overwrite dqueries.
    """
    of_linear, of_norm = part("linear_backward", x), part("rms_norm_backward", x)
    dquery, dmade, dkey = part("latent_heads_backward", x)(
        dqueries, dkeys, dvalues, cos, sin, interleaved=interleaved
    )
    dnormed, dkv_b, _ = of_linear(dmade, normed, kv_b, needs=(True, needs[6], False))
    dlatent, dkv_norm = of_norm(dnormed, latent, kv_norm, rstd, ndim=1)
    both = backend.array_module(x).concatenate([dlatent, dkey], -1)
    dx, dkv_a, _ = of_linear(both, x, kv_a, needs=(needs[0], needs[4], False))
    dq_a = dq_norm = None
    if q_a is None:
        dx, dq_b, _ = of_linear(dquery, x, q_b, needs=(needs[0], needs[3], False), residual=dx)
    else:
        dnormed, dq_b, _ = of_linear(dquery, q_normed, q_b, needs=(True, needs[3], False))
        dlatent, dq_norm = of_norm(dnormed, q_latent, q_norm, q_rstd, ndim=1)
        dx, dq_a, _ = of_linear(dlatent, x, q_a, needs=(needs[0], needs[1], False), residual=dx)
    return dx, dq_a, dq_norm, dq_b, dkv_a, dkv_norm, dkv_b


def swapped(x: Array) -> Array:
    """(batch, time, heads, features) as (batch, heads, time, features), or the other way round."""
    return x.transpose(0, 2, 1, 3)
