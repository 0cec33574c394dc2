"""Attention (csrc/cpu/kernels/attention.h): memory linear in time, forward and backward.

Results lie in memory as (batch, time, heads, head_dim), whatever the order of their dimensions:
that is how a model puts the heads together again, and how it took them apart.
"""

from typing import Any

import numpy as np

from minitorch.backend import bfloat16, compute_dtype
from minitorch.kernels.cpu.arrays import FLOATS, integers
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import attention as reference
from minitorch.kernels.reference.attention import (
    join_heads,
    kernel_numbers,
    split_heads,
    sum_to,
    unpack_qkv,
)
from minitorch.kernels.table import register

Array = np.ndarray


@register("scaled_dot_product_attention", "cpu", half=(bfloat16,))
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    sinks: Array | None = None,
    **options: Any,
) -> tuple[Array, Array]:
    """The reference's."""
    if not _takes(query, key, value):
        return reference.scaled_dot_product_attention(query, key, value, mask, sinks, **options)
    q, k, v = (_four(x) for x in (query, key, value))
    batch, heads, time, _ = q.shape
    out = _by_time((batch, heads, time, v.shape[3]), q.dtype)
    lse = np.empty((batch, heads, time), compute_dtype(q.dtype))
    bias, sinks = _bias(mask, query, key), _sinks(sinks, q.dtype)
    extension.attention(q, k, v, bias, sinks, None, None, out, lse, *kernel_numbers(q, **options))
    return out.reshape(*query.shape[:-1], v.shape[3]), lse.reshape(query.shape[:-1])


@register("scaled_dot_product_attention_backward", "cpu", half=(bfloat16,))
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
    needs_mask: bool = False,
    **options: Any,
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """The reference's. The scores' gradient is kept only for a mask that needs its own."""
    if not _takes(query, key, value):
        return reference.scaled_dot_product_attention_backward(
            grad,
            query,
            key,
            value,
            mask,
            sinks,
            out,
            log_normaliser,
            needs_mask=needs_mask,
            **options,
        )
    q, k, v, g, o = (_four(x) for x in (query, key, value, grad, out))
    dq, dk, dv = (_laid_out_like(x) for x in (q, k, v))
    lse = np.ascontiguousarray(log_normaliser).reshape(q.shape[:3])
    bias, logits = _bias(mask, query, key), _sinks(sinks, q.dtype)
    dmask, dbias, dsinks = None, None, None
    if mask is not None and needs_mask:
        dmask, dbias = _sums(mask, (*query.shape[:-1], key.shape[-2]), lse.dtype)
    if logits is not None:
        dsinks = np.empty((q.shape[0], *logits.shape), logits.dtype)
    extension.attention_backward(
        *(q, k, v, bias, logits, None, None),
        *(g, o, lse, dq, dk, dv, dbias, dsinks),
        *kernel_numbers(q, **options),
    )
    if mask is not None and dmask is not None:
        dmask = sum_to(dmask, mask.shape).astype(mask.dtype, copy=False)
    if query.ndim != 4:
        dq, dk, dv = (d.reshape(x.shape) for d, x in ((dq, query), (dk, key), (dv, value)))
    return dq, dk, dv, dmask, _over_sequences(dsinks, sinks)


@register("varlen_attention", "cpu", half=(bfloat16,))
def varlen_attention(
    query: Array,
    key: Array,
    value: Array,
    sinks: Array | None,
    starts_q: Array,
    starts_k: Array,
    **options: Any,
) -> tuple[Array, Array]:
    """The reference's; nothing is padded."""
    if not _takes(query, key, value):
        return reference.varlen_attention(query, key, value, sinks, starts_q, starts_k, **options)
    out = np.empty((*query.shape[:2], value.shape[2]), query.dtype)
    lse = np.empty((1, query.shape[1], query.shape[0]), compute_dtype(query.dtype))
    q, k, v, o = (_one_batch(x) for x in (query, key, value, out))
    extension.attention(
        *(q, k, v, None, _sinks(sinks, q.dtype), integers(starts_q), integers(starts_k), o, lse),
        *kernel_numbers(q, **options),
    )
    return out, lse[0]


@register("varlen_attention_backward", "cpu", half=(bfloat16,))
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
    """The reference's."""
    if not _takes(query, key, value):
        return reference.varlen_attention_backward(
            grad, query, key, value, sinks, starts_q, starts_k, out, log_normaliser, **options
        )
    dquery, dkey, dvalue = (np.empty(x.shape, x.dtype) for x in (query, key, value))
    logits, dsinks = _sinks(sinks, query.dtype), None
    if logits is not None:
        dsinks = np.empty((len(starts_q) - 1, *logits.shape), logits.dtype)
    q, k, v, g, o = (_one_batch(x) for x in (query, key, value, grad, out))
    extension.attention_backward(
        *(q, k, v, None, logits, integers(starts_q), integers(starts_k)),
        *(g, o, np.ascontiguousarray(log_normaliser)[None]),
        *(_one_batch(x) for x in (dquery, dkey, dvalue)),
        *(None, dsinks),
        *kernel_numbers(q, **options),
    )
    return dquery, dkey, dvalue, _over_sequences(dsinks, sinks)


@register("attention_qkvpacked", "cpu", half=(bfloat16,))
def attention_qkvpacked(
    qkv: Array, sinks: Array | None = None, *, heads: int, kv_heads: int, **options: Any
) -> tuple[Array, Array, Array]:
    """The reference's; nothing is copied."""
    query, key, value = unpack_qkv(np.ascontiguousarray(qkv), heads, kv_heads)
    out, lse = scaled_dot_product_attention(query, key, value, None, sinks, **options)
    return join_heads(out), out, lse


@register("attention_qkvpacked_backward", "cpu", half=(bfloat16,))
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
    """The reference's; the three gradients are written side by side."""
    query, key, value = unpack_qkv(np.ascontiguousarray(qkv), heads, kv_heads)
    (by_head,) = split_heads(np.ascontiguousarray(grad), heads)
    if not _takes(query, key, value):
        return reference.attention_qkvpacked_backward(
            grad, qkv, sinks, out, log_normaliser, heads=heads, kv_heads=kv_heads, **options
        )
    packed = np.empty(qkv.shape, qkv.dtype)
    logits, dsinks = _sinks(sinks, qkv.dtype), None
    if logits is not None:
        dsinks = np.empty((qkv.shape[0], *logits.shape), logits.dtype)
    extension.attention_backward(
        *(query, key, value, None, logits, None, None),
        *(by_head, out, log_normaliser),
        *unpack_qkv(packed, heads, kv_heads),
        *(None, dsinks),
        *kernel_numbers(query, **options),
    )
    return packed, _over_sequences(dsinks, sinks)


def _takes(query: Array, key: Array, value: Array) -> bool:
    one_dtype = query.dtype in FLOATS and query.dtype == key.dtype == value.dtype
    return one_dtype and query.ndim >= 3 and query.size > 0 and key.size > 0 and value.size > 0


def _four(x: Array) -> Array:
    """(batch, heads, time, dim), the last dimension contiguous."""
    if x.ndim != 4:
        x = x.reshape(-1, *x.shape[-3:])
    return _contiguous_rows(x)


def _one_batch(x: Array) -> Array:
    """(time, heads, dim) as (1, heads, time, dim), the last dimension contiguous."""
    return _contiguous_rows(x).transpose(1, 0, 2)[None]


def _contiguous_rows(x: Array) -> Array:
    return x if x.shape[-1] == 1 or x.strides[-1] == x.itemsize else np.ascontiguousarray(x)


def _laid_out_like(x: Array) -> Array:
    """Room for the gradient of x, where heads and time lie as in x."""
    by_time = x.strides[1] < x.strides[2]
    return _by_time(x.shape, x.dtype) if by_time else np.empty(x.shape, x.dtype)


def _by_time(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    batch, heads, time, dim = shape
    return np.empty((batch, time, heads, dim), dtype).transpose(0, 2, 1, 3)


def _sinks(sinks: Array | None, dtype: np.dtype) -> Array | None:
    return None if sinks is None else sinks.astype(compute_dtype(dtype), copy=False)


def _over_sequences(dsinks: Array | None, sinks: Array | None) -> Array | None:
    """(sequences, heads) summed over the sequences, of the dtype of the sinks."""
    if dsinks is None or sinks is None:
        return None
    return dsinks.sum(0).astype(sinks.dtype, copy=False)


def _bias(mask: Array | None, query: Array, key: Array) -> Any:
    """The mask as what is added to the scores, broadcast to (batch, heads, time_q, time_k)."""
    if mask is None:
        return None
    dtype = compute_dtype(query.dtype)
    if mask.dtype == bool:
        mask = np.where(mask, dtype.type(0), dtype.type(-np.inf))
    return _spread(mask.astype(dtype, copy=False), (*query.shape[:-1], key.shape[-2]))


def _sums(mask: Array, full: tuple[int, ...], dtype: np.dtype) -> tuple[Array, Array]:
    """Zeros for the mask's gradient, of its shape or the full one, and four dimensions of them."""
    zeros = np.zeros(mask.shape, dtype)
    spread = _spread(zeros, full)
    if not np.may_share_memory(zeros, spread):
        zeros = spread.reshape(full)
    return zeros, spread


def _spread(mask: Array, full: tuple[int, ...]) -> Array:
    """(..., heads, time_q, time_k) as four dimensions, of the mask's memory where that can be."""
    return np.broadcast_to(mask, full).reshape(-1, *full[-3:])
