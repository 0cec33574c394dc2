r"""Attention whose keys are half made for each head and half shared by all, as one operation.

What multi-head latent attention computes between its projections (models/blocks/latent.py): parts
of queries and keys are turned by their position, the others are not, and one turned key serves all
heads. Taken apart and put together again by operations of their own, these parts were a tenth of a
training step. Source: DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434), equations 14 to 19.
"""

from typing import Any, NamedTuple

from minitorch.errors import ShapeError
from minitorch.kernels.reference.attention import join_heads
from minitorch.ops.attention import _attention_reference
from minitorch.ops.definition import _kernel
from minitorch.ops.fused import apply_rotary_emb
from minitorch.ops.heads import by_head, gradients_of_tables
from minitorch.ops.joining import cat
from minitorch.ops.primitive import fused
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
    dcos = dsin = None
    if needs[3] or needs[4]:
        of_queries = dqueries[..., plain:], by_head(query, heads)[..., plain:]
        of_key = dkeys[..., plain:].sum(1, keepdims=True), key[:, None]
        tables = [gradients_of_tables(*pair, interleaved) for pair in (of_queries, of_key)]
        dcos, dsin = (sum(parts) for parts in zip(*tables, strict=True))
    grads = _kernel("latent_heads_backward")(
        dqueries, dkeys, dvalue, cos, sin, interleaved=interleaved
    )
    return *grads, dcos, dsin


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
