r"""Attention as one operation: softmax(scale Q Kᵀ) V, without the (time, time) matrix in memory.

The kernels are in csrc/cpu/kernels/attention.h; `_attention_reference` is what they compute. The
variants are options of the one operation, and any may be combined:

    sliding window     position t sees positions t - left to t + right
    soft cap           scores are c tanh(s / c)
    sinks              a learnt logit for each head, in the denominator alone
    grouped heads      several heads of queries read from one head of keys and values
    additive mask      any float that is broadcast to the scores, with its gradient
    packed sequences   of any lengths one after another, each attending to itself: `varlen_attn`
    pages              of a pool that holds keys and values: ops/paged_attention.py
"""

from typing import Any

import numpy as np

from minitorch import backend, random
from minitorch.errors import ConfigError, DtypeError, ShapeError
from minitorch.ops.definition import _kernel
from minitorch.ops.fused import dropout
from minitorch.ops.joining import cat
from minitorch.ops.primitive import fused
from minitorch.ops.samples import mask, real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor, wrap

Window = tuple[int, int]

EVERYTHING: Window = (-1, -1)
_ALIGNMENTS = ("upper_left", "lower_right")
_DEFAULTS: dict[str, Any] = {
    "causal": False,
    "scale": None,
    "window": EVERYTHING,
    "softcap": 0.0,
    "lower_right": False,
}


def _with(**options: Any) -> dict[str, Any]:
    """The metadata of a sample."""
    return _DEFAULTS | options


def _attention_forward(
    query: Any, key: Any, value: Any, mask: Any, sinks: Any, **options: Any
) -> Any:
    out, log_normaliser = _kernel("scaled_dot_product_attention")(
        query, key, value, mask, sinks, **options
    )
    return out, {"log_normaliser": log_normaliser}


def _attention_backward(
    grad: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    sinks: Any,
    out: Any,
    log_normaliser: Any,
    needs: tuple[bool, ...],
    causal: bool,
    scale: float | None,
    window: Window,
    softcap: float,
    lower_right: bool,
) -> Any:
    return _kernel("scaled_dot_product_attention_backward")(
        grad,
        query,
        key,
        value,
        mask,
        sinks,
        out,
        log_normaliser,
        needs_mask=needs[3],
        causal=causal,
        scale=scale,
        window=window,
        softcap=softcap,
        lower_right=lower_right,
    )


def _attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    causal: bool,
    scale: float | None,
    window: Window = EVERYTHING,
    softcap: float = 0.0,
    lower_right: bool = False,
) -> Tensor:
    if scale is None:
        scale = query.shape[-1] ** -0.5
    groups = query.shape[-3] // key.shape[-3]
    if groups > 1:
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = (query @ key.mT) * scale
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    time_q, time_k = scores.shape[-2:]
    hidden = Tensor(_out_of_sight(time_q, time_k, causal, window, lower_right))
    if mask is not None and mask.dtype == backend.bool:
        hidden = hidden | ~mask
    elif mask is not None:
        hidden = hidden | (mask == float("-inf"))
        scores = scores + mask
    hidden = hidden.expand(scores.shape)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        logits = sinks.reshape(-1, 1, 1).expand((*scores.shape[:-1], 1))
        return cat([scores, logits], -1).softmax(-1)[..., :time_k] @ value
    blind = hidden.all(-1, keepdim=True)
    return scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0) @ value


def _out_of_sight(
    time_q: int, time_k: int, causal: bool, window: Window, lower_right: bool
) -> np.ndarray:
    """Which keys a query may not see for where they stand: (time_q, time_k)."""
    left, right = window[0], 0 if causal else window[1]
    offset = time_k - time_q if lower_right else 0
    distance = np.arange(time_k) - np.arange(offset, offset + time_q)[:, None]
    before = distance < -left if left >= 0 else np.zeros_like(distance, bool)
    return before | (distance > right) if right >= 0 else before


_attention = fused(
    "scaled_dot_product_attention",
    _attention_forward,
    kernel="scaled_dot_product_attention",
    reference=_attention_reference,
    backward=_attention_backward,
    autocast="lower",
    inputs=("query", "key", "value", "mask", "sinks"),
    extras=("log_normaliser",),
    formula=r"\operatorname{softmax}(Q K^\top / \sqrt{d}) V",
    samples=lambda: [
        sample(
            real(2, heads, time_q, 4),
            real(2, 2, 3, 4, seed=1),
            real(2, 2, 3, 4, seed=2),
            allowed,
            sinks,
            **options,
        )
        for heads, time_q, allowed, sinks, options in [
            (2, 3, None, None, _with(causal=True)),
            (4, 3, None, None, _with(scale=0.3)),
            (2, 3, mask(3, 3) | np.eye(3, dtype=bool), None, _with()),
            (2, 3, real(2, 1, 3), None, _with(softcap=1.5)),
            (4, 2, real(1, 4, 1, 3), real(4), _with(causal=True, lower_right=True)),
            (2, 3, None, real(2), _with(window=(1, 0), softcap=0.8)),
        ]
    ],
)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = True,
    *,
    window_size: Window = EVERYTHING,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    align: str = "upper_left",
    generator: random.Generator | None = None,
) -> Tensor:
    """softmax(scale Q K^T + mask) V, in memory linear in time.

    query: (batch, heads, time_q, head_dim); key, value: (batch, kv_heads, time_k, head_dim), heads
    a multiple of kv_heads (enable_gqa=False: the same). attn_mask: broadcastable to (batch, heads,
    time_q, time_k), bool (True: attend) or floats that are added to the scores. scale defaults to
    head_dim ** -0.5. A query that may see no key gives zeros. dropout_p drops probabilities, and
    does keep them all. Returns the shape of query.

    align: where query i stands among the keys. "upper_left": at key i, as in PyTorch.
    "lower_right": at key i + time_k - time_q, so that the last query stands at the last key, which
    is what new queries against a cache of keys want (in flash-attn always; in PyTorch
    torch.nn.attention.bias.causal_lower_right). From there it sees, with is_causal, no later key,
    and of window_size = (left, right) so many keys before and after, where that is not negative.
    softcap: c, to have scores c tanh(s / c), before the mask is added. sinks: (heads,), logits
    that take part in the softmax without a value, so that a head can attend to nothing.

    Raises ShapeError, ConfigError or DtypeError for what does not fit. In PyTorch:
    torch.nn.functional.scaled_dot_product_attention; window_size and softcap are flash-attn's.
    Source: Vaswani et al. 2017; the algorithm is FlashAttention-2's, Dao 2023.
    """
    name = "scaled_dot_product_attention"
    if (
        query.ndim < 3
        or query.shape[-1] != key.shape[-1]
        or key.shape[-3:-1] != value.shape[-3:-1]
        or query.shape[-3] % max(key.shape[-3], 1)
        or query.shape[:-3] != key.shape[:-3]
        or key.shape[:-3] != value.shape[:-3]
        or (query.shape[-3] != key.shape[-3] and not enable_gqa)
    ):
        raise ShapeError(
            f"{name}: expected query (batch, heads, time_q, head_dim) and "
            "key, value (batch, kv_heads, time_k, head_dim), heads "
            f"{'a multiple of' if enable_gqa else 'equal to'} kv_heads; got "
            f"{query.shape}, {key.shape} and {value.shape}"
        )
    meta = _options(name, query.shape[-3], is_causal, scale, window_size, softcap, sinks, align)
    if attn_mask is not None:
        _check_mask(name, attn_mask, (*query.shape[:-1], key.shape[-2]))
    inputs = [query, key, value, attn_mask, sinks]
    if dropout_p:
        return _attention_with_dropout(inputs, dropout_p, meta, generator)
    return apply(_attention, inputs, meta)


def _options(
    name: str,
    heads: int,
    is_causal: bool,
    scale: float | None,
    window_size: Window,
    softcap: float,
    sinks: Tensor | None,
    align: str,
) -> dict[str, Any]:
    """The metadata of the primitives, checked."""
    if len(window_size) != 2 or any(int(n) != n for n in window_size):
        raise ConfigError(
            f"{name}: expected window_size (left, right), two integers, negative for no bound; got "
            f"{window_size!r}"
        )
    if not 0 <= softcap < float("inf"):
        raise ConfigError(f"{name}: expected a softcap above 0, or 0 for none; got {softcap}")
    if align not in _ALIGNMENTS:
        raise ConfigError(f'{name}: expected align "upper_left" or "lower_right"; got {align!r}')
    if sinks is not None and sinks.shape != (heads,):
        raise ShapeError(f"{name}: expected sinks ({heads},), one for each head; got {sinks.shape}")
    return {
        "causal": is_causal,
        "scale": scale,
        "window": (int(window_size[0]), int(window_size[1])),
        "softcap": float(softcap),
        "lower_right": align == "lower_right",
    }


def _check_mask(name: str, mask: Tensor, scores: tuple[int, ...]) -> None:
    if mask.dtype != backend.bool and not mask.is_floating_point():
        raise DtypeError(
            f"{name}: expected attn_mask of bool (True: attend) or floats to add to the scores; "
            f"got {mask.dtype}"
        )
    fits = mask.ndim <= len(scores) and all(
        n in (1, wanted) for n, wanted in zip(mask.shape[::-1], scores[::-1], strict=False)
    )
    if not fits:
        raise ShapeError(
            f"{name}: expected attn_mask broadcastable to the scores {scores}; got {mask.shape}"
        )


def _attention_with_dropout(
    inputs: list[Any], p: float, meta: dict[str, Any], generator: random.Generator | None
) -> Tensor:
    """The reference, with its probabilities (attention to an identity) dropped out."""
    query, key, value, *rest = inputs
    time_k = key.shape[-2]
    identity = wrap(np.eye(time_k, dtype=value.dtype)).expand((*key.shape[:-1], time_k))
    probabilities = _attention_reference(query, key, identity, *rest, **meta)
    groups = query.shape[-3] // key.shape[-3]
    spread = value.repeat_interleave(groups, -3) if groups > 1 else value
    return dropout(probabilities, p, generator=generator) @ spread


def _packed_forward(qkv: Any, sinks: Any, **options: Any) -> Any:
    joined, out, log_normaliser = _kernel("attention_qkvpacked")(qkv, sinks, **options)
    return joined, {"by_head": out, "log_normaliser": log_normaliser}


def _packed_backward(
    grad: Any,
    qkv: Any,
    sinks: Any,
    by_head: Any,
    log_normaliser: Any,
    heads: int,
    kv_heads: int,
    causal: bool,
    scale: float | None,
    window: Window,
    softcap: float,
    lower_right: bool,
) -> Any:
    return _kernel("attention_qkvpacked_backward")(
        grad,
        qkv,
        sinks,
        by_head,
        log_normaliser,
        heads=heads,
        kv_heads=kv_heads,
        causal=causal,
        scale=scale,
        window=window,
        softcap=softcap,
        lower_right=lower_right,
    )


def _packed_reference(
    qkv: Tensor, sinks: Tensor | None, *, heads: int, kv_heads: int, **options: Any
) -> Tensor:
    batch, time, _ = qkv.shape
    by_head = qkv.reshape(batch, time, heads + 2 * kv_heads, -1).transpose(1, 2)
    query, key, value = by_head.split([heads, kv_heads, kv_heads], 1)
    out = _attention_reference(query, key, value, None, sinks, **options)
    return out.transpose(1, 2).reshape(batch, time, heads * out.shape[3])


_packed_attention = fused(
    "attention_qkvpacked",
    _packed_forward,
    kernel="attention_qkvpacked",
    reference=_packed_reference,
    backward=_packed_backward,
    autocast="lower",
    inputs=("qkv", "sinks"),
    extras=("by_head", "log_normaliser"),
    formula=r"\operatorname{softmax}(Q K^\top / \sqrt{d}) V,\quad (Q, K, V) = x",
    samples=lambda: [
        sample(qkv, sinks, heads=heads, kv_heads=2, **options)
        for qkv, sinks, heads, options in [
            (real(2, 3, 4 * 2 * 3), None, 4, _with(causal=True)),
            (real(1, 4, 2 * 3 * 2), None, 2, _with(scale=0.3)),
            (real(1, 4, 2 * 3 * 2), real(2), 2, _with(window=(2, 0), softcap=1.5)),
        ]
    ],
)


def attention_qkvpacked(
    qkv: Tensor,
    num_heads: int,
    num_kv_heads: int | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: Window = EVERYTHING,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """scaled_dot_product_attention of queries, keys and values that lie side by side.

    qkv: (batch, time, (num_heads + 2 num_kv_heads) * head_dim), as one projection gives them: first
    the heads of the queries, then of the keys, then of the values. num_kv_heads: num_heads unless
    given, else a divisor of it. Returns (batch, time, num_heads * head_dim). The same numbers as
    taking qkv apart and putting the heads together again, without the copies, forward and backward.
    Raises ShapeError where the width does not divide so. In flash-attn: flash_attn_qkvpacked_func.
    """
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    parts = num_heads + 2 * kv_heads
    if qkv.ndim != 3 or num_heads % max(kv_heads, 1) or kv_heads < 1 or qkv.shape[2] % parts:
        raise ShapeError(
            "attention_qkvpacked: expected (batch, time, width) with a width that "
            f"{num_heads} heads of queries and {kv_heads} of keys and values divide; got "
            f"{qkv.shape}"
        )
    options = _options(
        *("attention_qkvpacked", num_heads, is_causal, scale, window_size, softcap, sinks),
        align="upper_left",  # with as many queries as keys it is the same either way
    )
    meta = {"heads": num_heads, "kv_heads": kv_heads, **options}
    return apply(_packed_attention, [qkv, sinks], meta)


def _varlen_forward(
    query: Any, key: Any, value: Any, sinks: Any, starts_q: Any, starts_k: Any, **options: Any
) -> Any:
    out, log_normaliser = _kernel("varlen_attention")(
        query, key, value, sinks, starts_q, starts_k, **options
    )
    return out, {"log_normaliser": log_normaliser}


def _varlen_backward(
    grad: Any,
    query: Any,
    key: Any,
    value: Any,
    sinks: Any,
    starts_q: Any,
    starts_k: Any,
    out: Any,
    log_normaliser: Any,
    causal: bool,
    scale: float | None,
    window: Window,
    softcap: float,
    lower_right: bool,
) -> Any:
    gradients = _kernel("varlen_attention_backward")(
        grad,
        query,
        key,
        value,
        sinks,
        starts_q,
        starts_k,
        out,
        log_normaliser,
        causal=causal,
        scale=scale,
        window=window,
        softcap=softcap,
        lower_right=lower_right,
    )
    return (*gradients, None, None)


def _varlen_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    starts_q: Tensor,
    starts_k: Tensor,
    **options: Any,
) -> Tensor:
    q, k = starts_q.tolist(), starts_k.tolist()
    parts = []
    for a, b, c, d in zip(q, q[1:], k, k[1:], strict=False):
        one, keys, values = (x.transpose(0, 1) for x in (query[a:b], key[c:d], value[c:d]))
        out = _attention_reference(one, keys, values, None, sinks, **options)
        parts.append(out.transpose(0, 1))
    return cat(parts, 0)


_varlen_attention = fused(
    "varlen_attention",
    _varlen_forward,
    kernel="varlen_attention",
    reference=_varlen_reference,
    backward=_varlen_backward,
    autocast="lower",
    inputs=("query", "key", "value", "sinks", "starts_q", "starts_k"),
    extras=("log_normaliser",),
    formula=r"\operatorname{softmax}(Q_i K_i^\top / \sqrt{d}) V_i,\quad i = 1, \ldots, n",
    samples=lambda: [
        sample(
            real(5, 4, 3),
            real(7, 2, 3, seed=1),
            real(7, 2, 2, seed=2),
            sinks,
            np.array([0, 1, 5]),
            np.array([0, 3, 7]),
            **options,
        )
        for sinks, options in [
            (None, _with(causal=True, lower_right=True)),
            (real(4), _with(softcap=1.5)),
        ]
    ],
)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: Window = EVERYTHING,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    align: str = "lower_right",
) -> Tensor:
    """Attention of sequences of any lengths that lie one after another, each within itself.

    query: (total_q, heads, head_dim); key, value: (total_k, kv_heads, head_dim). cu_seq_q, and
    cu_seq_k unless it is the same: (sequences + 1,), integers that rise from 0 to the total;
    sequence i is made of the rows from cu_seq[i] to cu_seq[i + 1], and may be empty. Nothing is
    padded. The options are those of scaled_dot_product_attention, but that queries are aligned
    with the end of their keys unless align says otherwise. Returns (total_q, heads, head_dim).
    Raises ShapeError for shapes and starts that do not fit.
    In PyTorch: torch.nn.attention.varlen.varlen_attn; in flash-attn: flash_attn_varlen_func.
    """
    cu_seq_k = cu_seq_q if cu_seq_k is None else cu_seq_k
    shapes = query.shape, key.shape, value.shape
    if (
        any(len(shape) != 3 for shape in shapes)
        or query.shape[2] != key.shape[2]
        or key.shape[:2] != value.shape[:2]
        or query.shape[1] % max(key.shape[1], 1)
    ):
        raise ShapeError(
            "varlen_attn: expected query (total_q, heads, head_dim) and key, value (total_k, "
            f"kv_heads, head_dim), heads a multiple of kv_heads; got {shapes}"
        )
    starts = [_check_starts(x, n) for x, n in ((cu_seq_q, len(query)), (cu_seq_k, len(key)))]
    if starts[0].shape != starts[1].shape:
        raise ShapeError(
            "varlen_attn: expected as many sequences of keys as of queries; got cu_seq_q "
            f"{cu_seq_q.shape} and cu_seq_k {cu_seq_k.shape}"
        )
    options = _options(
        *("varlen_attn", query.shape[1], is_causal, scale, window_size, softcap, sinks, align)
    )
    return apply(_varlen_attention, [query, key, value, sinks, *starts], options)


def _check_starts(starts: Tensor, total: int) -> Tensor:
    at = starts.numpy()
    if backend.is_float(starts.dtype) or at.ndim != 1 or at.size == 0:
        raise ShapeError(
            "varlen_attn: expected cu_seq (sequences + 1,), of integers; got "
            f"{starts.shape} of {starts.dtype}"
        )
    if at[0] != 0 or at[-1] != total or (np.diff(at) < 0).any():
        raise ShapeError(
            f"varlen_attn: expected cu_seq to rise from 0 to {total}, the number of rows; got "
            f"{starts.tolist()}"
        )
    return Tensor(at.astype(np.int64))
