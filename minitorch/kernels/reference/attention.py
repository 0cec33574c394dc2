"""Attention in NumPy, forward and backward: the whole matrix of scores, as in the formulas.

    S = softcap(scale Q Kᵀ) + mask,   P = exp(S) / (exp(z) + Σ exp(S)),   O = P V

softcap(x) is c tanh(x / c), or x; z is the logit of a sink, or -inf. The compiled kernel is held
against these functions, which see each number of S at once; it never does (csrc/cpu/kernels/
attention.h).
"""

from itertools import accumulate
from typing import Any

import numpy as np

from minitorch.kernels.table import register

Array = np.ndarray
Window = tuple[int, int]

EVERYTHING: Window = (-1, -1)


@register("scaled_dot_product_attention", "numpy")
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    sinks: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: Window = EVERYTHING,
    softcap: float = 0.0,
    lower_right: bool = False,
) -> tuple[Array, Array]:
    """softmax(softcap(scale Q Kᵀ) + mask) V.

    query: (..., heads, time_q, head_dim); key: (..., kv_heads, time_k, head_dim); value: (...,
    kv_heads, time_k, value_dim); heads a multiple of kv_heads, each of which serves a run of
    neighbouring heads. mask: broadcastable to (..., heads, time_q, time_k), either bool (True:
    attend) or a float that is added. sinks: (heads,), logits that take part in the denominator
    alone. scale: head_dim ** -0.5 unless given. softcap: c, 0 for none.

    Query i stands at position i of the keys, or, with lower_right, where the last query meets the
    last key: at i + time_k - time_q. It sees window[0] keys before its position and window[1]
    after it, all where that is negative; causal: none after it. A query that sees nothing gets
    zeros.

    Returns out: (..., heads, time_q, value_dim), and the logsumexp of the scores: (..., heads,
    time_q), +inf for a query that sees nothing, from which the backward recomputes the
    probabilities. Source: Vaswani et al. 2017, equation 1; for the cap Gemma 2, 2024, section 2;
    for the sinks Xiao et al. 2023 and gpt-oss, 2025.
    """
    seen = visible(query.shape[-2], key.shape[-2], causal, window, lower_right)
    weights, _ = _scores(query, key, mask, seen, scale, softcap)
    largest = weights.max(axis=-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        largest = np.maximum(largest, sinks[:, None, None])
    blind = np.isneginf(largest)
    largest[blind] = 0
    weights -= largest
    np.exp(weights, out=weights)
    total = weights @ np.ones((weights.shape[-1], 1), weights.dtype)  # faster than weights.sum(-1)
    if sinks is not None:
        total += np.exp(sinks[:, None, None] - largest)
    total[blind] = 1
    out = _by_group(weights, value)
    out /= total
    log_normaliser = np.log(total) + largest
    log_normaliser[blind] = np.inf
    return out, log_normaliser[..., 0]


@register("scaled_dot_product_attention_backward", "numpy")
def scaled_dot_product_attention_backward(
    grad: Array,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    sinks: Array | None,
    out: Array,
    log_normaliser: Array,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: Window = EVERYTHING,
    softcap: float = 0.0,
    lower_right: bool = False,
    needs_mask: bool = False,
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """Gradients for query, key, value, mask (if needed) and sinks (if given), of their shapes.

    With P = exp(S - log_normaliser), dP = grad Vᵀ and D = Σ grad out:  dV = Pᵀ grad,
    dS = P (dP - D), which is the mask's;  dX = scale softcap' dS,  dQ = dX K,  dK = dXᵀ Q;  and of
    a sink z, whose value is 0:  dz = -Σ exp(z - log_normaliser) D. Where a row is masked throughout
    by the least finite number, log_normaliser has no digits for the sum, and P is divided by it.
    Source: Dao et al. 2022 (FlashAttention), appendix B.2.
    """
    kv_heads = key.shape[-3]
    seen = visible(query.shape[-2], key.shape[-2], causal, window, lower_right)
    probabilities, slope = _scores(query, key, mask, seen, scale, softcap)
    probabilities -= log_normaliser[..., None]
    np.exp(probabilities, out=probabilities)
    total = probabilities.sum(-1, keepdims=True)
    shares = None if sinks is None else np.exp(sinks[:, None] - log_normaliser)[..., None]
    total += 0 if shares is None else shares
    total[total == 0] = 1  # of a query that sees nothing
    probabilities /= total

    dvalue = _group(probabilities, kv_heads).mT @ _group(grad, kv_heads)
    delta = np.vecdot(grad, out)
    dscores = _by_group(grad, value.mT)
    dscores -= delta[..., None]
    dscores *= probabilities
    dmask = sum_to(dscores, mask.shape) if needs_mask and mask is not None else None
    dscores *= slope
    dquery = _by_group(dscores, key)
    dkey = _group(dscores, kv_heads).mT @ _group(query, kv_heads)
    dsinks = None
    if shares is not None:
        shares = (shares / total)[..., 0] * delta
        dsinks = -shares.sum(axis=(*range(shares.ndim - 2), -1))
    return dquery, dkey, dvalue, dmask, dsinks


@register("varlen_attention", "numpy")
def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    sinks: Array | None,
    starts_q: Array,
    starts_k: Array,
    **options: Any,
) -> tuple[Array, Array]:
    """Attention of sequences that lie one after another, each within itself.

    query: (total_q, heads, head_dim); key, value: (total_k, kv_heads, head_dim). starts_q,
    starts_k: (sequences + 1,), int64, where each sequence begins and the last one ends. options:
    those of `scaled_dot_product_attention`. Returns out: (total_q, heads, value_dim) and the
    logsumexp of the scores: (heads, total_q).
    """
    out = np.empty((*query.shape[:2], value.shape[2]), query.dtype)
    log_normaliser = np.empty((query.shape[1], query.shape[0]), query.dtype)
    for q, k in sequences(starts_q, starts_k):
        one, keys, values = by_head(query[q], key[k], value[k])
        heads, log_normaliser[:, q] = scaled_dot_product_attention(
            one, keys, values, None, sinks, **options
        )
        out[q] = heads.transpose(1, 0, 2)
    return out, log_normaliser


@register("varlen_attention_backward", "numpy")
def varlen_attention_backward(
    grad: Array,
    query: Array,
    key: Array,
    value: Array,
    sinks: Array | None,
    starts_q: Array,
    starts_k: Array,
    out: Array,
    log_normaliser: Array,
    **options: Any,
) -> tuple[Array, Array, Array, Array | None]:
    """The gradients for query, key, value and sinks."""
    dquery, dkey, dvalue = (np.empty(x.shape, x.dtype) for x in (query, key, value))
    dsinks = None if sinks is None else np.zeros(sinks.shape, sinks.dtype)
    for q, k in sequences(starts_q, starts_k):
        dout, one, keys, values, heads = by_head(grad[q], query[q], key[k], value[k], out[q])
        *gradients, _, of_sinks = scaled_dot_product_attention_backward(
            dout, one, keys, values, None, sinks, heads, log_normaliser[:, q], **options
        )
        dquery[q], dkey[k], dvalue[k] = by_head(*gradients)
        if dsinks is not None:
            dsinks += of_sinks
    return dquery, dkey, dvalue, dsinks


@register("paged_attention", "numpy")
def paged_attention(
    query: Array,
    keys: Array,
    values: Array,
    sinks: Array | None,
    table: Array,
    lengths: Array,
    **options: Any,
) -> Array:
    """Attention to keys and values that lie in pages of a pool.

    query: (batch, heads, time_q, head_dim); keys, values: (pages, kv_heads, page_size, head_dim).
    table: (batch, n), which pages hold the keys of each sequence, in order; lengths: (batch,), how
    many keys it has. options: those of `scaled_dot_product_attention`. Returns (batch, heads,
    time_q, value_dim). Source: Kwon et al. 2023 (PagedAttention), section 4.1.
    """
    out = np.empty((*query.shape[:3], values.shape[3]), query.dtype)
    for i, (pages, length) in enumerate(zip(table, lengths, strict=True)):
        key, value = (from_pages(x, pages, int(length)) for x in (keys, values))
        out[i], _ = scaled_dot_product_attention(query[i], key, value, None, sinks, **options)
    return out


def from_pages(x: Any, pages: Any, length: int) -> Any:
    """(kv_heads, length, dim) of a pool (pages, kv_heads, page_size, dim)."""
    _, heads, page_size, dim = x.shape
    used = x[pages[: -(-length // page_size)]].transpose(1, 0, 2, 3)
    return used.reshape(heads, -1, dim)[:, :length]


def sequences(starts_q: Array, starts_k: Array) -> list[tuple[slice, slice]]:
    """Where the queries and the keys of each sequence are."""
    return [
        (slice(a, b), slice(c, d))
        for a, b, c, d in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False)
    ]


def by_head(*arrays: Any) -> list[Array]:
    """Views (heads, time, head_dim) of arrays (time, heads, head_dim), or the other way round."""
    return [x.transpose(1, 0, 2) for x in arrays]


@register("attention_qkvpacked", "numpy")
def attention_qkvpacked(
    qkv: Array, sinks: Array | None = None, *, heads: int, kv_heads: int, **options: Any
) -> tuple[Array, Array, Array]:
    """Attention of queries, keys and values that lie side by side, as one product gives them.

    qkv: (batch, time, (heads + 2 kv_heads) * head_dim): the heads of queries, of keys, of values.
    Returns out: (batch, time, heads * head_dim); the same by heads, as the backward wants it; and
    the logsumexp of the scores.
    """
    query, key, value = unpack_qkv(qkv, heads, kv_heads)
    out, log_normaliser = scaled_dot_product_attention(query, key, value, None, sinks, **options)
    return join_heads(out), out, log_normaliser


@register("attention_qkvpacked_backward", "numpy")
def attention_qkvpacked_backward(
    grad: Array,
    qkv: Array,
    sinks: Array | None,
    out: Array,
    log_normaliser: Array,
    *,
    heads: int,
    kv_heads: int,
    **options: Any,
) -> tuple[Array, Array | None]:
    """The gradients for qkv and sinks; out by heads, grad: (batch, time, heads * head_dim)."""
    query, key, value = unpack_qkv(qkv, heads, kv_heads)
    (grad_by_head,) = split_heads(grad, heads)
    *gradients, _, dsinks = scaled_dot_product_attention_backward(
        grad_by_head, query, key, value, None, sinks, out, log_normaliser, **options
    )
    return np.concatenate([join_heads(gradient) for gradient in gradients], axis=2), dsinks


def kernel_numbers(
    query: Array,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: Window = EVERYTHING,
    softcap: float = 0.0,
    lower_right: bool = False,
) -> tuple[float, float, int, int, bool]:
    """The options as the compiled kernels take them: scale, softcap, left, right, lower_right."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return scale, softcap, window[0], 0 if causal else window[1], lower_right


def unpack_qkv(qkv: Array, heads: int, kv_heads: int) -> list[Array]:
    """Views of the three parts, (batch, heads, time, head_dim) each."""
    return split_heads(qkv, heads, kv_heads, kv_heads)


def split_heads(x: Array, *counts: int) -> list[Array]:
    """(batch, time, n * head_dim), n the sum of counts, as views (batch, count, time, head_dim)."""
    batch, time, width = x.shape
    by_head = x.reshape(batch, time, sum(counts), width // sum(counts)).transpose(0, 2, 1, 3)
    ends = accumulate(counts)
    return [by_head[:, end - n : end] for n, end in zip(counts, ends, strict=True)]


def join_heads(x: Array) -> Array:
    """(batch, heads, time, head_dim) as (batch, time, heads * head_dim)."""
    batch, heads, time, head_dim = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, time, heads * head_dim)


def visible(
    time_q: int, time_k: int, causal: bool, window: Window, lower_right: bool
) -> Array | None:
    """Which query sees which key, as far as positions decide: (time_q, time_k); None: all.

    >>> visible(2, 4, True, (1, -1), True).astype(int)
    array([[0, 1, 1, 0],
           [0, 0, 1, 1]])
    """
    left, right = window[0], 0 if causal else window[1]
    if left < 0 and right < 0:
        return None
    position = np.arange(time_q)[:, None] + (time_k - time_q if lower_right else 0)
    distance = np.arange(time_k) - position
    return (distance >= (-left if left >= 0 else -np.inf)) & (
        distance <= (right if right >= 0 else np.inf)
    )


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the dimensions along which `shape` was broadcast to that of x."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    ones = tuple(i for i, n in enumerate(shape) if n == 1 != x.shape[i])
    return x.sum(axis=ones, keepdims=True)


def _scores(query, key, mask, seen, scale, softcap):
    """The scores, -inf where a query must not look, and by what the products' gradient is scaled.

    (..., heads, time_q, time_k), and a number or as many.
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    scores, slope = _by_group(query * scale, key.mT), scale
    if softcap:
        capped = np.tanh(scores / softcap)
        scores, slope = softcap * capped, scale * (1 - capped * capped)
    if mask is not None and mask.dtype != bool:
        scores += mask
    elif mask is not None:
        np.copyto(scores, -np.inf, where=~mask)
    if seen is not None:
        np.copyto(scores, -np.inf, where=~seen)
    return scores, slope


def _by_group(x, per_head):
    """x @ per_head, where x has a multiple of the heads of per_head."""
    kv_heads = per_head.shape[-3]
    if x.shape[-3] == kv_heads:
        return x @ per_head
    grouped = _group(x, kv_heads)
    return (grouped @ per_head).reshape(*x.shape[:-1], per_head.shape[-1])


def _group(x, kv_heads):
    """(..., heads, time, n) as (..., kv_heads, heads / kv_heads * time, n)."""
    *leading, heads, time, width = x.shape
    return (
        x if heads == kv_heads else x.reshape(*leading, kv_heads, heads // kv_heads * time, width)
    )
