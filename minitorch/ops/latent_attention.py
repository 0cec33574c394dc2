r"""Attention whose keys are half made for each head and half shared by all, as one operation.

What multi-head latent attention computes between its projections (models/blocks/latent.py): parts
of queries and keys are turned by their position, the others are not, and one turned key serves all
heads. Taken apart and put together again by operations of their own, these parts were a tenth of a
training step. And the same with the projections before it: four small products and two norms, for
which the tape would do as much as they. Source: DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434),
equations 14 to 19, and 9 to 13 for the projections.
"""

from functools import partial
from typing import Any, NamedTuple

from minitorch import modes
from minitorch.backend import half_precision
from minitorch.errors import ShapeError
from minitorch.kernels.reference.attention import join_heads
from minitorch.ops.attention import _attention_reference
from minitorch.ops.definition import _kernel
from minitorch.ops.fused import apply_rotary_emb, linear, rms_norm
from minitorch.ops.heads import by_head, gradients_of_tables
from minitorch.ops.joining import cat
from minitorch.ops.primitive import fused
from minitorch.ops.promotion import check_one_dtype
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor


class _Sizes(NamedTuple):
    """Features of a head: of query and key plain and turned, of the value."""

    plain: int
    turned: int
    value: int


def _sizes(query: Any, made: Any, key: Any, heads: int) -> _Sizes:
    turned = key.shape[-1]
    plain = query.shape[-1] // heads - turned
    return _Sizes(plain, turned, made.shape[-1] // heads - plain)


def _forward(
    query: Any, made: Any, key: Any, cos: Any, sin: Any, *, heads: int, scale: float,
    interleaved: bool,
) -> Any:  # fmt: skip
    plain = _sizes(query, made, key, heads).plain
    queries, keys = _kernel("latent_heads")(
        query, made, key, cos, sin, heads=heads, interleaved=interleaved
    )
    out, log_normaliser = _kernel("scaled_dot_product_attention")(
        queries, keys, by_head(made, heads)[..., plain:], causal=True, scale=scale
    )
    kept = {"queries": queries, "keys": keys, "attended": out, "log_normaliser": log_normaliser}
    return join_heads(out), kept


def _backward(
    grad: Any, query: Any, made: Any, key: Any, cos: Any, sin: Any, queries: Any, keys: Any,
    attended: Any, log_normaliser: Any, heads: int, scale: float, interleaved: bool, needs: Any,
) -> Any:  # fmt: skip
    plain = _sizes(query, made, key, heads).plain
    dqueries, dkeys, dvalue, *_ = _kernel("scaled_dot_product_attention_backward")(
        by_head(grad, heads), queries, keys, by_head(made, heads)[..., plain:], None, None,
        attended, log_normaliser, causal=True, scale=scale,
    )  # fmt: skip
    tables: Any = (None, None)
    if needs[3] or needs[4]:
        tables = _of_tables(dqueries, dkeys, query, key, interleaved)
    grads = _kernel("latent_heads_backward")(
        dqueries, dkeys, dvalue, cos, sin, interleaved=interleaved
    )
    return *grads, *tables


def _of_tables(dqueries: Any, dkeys: Any, query: Any, key: Any, interleaved: bool) -> Any:
    """The gradients of cos and sin."""
    heads, plain = dqueries.shape[1], dqueries.shape[-1] - key.shape[-1]
    of_queries = dqueries[..., plain:], by_head(query, heads)[..., plain:]
    of_key = dkeys[..., plain:].sum(1, keepdims=True), key[:, None]
    found = [gradients_of_tables(*pair, interleaved) for pair in (of_queries, of_key)]
    return tuple(sum(parts) for parts in zip(*found, strict=True))


def _reference(
    query: Tensor, made: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, heads: int,
    scale: float, interleaved: bool,
) -> Tensor:  # fmt: skip
    plain, turned, value = _sizes(query, made, key, heads)
    batch, time, _ = query.shape
    query, made = (x.reshape(batch, time, heads, -1).transpose(1, 2) for x in (query, made))
    still, moving = query.split([plain, turned], -1)
    query = cat([still, apply_rotary_emb(moving, cos, sin, interleaved)], -1)
    still, values = made.split([plain, value], -1)
    shared = apply_rotary_emb(key.unsqueeze(1), cos, sin, interleaved)
    keys = cat([still, shared.expand(batch, heads, time, turned)], -1)
    out = _attention_reference(query, keys, values, causal=True, scale=scale)
    return out.transpose(1, 2).reshape(batch, time, -1)


_latent_attention = fused(
    "latent_attention",
    _forward,
    kernel="scaled_dot_product_attention",
    reference=_reference,
    backward=_backward,
    autocast="lower",
    inputs=("query", "made", "key", "cos", "sin"),
    extras=("queries", "keys", "attended", "log_normaliser"),
    formula=r"\operatorname{softmax}(\lambda (q^C k^{C\top} + R q^R (R k^R)^\top)) v",
    samples=lambda: [
        sample(
            real(2, 3, 2 * 5),
            real(2, 3, 2 * 4, seed=1),
            real(2, 3, 2, seed=2),
            real(3, 1, seed=3),
            real(3, 1, seed=4),
            heads=2,
            scale=0.4,
            interleaved=True,
        ),
        sample(
            real(1, 2, 3 * 5),
            real(1, 2, 3 * 3, seed=1),
            real(1, 2, 4, seed=2),
            real(2, 2, seed=3),
            real(2, 2, seed=4),
            heads=3,
            scale=0.7,
            interleaved=False,
        ),
    ],
)


def latent_attention(
    query: Tensor,
    made: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    *,
    scale: float,
    interleaved: bool = False,
) -> Tensor:
    """Causal attention of heads whose keys share their turned part: (batch, time, heads value_dim).

    query: (batch, time, heads (plain + turned)), plain features of each head before those that are
    turned; made: (batch, time, heads (plain + value_dim)), of each head the plain key and the
    value; key: (batch, time, turned), which all heads share; cos, sin: (time, turned / 2), as for
    `apply_rotary_emb`, interleaved too. The scores of a head are

        scale (plain query · plain key + turned query · turned key)

    The same as taking them apart, apply_rotary_emb and scaled_dot_product_attention, without the
    copies that putting gradients together takes. Raises ShapeError where the shapes disagree.
    """
    rows = query.shape[:2]
    heads, turned = max(num_heads, 1), key.shape[-1] if key.ndim else 0
    if (
        query.ndim != 3
        or made.ndim != 3
        or made.shape[:2] != rows
        or key.shape[:-1] != rows
        or turned % 2
        or any(x.shape != (rows[1], turned // 2) for x in (cos, sin))
        or query.shape[2] % heads
        or made.shape[2] % heads
        or min(_sizes(query, made, key, heads)) < 0
    ):
        raise ShapeError(
            "latent_attention: expected query (batch, time, heads (plain + turned)), made (batch, "
            f"time, heads (plain + value)), key (batch, time, turned) for {num_heads} heads, and "
            f"cos, sin (time, turned / 2); got {query.shape}, {made.shape}, {key.shape}, "
            f"{cos.shape} and {sin.shape}"
        )
    meta = {"heads": num_heads, "scale": float(scale), "interleaved": interleaved}
    return apply(_latent_attention, [query, made, key, cos, sin], meta)


def _self_forward(
    x: Any, q_a: Any, q_norm: Any, q_b: Any, kv_a: Any, kv_norm: Any, kv_b: Any, cos: Any, sin: Any,
    *, heads: int, scale: float, interleaved: bool, eps: float,
) -> Any:  # fmt: skip
    weights = q_a, q_norm, q_b, kv_a, kv_norm, kv_b
    found = _kernel("latent_projections")(
        x, *weights, cos, sin, heads=heads, interleaved=interleaved, eps=eps
    )
    queries, keys, made, *_ = found
    plain = queries.shape[-1] - 2 * cos.shape[-1]
    out, log_normaliser = _kernel("scaled_dot_product_attention")(
        queries, keys, by_head(made, heads)[..., plain:], causal=True, scale=scale
    )
    kept = dict(zip(_KEPT, (*found, out, log_normaliser), strict=True))
    return join_heads(out), {name: array for name, array in kept.items() if array is not None}


def _self_backward(
    grad: Any, x: Any, q_a: Any, q_norm: Any, q_b: Any, kv_a: Any, kv_norm: Any, kv_b: Any,
    cos: Any, sin: Any, queries: Any, keys: Any, made: Any, q_latent: Any, q_normed: Any,
    q_rstd: Any, latent: Any, normed: Any, rstd: Any, attended: Any, log_normaliser: Any,
    heads: int, scale: float, interleaved: bool, needs: Any,
) -> Any:  # fmt: skip
    plain = queries.shape[-1] - 2 * cos.shape[-1]
    dqueries, dkeys, dvalues, *_ = _kernel("scaled_dot_product_attention_backward")(
        by_head(grad, heads), queries, keys, by_head(made, heads)[..., plain:], None, None,
        attended, log_normaliser, causal=True, scale=scale,
    )  # fmt: skip
    tables: Any = (None, None)
    if needs[7] or needs[8]:
        linear = _kernel("linear")
        query = linear(x if q_a is None else q_normed, q_b, None)
        key = linear(x, kv_a, None)[..., kv_b.shape[1] :]
        tables = _of_tables(dqueries, dkeys, query, key, interleaved)
    weights = q_a, q_norm, q_b, kv_a, kv_norm, kv_b
    kept = q_latent, q_normed, q_rstd, latent, normed, rstd
    grads = _kernel("latent_projections_backward")(
        dqueries, dkeys, dvalues, x, *weights, cos, sin, *kept,
        interleaved=interleaved, needs=needs[:7],
    )  # fmt: skip
    return *grads, *tables


def _self_reference(
    x: Tensor, q_a: Any, q_norm: Any, q_b: Tensor, kv_a: Tensor, kv_norm: Tensor, kv_b: Tensor,
    cos: Tensor, sin: Tensor, *, heads: int, scale: float, interleaved: bool, eps: float,
) -> Tensor:  # fmt: skip
    parts = _projected(x, q_a, q_norm, q_b, kv_a, kv_norm, kv_b, eps)
    return _reference(*parts, cos, sin, heads=heads, scale=scale, interleaved=interleaved)


def _projected(
    x: Tensor, q_a: Any, q_norm: Any, q_b: Tensor, kv_a: Tensor, kv_norm: Any, kv_b: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """query, made and key of `latent_attention`."""
    project = partial(linear, scaled=modes.thread.mode.scaled)
    rank = kv_b.shape[1]
    latent, key = project(x, kv_a).split([rank, len(kv_a) - rank], -1)
    if q_a is not None:
        x = rms_norm(project(x, q_a), len(q_a), q_norm, eps)
    return project(x, q_b), project(rms_norm(latent, rank, kv_norm, eps), kv_b), key


_PARTS = ("q_a", "q_norm", "q_b", "kv_a", "kv_norm", "kv_b")
_KEPT = (
    *("queries", "keys", "made", "q_latent", "q_normed", "q_rstd", "latent", "normed", "rstd"),
    *("attended", "log_normaliser"),
)

_latent_self_attention = fused(
    "latent_self_attention",
    _self_forward,
    kernel="latent_projections",
    reference=_self_reference,
    backward=_self_backward,
    inputs=("x", *_PARTS, "cos", "sin"),
    extras=_KEPT,
    formula=r"\operatorname{softmax}(\lambda q k^\top) v,\; "
    r"(k^C, v) = W_b \operatorname{norm}(W_a x)",
    samples=lambda: [
        sample(
            *(real(2, 3, 4), real(3, 4, seed=1), real(3, seed=2), real(2 * 5, 3, seed=3)),
            *(real(3 + 2, 4, seed=4), real(3, seed=5), real(2 * 4, 3, seed=6)),
            *(real(3, 1, seed=7), real(3, 1, seed=8)),
            heads=2,
            scale=0.4,
            interleaved=True,
            eps=1e-3,
        ),
        sample(
            *(real(1, 3, 3), None, None, real(2 * 5, 3, seed=3)),
            *(real(3 + 4, 3, seed=4), real(3, seed=5), real(2 * 3, 3, seed=6)),
            *(real(3, 2, seed=7), real(3, 2, seed=8)),
            heads=2,
            scale=0.7,
            interleaved=False,
            eps=1e-3,
        ),
    ],
)


Compressed = tuple[Tensor, Tensor | None, Tensor]
"""Into a latent, the weight of its norm, or None for ones, and out of it."""


def latent_self_attention(
    x: Tensor,
    to_query: Compressed | Tensor,
    to_made: Compressed,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    *,
    scale: float,
    interleaved: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """`latent_attention` of x's own projections: (batch, time, heads value_dim).

    x: (batch, time, width); to_query: weights of the projection to the queries' latent, (rank,
    width), of its norm, and of the projection from it, (heads (plain + turned), rank), or of one
    from x; to_made: the same for keys and values, (heads (plain + value), rank), but that the
    first, (rank + turned, width), also gives the key that heads share. cos, sin and the rest:
    as for `latent_attention`; eps: of the norms. The same as linear, rms_norm, linear and
    latent_attention, and made of these in half precision and under `autocast`. Raises ShapeError
    where these disagree, DtypeError unless they are of one dtype.
    """
    q_a, q_norm, q_b = (None, None, to_query) if isinstance(to_query, Tensor) else to_query
    kv_a, kv_norm, kv_b = to_made
    inputs = [x, q_a, q_norm, q_b, kv_a, kv_norm, kv_b, cos, sin]
    check_one_dtype("latent_self_attention", inputs)
    width, heads, turned = x.shape[-1], max(num_heads, 1), 2 * cos.shape[-1]
    matrices = [part for part in (q_a, q_b, kv_a, kv_b) if part is not None]
    sound = x.ndim == 3 and all(part.ndim == 2 for part in matrices) and cos.ndim == 2
    if not sound or not (
        cos.shape == sin.shape == (x.shape[1], turned // 2)
        and kv_a.shape == (kv_b.shape[1] + turned, width)
        and (kv_norm is None or kv_norm.shape == kv_b.shape[1:])
        and (q_a is None or q_a.shape[1] == width)
        and (q_a is None or q_norm is None or q_norm.shape == q_a.shape[:1])
        and q_b.shape[1] == (width if q_a is None else len(q_a))
        and not len(q_b) % heads
        and not len(kv_b) % heads
        and 0 <= len(q_b) // heads - turned <= len(kv_b) // heads
    ):
        raise ShapeError(
            "latent_self_attention: expected x (batch, time, width), projections (q_rank, width), "
            f"(heads (plain + turned), q_rank), (rank + turned, width) and (heads (plain + value), "
            f"rank) for {num_heads} heads, norms (q_rank,) and (rank,), and cos, sin (time, turned "
            f"/ 2); got {[part if part is None else part.shape for part in inputs]}"
        )
    meta = {"heads": heads, "scale": float(scale), "interleaved": interleaved}
    if modes.thread.mode.lower is not None or half_precision(x.dtype):
        parts = _projected(x, q_a, q_norm, q_b, kv_a, kv_norm, kv_b, eps)
        return apply(_latent_attention, [*parts, cos, sin], meta)
    return apply(_latent_self_attention, inputs, {**meta, "eps": eps})
