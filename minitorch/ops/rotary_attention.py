r"""Attention between a model's projections as one operation: heads turned, attended to and joined.

What is left to do between the projections of an attention layer is to take the heads apart, to turn
queries and keys by their positions (apply_rotary_emb), attention, and to put the heads together. As
operations of their own all but the attention move the same numbers again and again. With the three
projections before it, the tape has one node where it had four, and nothing is kept of queries and
keys that are not turned.
"""

from typing import Any

from minitorch import modes
from minitorch.errors import ShapeError
from minitorch.kernels.reference.attention import join_heads
from minitorch.ops.attention import EVERYTHING, Window, _attention_reference, _options
from minitorch.ops.definition import _kernel
from minitorch.ops.fused import apply_rotary_emb, linear
from minitorch.ops.heads import by_head, gradients_of_tables, room
from minitorch.ops.joining import cat
from minitorch.ops.primitive import fused
from minitorch.ops.promotion import check_one_dtype
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor


def _turn(x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    """x: (batch, heads, time, dim), of which the features that cos and sin have angles for turn."""
    out, turned = room(x, x.shape[3]), 2 * cos.shape[1]
    _kernel("rope")(x[..., :turned], cos, sin, interleaved=interleaved, out=out[..., :turned])
    if turned < x.shape[3]:
        out[..., turned:] = x[..., turned:]
    return out


def _forward(
    query: Any, key: Any, value: Any, cos: Any, sin: Any, *, heads: int, kv_heads: int,
    interleaved: bool, **options: Any,
) -> Any:  # fmt: skip
    queries = _turn(by_head(query, heads), cos, sin, interleaved)
    keys = _turn(by_head(key, kv_heads), cos, sin, interleaved)
    out, log_normaliser = _kernel("scaled_dot_product_attention")(
        queries, keys, by_head(value, kv_heads), **options
    )
    kept = {"queries": queries, "keys": keys, "attended": out, "log_normaliser": log_normaliser}
    return join_heads(out), kept


def _backward(
    grad: Any, query: Any, key: Any, value: Any, cos: Any, sin: Any, queries: Any, keys: Any,
    attended: Any, log_normaliser: Any, heads: int, kv_heads: int, interleaved: bool, causal: bool,
    scale: float | None, window: Window, softcap: float, lower_right: bool, needs: Any,
) -> Any:  # fmt: skip
    given = (by_head(query, heads), by_head(key, kv_heads)) if needs[3] or needs[4] else None
    grads, tables = _heads_backward(
        by_head(grad, heads), queries, keys, by_head(value, kv_heads), attended, log_normaliser,
        cos, sin, given, interleaved, causal=causal, scale=scale, window=window, softcap=softcap,
        lower_right=lower_right,
    )  # fmt: skip
    return *map(join_heads, grads), *tables


def _heads_backward(
    grad: Any, queries: Any, keys: Any, values: Any, attended: Any, log_normaliser: Any, cos: Any,
    sin: Any, given: Any, interleaved: bool, **options: Any,
) -> tuple[list[Any], tuple[Any, Any]]:  # fmt: skip
    """The gradients of queries and keys as they were before they were turned, and of values.

    And those of cos and sin, for which it takes the first two, `given`; None: not needed. All are
    (batch, heads, time, dim).
    """
    *pair, dvalues, _, _ = _kernel("scaled_dot_product_attention_backward")(
        grad, queries, keys, values, None, None, attended, log_normaliser, **options
    )
    tables = (None, None) if given is None else _of_tables(pair, given, cos, interleaved)
    _turn_in_place(pair, cos, sin, interleaved, inverse=True)
    return [*pair, dvalues], tables


def _of_tables(grads: Any, given: Any, cos: Any, interleaved: bool) -> Any:
    """The gradients of cos and sin, from those of queries and keys turned, which were `given`."""
    turned = 2 * cos.shape[1]
    found = [
        gradients_of_tables(grad[..., :turned], x[..., :turned], interleaved)
        for grad, x in zip(grads, given, strict=True)
    ]
    return tuple(sum(parts) for parts in zip(*found, strict=True))


def _turn_in_place(
    parts: Any, cos: Any, sin: Any, interleaved: bool, inverse: bool = False
) -> None:
    for part in parts:
        moving = part[..., : 2 * cos.shape[1]]
        _kernel("rope")(moving, cos, sin, interleaved=interleaved, inverse=inverse, out=moving)


def _reference(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, *, heads: int,
    kv_heads: int, interleaved: bool, **options: Any,
) -> Tensor:  # fmt: skip
    turned = 2 * cos.shape[1]

    def apart(x: Tensor, count: int) -> Tensor:
        return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)

    def turn(x: Tensor) -> Tensor:
        moving, still = x.split([turned, x.shape[3] - turned], -1)
        return cat([apply_rotary_emb(moving, cos, sin, interleaved), still], -1)

    queries, keys = turn(apart(query, heads)), turn(apart(key, kv_heads))
    out = _attention_reference(queries, keys, apart(value, kv_heads), **options)
    return out.transpose(1, 2).reshape(*query.shape[:2], -1)


def _meta(
    name: str, heads: int, kv_heads: int, interleaved: bool, causal: bool, scale: float | None,
    window: Window, softcap: float,
) -> dict[str, Any]:  # fmt: skip
    """The options of both operations, checked."""
    options = _options(name, heads, causal, scale, window, softcap, None, "upper_left")
    return options | {"heads": heads, "kv_heads": kv_heads, "interleaved": interleaved}


_rotary_attention = fused(
    "rotary_attention",
    _forward,
    kernel="scaled_dot_product_attention",
    reference=_reference,
    backward=_backward,
    autocast="lower",
    inputs=("query", "key", "value", "cos", "sin"),
    extras=("queries", "keys", "attended", "log_normaliser"),
    formula=r"\operatorname{softmax}(\lambda \, R Q (R K)^\top) V",
    samples=lambda: [
        sample(
            real(2, 3, heads * 4),
            real(2, 3, 2 * 4, seed=1),
            real(2, 3, 2 * 2, seed=2),
            real(3, turned, seed=3),
            real(3, turned, seed=4),
            **_meta("rotary_attention", heads, 2, interleaved, True, None, window, cap),
        )
        for heads, turned, window, cap, interleaved in [
            (2, 2, EVERYTHING, 0.0, False),
            (4, 1, (1, -1), 1.5, True),
        ]
    ],
)


def rotary_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    num_kv_heads: int,
    *,
    interleaved: bool = False,
    is_causal: bool = True,
    scale: float | None = None,
    window_size: Window = EVERYTHING,
    softcap: float = 0.0,
) -> Tensor:
    """Attention of queries and keys that are turned before: (batch, time, heads value_dim).

    query: (batch, time, heads dim); key: (batch, time, kv_heads dim); value: (batch, time,
    kv_heads value_dim), as projections give them; cos, sin: (time, turned / 2), of the first
    features of a head, `turned` of them, or of all; interleaved: as for apply_rotary_emb. The
    others are scaled_dot_product_attention's. The same numbers as taking the heads apart, turning
    and attending, without the copies, forward and backward. Raises ShapeError where these disagree.
    """
    name, rows = "rotary_attention", query.shape[:2]
    heads, kv_heads = max(num_heads, 1), max(num_kv_heads, 1)
    if (
        any(x.ndim != 3 or x.shape[:2] != rows for x in (query, key, value))
        or heads % kv_heads
        or query.shape[2] % heads
        or key.shape[2] % kv_heads
        or value.shape[2] % kv_heads
        or query.shape[2] // heads != key.shape[2] // kv_heads
        or cos.ndim != 2
        or cos.shape != sin.shape
        or len(cos) != rows[1]
        or 2 * cos.shape[1] > query.shape[2] // heads
    ):
        raise ShapeError(
            f"{name}: expected query (batch, time, heads dim), key, value (batch, time, kv_heads "
            f"dim) for {num_heads} and {num_kv_heads} heads, and cos, sin (time, turned / 2); got "
            f"{query.shape}, {key.shape}, {value.shape}, {cos.shape} and {sin.shape}"
        )
    counts = num_heads, num_kv_heads
    meta = _meta(name, *counts, interleaved, is_causal, scale, window_size, softcap)
    return apply(_rotary_attention, [query, key, value, cos, sin], meta)


def _self_forward(
    x: Any, q: Any, k: Any, v: Any, q_bias: Any, k_bias: Any, v_bias: Any, cos: Any, sin: Any, *,
    heads: int, kv_heads: int, interleaved: bool, **options: Any,
) -> Any:  # fmt: skip
    counts = heads, kv_heads, kv_heads
    queries, keys, values = _projections(x, (q, k, v), (q_bias, k_bias, v_bias), counts)
    _turn_in_place((queries, keys), cos, sin, interleaved)
    out, log_normaliser = _kernel("scaled_dot_product_attention")(queries, keys, values, **options)
    kept = queries, keys, values, out, log_normaliser
    return join_heads(out), dict(zip(_KEPT, kept, strict=True))


def _projections(x: Any, weights: Any, biases: Any, counts: Any) -> list[Any]:
    """x by several projections, each in so many heads: (batch, heads, time, dim)."""
    return [
        by_head(_kernel("linear")(x, weight, bias), heads)
        for weight, bias, heads in zip(weights, biases, counts, strict=True)
    ]


def _self_backward(
    grad: Any, x: Any, q: Any, k: Any, v: Any, q_bias: Any, k_bias: Any, cos: Any, sin: Any,
    queries: Any, keys: Any, values: Any, attended: Any, log_normaliser: Any, heads: int,
    kv_heads: int, interleaved: bool, causal: bool, scale: float | None, window: Window,
    softcap: float, lower_right: bool, needs: Any, wide: Any, arrived: Any,
) -> Any:  # fmt: skip
    tables = needs[7] or needs[8]
    given = _projections(x, (q, k), (q_bias, k_bias), (heads, kv_heads)) if tables else None
    parts, of_tables = _heads_backward(
        by_head(grad, heads), queries, keys, values, attended, log_normaliser, cos, sin, given,
        interleaved, causal=causal, scale=scale, window=window, softcap=softcap,
        lower_right=lower_right,
    )  # fmt: skip
    dx, dweights, dbiases = arrived, [], []
    for i, (part, weight) in enumerate(zip(parts, (q, k, v), strict=True)):
        dx, dweight, dbias = _kernel("linear_backward")(
            join_heads(part), x, weight, residual=dx,
            needs=(needs[0], needs[1 + i], needs[4 + i]), wide=(wide[0], wide[1 + i], wide[4 + i]),
        )  # fmt: skip
        dweights.append(dweight)
        dbiases.append(dbias)
    return dx, *dweights, *dbiases, *of_tables


def _self_reference(
    x: Tensor, q: Tensor, k: Tensor, v: Tensor, q_bias: Any, k_bias: Any, v_bias: Any,
    cos: Tensor, sin: Tensor, **options: Any,
) -> Tensor:  # fmt: skip
    query, key, value = linear(x, q, q_bias), linear(x, k, k_bias), linear(x, v, v_bias)
    return _reference(query, key, value, cos, sin, **options)


_KEPT = ("queries", "keys", "values", "attended", "log_normaliser")

_rotary_self_attention = fused(
    "rotary_self_attention",
    _self_forward,
    kernel="scaled_dot_product_attention",
    reference=_self_reference,
    backward=_self_backward,
    autocast="lower",
    inputs=("x", "q", "k", "v", "q_bias", "k_bias", "v_bias", "cos", "sin"),
    extras=_KEPT,
    formula=r"\operatorname{softmax}(\lambda \, R W_q x (R W_k x)^\top) W_v x",
    samples=lambda: [
        sample(
            real(2, 3, 3) / 2,
            *(real(n, 3, seed=i) / 2 for i, n in enumerate((4 * heads, 8, 4), 1)),
            *(real(n, seed=i) / 2 if biased else None for i, n in enumerate((4 * heads, 8, 4), 4)),
            *(real(3, turned, seed=7), real(3, turned, seed=8)),
            **_meta("rotary_self_attention", heads, 2, interleaved, True, 0.4, window, 0.0),
        )
        for heads, turned, window, biased, interleaved in [
            (2, 2, EVERYTHING, True, False),
            (4, 1, (1, -1), False, True),
        ]
    ],
)


Affine = tuple[Tensor, Tensor | None]
"""The weight of a projection, (out, width), and its bias, (out,), or None."""


def rotary_self_attention(
    x: Tensor,
    query: Affine,
    key: Affine,
    value: Affine,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    num_kv_heads: int,
    *,
    interleaved: bool = False,
    is_causal: bool = True,
    scale: float | None = None,
    window_size: Window = EVERYTHING,
    softcap: float = 0.0,
) -> Tensor:
    """`rotary_attention` of x's own projections: (batch, time, heads value_dim).

    x: (batch, time, width); query, key, value: weights (heads dim, width), (kv_heads dim, width)
    and (kv_heads value_dim, width), each with its bias or None. The others are rotary_attention's.
    The same as three times linear and rotary_attention. Raises ShapeError where these disagree,
    DtypeError unless they are of one dtype.
    """
    name = "rotary_self_attention"
    (q, q_bias), (k, k_bias), (v, v_bias) = query, key, value
    inputs = [x, q, k, v, q_bias, k_bias, v_bias, cos, sin]
    check_one_dtype(name, inputs)
    heads, kv_heads = max(num_heads, 1), max(num_kv_heads, 1)
    sound = x.ndim == 3 and q.ndim == k.ndim == v.ndim == cos.ndim == 2
    if not sound or not (
        cos.shape == sin.shape == (x.shape[1], cos.shape[1])
        and all(weight.shape[1] == x.shape[2] for weight in (q, k, v))
        and all(
            bias is None or bias.shape == weight.shape[:1] for weight, bias in (query, key, value)
        )
        and not heads % kv_heads
        and not len(q) % heads
        and not len(k) % kv_heads
        and not len(v) % kv_heads
        and 2 * cos.shape[1] <= len(q) // heads == len(k) // kv_heads
    ):
        raise ShapeError(
            f"{name}: expected x (batch, time, width), weights (heads dim, width), (kv_heads dim, "
            "width) and (kv_heads value_dim, width), their biases, and cos, sin (time, turned / 2) "
            f"for {num_heads} and {num_kv_heads} heads; got "
            f"{[part if part is None else part.shape for part in inputs]}"
        )
    counts = num_heads, num_kv_heads
    meta = _meta(name, *counts, interleaved, is_causal, scale, window_size, softcap)
    if modes.thread.mode.scaled:
        parts = [linear(x, *pair, scaled=True) for pair in (query, key, value)]
        return apply(_rotary_attention, [*parts, cos, sin], meta)
    return apply(_rotary_self_attention, inputs, meta)
