"""Attention (csrc/cpu/kernels/attention.h): memory linear in time, forward and backward.

Results lie in memory as (batch, time, heads, head_dim), whatever the order of their dimensions:
that is how a model puts the heads together again, and how it took them apart.
"""

from typing import Any

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels import reference
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import join_heads, split_heads, unpack_qkv
from minitorch.kernels.table import register

_DTYPES = frozenset({float32, float64, bfloat16})

Array = np.ndarray


@register("scaled_dot_product_attention", "cpu", half=(bfloat16,))
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """The reference's."""
    if not _takes(query, key, value):
        return reference.scaled_dot_product_attention(
            query, key, value, mask, causal=causal, scale=scale
        )
    q, k, v = (_four(x) for x in (query, key, value))
    batch, heads, time, _ = q.shape
    out = _by_time((batch, heads, time, v.shape[3]), q.dtype)
    lse = np.empty((batch, heads, time), _compute(q.dtype))
    bias = _bias(mask, query, key)
    extension.attention(q, k, v, bias, out, lse, _scale(scale, q), causal, 0)
    return out.reshape(*query.shape[:-1], v.shape[3]), lse.reshape(query.shape[:-1])


@register("scaled_dot_product_attention_backward", "cpu", half=(bfloat16,))
def scaled_dot_product_attention_backward(
    grad: Array,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    out: Array,
    log_normaliser: Array,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Array, Array, Array]:
    """The reference's."""
    if not _takes(query, key, value):
        return reference.scaled_dot_product_attention_backward(
            grad, query, key, value, mask, out, log_normaliser, causal=causal, scale=scale
        )
    q, k, v, g, o = (_four(x) for x in (query, key, value, grad, out))
    dq, dk, dv = (_by_time(x.shape, x.dtype) for x in (q, k, v))
    lse = np.ascontiguousarray(log_normaliser).reshape(q.shape[:3])
    bias = _bias(mask, query, key)
    extension.attention_backward(g, q, k, v, bias, o, lse, dq, dk, dv, _scale(scale, q), causal, 0)
    return dq.reshape(query.shape), dk.reshape(key.shape), dv.reshape(value.shape)


@register("attention_qkvpacked", "cpu", half=(bfloat16,))
def attention_qkvpacked(
    qkv: Array,
    *,
    heads: int,
    kv_heads: int,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Array, Array, Array]:
    """The reference's; nothing is copied."""
    query, key, value = unpack_qkv(np.ascontiguousarray(qkv), heads, kv_heads)
    out, lse = scaled_dot_product_attention(query, key, value, causal=causal, scale=scale)
    return join_heads(out), out, lse


@register("attention_qkvpacked_backward", "cpu", half=(bfloat16,))
def attention_qkvpacked_backward(
    grad: Array,
    qkv: Array,
    out: Array,
    log_normaliser: Array,
    *,
    heads: int,
    kv_heads: int,
    causal: bool = False,
    scale: float | None = None,
) -> Array:
    """The reference's; the three gradients are written side by side."""
    query, key, value = unpack_qkv(np.ascontiguousarray(qkv), heads, kv_heads)
    (by_head,) = split_heads(np.ascontiguousarray(grad), heads)
    if not _takes(query, key, value):
        return reference.attention_qkvpacked_backward(
            grad,
            qkv,
            out,
            log_normaliser,
            heads=heads,
            kv_heads=kv_heads,
            causal=causal,
            scale=scale,
        )
    packed = np.empty(qkv.shape, qkv.dtype)
    gradients = unpack_qkv(packed, heads, kv_heads)
    extension.attention_backward(
        by_head,
        query,
        key,
        value,
        None,
        out,
        log_normaliser,
        *gradients,
        _scale(scale, query),
        causal,
        0,
    )
    return packed


def _takes(query: Array, key: Array, value: Array) -> bool:
    one_dtype = query.dtype in _DTYPES and query.dtype == key.dtype == value.dtype
    return one_dtype and query.ndim >= 3 and query.size > 0 and key.size > 0 and value.size > 0


def _four(x: Array) -> Array:
    """(batch, heads, time, dim), the last dimension contiguous."""
    if x.ndim != 4:
        x = x.reshape(-1, *x.shape[-3:])
    return x if x.shape[3] == 1 or x.strides[3] == x.itemsize else np.ascontiguousarray(x)


def _by_time(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    batch, heads, time, dim = shape
    return np.empty((batch, time, heads, dim), dtype).transpose(0, 2, 1, 3)


def _compute(dtype: np.dtype) -> np.dtype:
    return float64 if dtype == float64 else float32


def _scale(scale: float | None, query: Array) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale


def _bias(mask: Array | None, query: Array, key: Array) -> Any:
    """The mask as what is added to the scores, broadcast to (batch, heads, time_q, time_k)."""
    if mask is None:
        return None
    dtype = _compute(query.dtype)
    if mask.dtype == bool:
        mask = np.where(mask, dtype.type(0), dtype.type(-np.inf))
    full = (*query.shape[:-1], key.shape[-2])
    return np.broadcast_to(mask.astype(dtype, copy=False), full).reshape(-1, *full[-3:])
