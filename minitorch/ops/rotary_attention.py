r"""Attention between a model's projections as one operation: heads turned, attended to and joined.

What is left to do between the projections of an attention layer is to take the heads apart, to turn
queries and keys by their positions (apply_rotary_emb), attention, and to put the heads together. As
operations of their own all but the attention move the same numbers again and again.
"""

from typing import Any

from minitorch.errors import ShapeError
from minitorch.kernels.reference.attention import join_heads
from minitorch.ops.attention import EVERYTHING, Window, _attention_reference, _options
from minitorch.ops.definition import _kernel
from minitorch.ops.fused import apply_rotary_emb
from minitorch.ops.heads import by_head, gradients_of_tables, room
from minitorch.ops.joining import cat
from minitorch.ops.primitive import fused
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
    *pair, dvalue, _, _ = _kernel("scaled_dot_product_attention_backward")(
        by_head(grad, heads), queries, keys, by_head(value, kv_heads), None, None, attended,
        log_normaliser, causal=causal, scale=scale, window=window, softcap=softcap,
        lower_right=lower_right,
    )  # fmt: skip
    moving = [part[..., : 2 * cos.shape[1]] for part in pair]
    dcos = dsin = None
    if needs[3] or needs[4]:
        given = (by_head(query, heads), by_head(key, kv_heads))
        tables = [
            gradients_of_tables(part, x[..., : 2 * cos.shape[1]], interleaved)
            for part, x in zip(moving, given, strict=True)
        ]
        dcos, dsin = (sum(parts) for parts in zip(*tables, strict=True))
    for part in moving:
        _kernel("rope")(part, cos, sin, interleaved=interleaved, inverse=True, out=part)
    return (*map(join_heads, pair), join_heads(dvalue), dcos, dsin)


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
            **_options("rotary_attention", heads, True, None, window, cap, None, "upper_left"),
            heads=heads,
            kv_heads=2,
            interleaved=interleaved,
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
    meta = _options(name, num_heads, is_causal, scale, window_size, softcap, None, "upper_left")
    meta |= {"heads": num_heads, "kv_heads": num_kv_heads, "interleaved": interleaved}
    return apply(_rotary_attention, [query, key, value, cos, sin], meta)
