"""Attention on the device: memory linear in time, forward and backward; TABLE says by which kernel.

Results lie in memory as (batch, time, heads, head_dim), whatever the order of their dimensions:
that is how a model puts the heads together again, and how it took them apart.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitorch.backend import array_module, beside, compute_dtype, float32, float64, int32, int64
from minitorch.errors import ConfigError, ShapeError
from minitorch.kernels.cuda.elementwise import cast
from minitorch.kernels.cuda.extension import (
    FLOATS,
    address,
    call,
    capability,
    contiguous,
    device_kernel,
    empty,
    multiprocessors,
)
from minitorch.kernels.reference import attention as reference
from minitorch.kernels.reference.attention import (
    EVERYTHING,
    Window,
    join_heads,
    kernel_numbers,
    split_heads,
    sum_to,
    unpack_qkv,
    visible,
)

Array = Any

KERNELS = ("attention", "attention_mma", "attention_wgmma")
"""Each wants more of arrays and of the device than the one before."""

_best = KERNELS[-1]
_ROWS_OF_A_BLOCK, _KEYS_OF_A_TILE = 64, 64  # of attention_decode.cu, at most


@dataclass(frozen=True)
class Request:
    """What attention is asked for. All arrays are (batch, heads, time, features)."""

    query: Array
    key: Array
    value: Array
    rows: Sequence[Array]
    """These, and all others whose rows are read or written."""
    scale: float
    packed: bool = False
    """Sequences lie one after another."""
    needs_mask: bool = False
    """The gradient of a mask is wanted."""

    def is_for_tensor_cores(self) -> bool:
        return _suit_tensor_cores(self.rows, self.scale)

    def is_for_warpgroups(self) -> bool:
        """Besides, tensor maps can describe them, and there are queries for two warpgroups."""
        return (
            self.is_for_tensor_cores()
            and capability(self.query) // 10 == 9
            and self.query.shape[2] > 64
            and self.widest() <= 256
            and all(
                d > 0 for x in self.rows for n, d in zip(x.shape, x.strides, strict=True) if n > 1
            )
        )

    def is_decoding(self) -> bool:
        """A few queries, which would leave most of a GPU without work, to many keys."""
        group = self.query.shape[1] // self.key.shape[1]
        few = group * self.query.shape[2] <= _ROWS_OF_A_BLOCK
        many = self.key.shape[2] >= 4 * _KEYS_OF_A_TILE
        return (few and many and not self.packed) or self.widest() > 256

    def widest(self) -> int:
        return max(self.query.shape[3], self.value.shape[3])


_Takes = Callable[[Request], bool]
TABLE: tuple[tuple[str, _Takes, _Takes], ...] = (
    (
        "attention_wgmma",
        lambda it: it.is_for_warpgroups(),
        lambda it: it.is_for_warpgroups() and not it.needs_mask,
    ),
    (
        "attention_decode",
        lambda it: it.is_for_tensor_cores() and it.is_decoding(),
        lambda it: False,
    ),
    (
        "attention_mma",
        lambda it: it.is_for_tensor_cores(),
        lambda it: it.is_for_tensor_cores() and not it.needs_mask,
    ),
    ("attention", lambda it: True, lambda it: True),
)
"""The first kernel whose condition holds computes it: forward, and backward.

Causal or not, windows, masks, caps, sinks, grouped heads and sequences of any lengths are with all
of them:

    attention_wgmma    Hopper, more than 64 queries: what attention_mma takes, if tensor maps can
                       describe it; backward by attention_backward_wgmma.cu
    attention_decode   a few queries to many keys; keys in pages; and heads of up to 576 features if
                       the values, up to 512, are the first of the keys'
    attention_mma      bfloat16 and float16: heads of a multiple of 8 features up to 256, rows at
                       multiples of 16 bytes, a scale above 0
    attention          everything else: float32 and float64, any rows, the gradient of a mask
"""


@contextmanager
def attention_kernel(name: str) -> Iterator[None]:
    """Within the block, attention is by this one of KERNELS where it can be, or by those before."""
    global _best
    if name not in KERNELS:
        raise ConfigError(f"attention_kernel: expected one of {', '.join(KERNELS)}; got {name!r}")
    before, _best = _best, name
    try:
        yield
    finally:
        _best = before


@device_kernel("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    sinks: Array | None = None,
    **options: Any,
) -> tuple[Array, Array]:
    """The reference's."""
    scale = kernel_numbers(query, **options)[0]
    if not _takes(query, key, value) and not _is_latent(query, key, value, scale):
        return _by_formula(
            reference.scaled_dot_product_attention, query, key, value, mask, sinks, **options
        )
    q, k, v = (_four(x) for x in (query, key, value))
    out, lse = _by_time(q, v.shape[3]), empty(q, q.shape[:3], compute_dtype(q.dtype))
    bias, logits = _bias(mask, query, key), _sinks(sinks, q)
    _forward(q, k, v, bias, logits, None, None, out, lse, **options)
    return out.reshape(*query.shape[:-1], v.shape[3]), lse.reshape(query.shape[:-1])


@device_kernel("scaled_dot_product_attention_backward")
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
        return _by_formula(
            reference.scaled_dot_product_attention_backward,
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
    if sinks is None and mask is not None and mask.dtype != bool:
        grad = _shared(grad, mask, query, key, **options)
    q, k, v, g, o = (_four(x) for x in (query, key, value, grad, out))
    dq, dk, dv = (_by_time(x, x.shape[3]) for x in (q, k, v))
    lse = contiguous(log_normaliser).reshape(q.shape[:3])
    bias, dmask, dscores = _bias(mask, query, key), None, None
    if needs_mask and mask is not None:
        dscores = empty(q, (*q.shape[:3], k.shape[2]), compute_dtype(q.dtype))
        dscores[...] = 0
    dsinks = _backward(
        *(q, k, v, bias, sinks, None, None, g, o, lse, dq, dk, dv, dscores),
        sequences=q.shape[0],
        **options,
    )
    if dscores is not None and mask is not None:
        full = dscores.reshape(*query.shape[:-1], key.shape[-2])
        dmask = beside(sum_to(full, mask.shape).astype(mask.dtype, copy=False), q)
    return dq.reshape(query.shape), dk.reshape(key.shape), dv.reshape(value.shape), dmask, dsinks


@device_kernel("paged_attention")
def paged_attention(
    query: Array,
    keys: Array,
    values: Array,
    sinks: Array | None,
    table: Array,
    lengths: Array,
    **options: Any,
) -> Array:
    """The reference's. Pages are read where they are by tensor cores, else gathered first."""
    q, k, v = (_contiguous_rows(x) for x in (query, keys, values))
    numbers = kernel_numbers(q, **options)
    out = _by_time(q, v.shape[3])
    fits = _takes(q, k, v) and _suit_tensor_cores((q, k, v), numbers[0])
    if fits or _is_latent(q, k, v, numbers[0]):
        ends, pages = _integers(lengths, q, int64), _integers(table, q, int32)
        most = table.shape[1] * k.shape[2]
        _decode(q, k, v, None, _sinks(sinks, q), out, None, ends, pages, numbers, most)
        return out
    for i, (pages, length) in enumerate(zip(table, lengths, strict=True)):
        key, value = (reference.from_pages(x, pages, int(length))[None] for x in (k, v))
        one = slice(i, i + 1)
        out[one], _ = scaled_dot_product_attention(q[one], key, value, None, sinks, **options)
    return out


@device_kernel("varlen_attention")
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
        arrays = query, key, value, sinks, starts_q, starts_k
        return _by_formula(reference.varlen_attention, *arrays, **options)
    out = empty(query, (*query.shape[:2], value.shape[2]))
    lse = empty(query, (1, query.shape[1], query.shape[0]), compute_dtype(query.dtype))
    q, k, v, o = (_one_batch(x) for x in (query, key, value, out))
    starts = _starts(starts_q, q), _starts(starts_k, q)
    _forward(q, k, v, None, _sinks(sinks, q), *starts, o, lse, **options)
    return out, lse[0]


@device_kernel("varlen_attention_backward")
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
        arrays = grad, query, key, value, sinks, starts_q, starts_k, out, log_normaliser
        return _by_formula(reference.varlen_attention_backward, *arrays, **options)
    dquery, dkey, dvalue = (empty(x) for x in (query, key, value))
    q, k, v, g, o = (_one_batch(x) for x in (query, key, value, grad, out))
    dsinks = _backward(
        *(q, k, v, None, sinks, _starts(starts_q, q), _starts(starts_k, q)),
        *(g, o, contiguous(log_normaliser)[None]),
        *(_one_batch(x) for x in (dquery, dkey, dvalue)),
        None,
        sequences=len(starts_q) - 1,
        **options,
    )
    return dquery, dkey, dvalue, dsinks


@device_kernel("attention_qkvpacked")
def attention_qkvpacked(
    qkv: Array, sinks: Array | None = None, *, heads: int, kv_heads: int, **options: Any
) -> tuple[Array, Array, Array]:
    """The reference's; nothing is copied."""
    query, key, value = unpack_qkv(contiguous(qkv), heads, kv_heads)
    out, lse = scaled_dot_product_attention(query, key, value, None, sinks, **options)
    return join_heads(out), out, lse


@device_kernel("attention_qkvpacked_backward")
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
    query, key, value = unpack_qkv(contiguous(qkv), heads, kv_heads)
    (by_head,) = split_heads(contiguous(grad), heads)
    if not _takes(query, key, value):
        arrays = grad, qkv, sinks, out, log_normaliser
        run = reference.attention_qkvpacked_backward
        return _by_formula(run, *arrays, heads=heads, kv_heads=kv_heads, **options)
    packed = empty(qkv)
    dsinks = _backward(
        *(query, key, value, None, sinks, None, None),
        *(by_head, _contiguous_rows(out), contiguous(log_normaliser)),
        *unpack_qkv(packed, heads, kv_heads),
        None,
        sequences=qkv.shape[0],
        **options,
    )
    return packed, dsinks


def _forward(*arrays: Any, **options: Any) -> None:
    query, key, value, bias, sinks, starts, _, out, lse = arrays
    numbers = kernel_numbers(query, **options)
    given = query, key, value
    kernel = _pick(Request(*given, given, numbers[0], packed=starts is not None), 0)
    if kernel == "attention_decode":
        _decode(*given, bias, sinks, out, lse, None, None, numbers, key.shape[2])
    else:
        call(kernel, *arrays, *numbers)


def _pick(request: Request, backward: int) -> str:
    better = KERNELS[KERNELS.index(_best) + 1 :]
    return next(
        kernel for kernel, *takes in TABLE if kernel not in better and takes[backward](request)
    )


def _decode(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    sinks: Array | None,
    out: Array,
    lse: Array | None,
    lengths: Array | None,
    table: Array | None,
    numbers: Sequence[Any],
    most_keys: int,
) -> None:
    """As many blocks share the keys as it takes to have two on every multiprocessor."""
    batch, heads, time, _ = query.shape
    rows = heads // key.shape[1] * time
    blocks = batch * key.shape[1] * -(-rows // _ROWS_OF_A_BLOCK)
    most = max(1, most_keys // (2 * _KEYS_OF_A_TILE))
    splits = min(most, -(-2 * multiprocessors(query) // blocks))
    outs = empty(query, (splits, batch, heads, time, value.shape[3]), float32)
    logs = empty(query, outs.shape[:-1], float32)
    lse = empty(query, logs.shape[1:], float32) if lse is None else lse
    given = query, key, value, bias, sinks, None, None, out, lse, lengths, table, outs, logs
    call("attention_decode", *given, *numbers)


def _backward(*arrays: Any, sequences: int, **options: Any) -> Array | None:
    """Run the kernel on its first fourteen arrays; returns the sinks' gradient."""
    query, key, value, _, sinks = arrays[:5]
    log_normaliser, dscores = arrays[9], arrays[13]
    logits, dsinks = _sinks(sinks, query), None
    if logits is not None:
        dsinks = empty(query, (sequences, *logits.shape), logits.dtype)
    given = [*arrays[:4], logits, *arrays[5:], dsinks, empty(log_normaliser)]
    numbers = kernel_numbers(query, **options)
    rows = (*arrays[:3], *arrays[7:9], *arrays[10:13])
    request = Request(query, key, value, rows, numbers[0], needs_mask=dscores is not None)
    call(f"{_pick(request, 1)}_backward", *given, *numbers)
    if dsinks is None:
        return None
    return beside(dsinks.sum(0).astype(sinks.dtype, copy=False), query)


def _suit_tensor_cores(rows: Sequence[Array], scale: float) -> bool:
    """They take rows that can be copied by 16 bytes, and multiplied as they are."""
    return (
        _best != "attention"
        and scale > 0
        and all(
            x.dtype.itemsize == 2
            and x.shape[-1] % 8 == 0
            and all(n % 16 == 0 for n in (address(x), *x.strides[:-1]))
            for x in rows
        )
    )


def _by_formula(run: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    """What heads wider than the kernel's get in the emulator: the reference, of halves in float32.

    The log_normaliser, which has a dimension less than the query, stays in float32.
    """
    if not isinstance(arrays[0], np.ndarray):
        given = ", ".join(f"{x.shape} {x.dtype}" for x in arrays if hasattr(x, "dtype"))
        raise ShapeError(
            "attention: expected on a GPU arrays of one dtype, some elements, and heads of at most "
            f"256 features, 128 in float64; got {given}; use smaller heads, or the CPU"
        )
    half = arrays[0].dtype
    if half.itemsize != 2:
        return run(*arrays, **options)
    rank = arrays[0].ndim
    wide = [cast(x, dtype=float32) if getattr(x, "dtype", None) == half else x for x in arrays]
    return tuple(
        cast(x, dtype=half) if x is not None and x.ndim != rank - 1 else x
        for x in run(*wide, **options)
    )


def _takes(query: Array, key: Array, value: Array) -> bool:
    one_dtype = query.dtype in FLOATS and query.dtype == key.dtype == value.dtype
    widest = 128 if query.dtype == float64 else 256
    return (
        one_dtype
        and query.ndim >= 3
        and min(query.size, key.size, value.size) > 0
        and max(query.shape[-1], value.shape[-1]) <= widest
    )


def _is_latent(query: Array, key: Array, value: Array, scale: float) -> bool:
    """Whether these are heads for attention_decode.cu alone, the values the first of the keys'."""
    return (
        query.dtype == key.dtype == value.dtype
        and _suit_tensor_cores((query, key, value), scale)
        and query.ndim >= 3
        and min(query.size, key.size, value.size) > 0
        and 256 < key.shape[-1] <= 576
        and value.shape[-1] <= min(512, key.shape[-1])
        and address(key) == address(value)
        and key.strides == value.strides
    )


def _four(x: Array) -> Array:
    """(batch, heads, time, dim), the last dimension contiguous."""
    return _contiguous_rows(x if x.ndim == 4 else x.reshape(-1, *x.shape[-3:]))


def _one_batch(x: Array) -> Array:
    """(time, heads, dim) as (1, heads, time, dim), the last dimension contiguous."""
    return _contiguous_rows(x).transpose(1, 0, 2)[None]


def _contiguous_rows(x: Array) -> Array:
    return x if x.shape[-1] == 1 or x.strides[-1] == x.itemsize else contiguous(x)


def _by_time(x: Array, dim: int) -> Array:
    batch, heads, time, _ = x.shape
    return empty(x, (batch, time, heads, dim)).transpose(0, 2, 1, 3)


def _starts(starts: Array, query: Array) -> Array:
    return _integers(starts, query, int64)


def _integers(x: Array, query: Array, dtype: np.dtype) -> Array:
    """x as integers of this dtype where the query is."""
    if not hasattr(x, "get"):  # a NumPy array, perhaps of a query on a GPU
        x = beside(array_module(query).asarray(x, dtype), query)
    return contiguous(x.astype(dtype, copy=False))


def _sinks(sinks: Array | None, query: Array) -> Array | None:
    wide = compute_dtype(query.dtype)
    return None if sinks is None else contiguous(sinks.astype(wide, copy=False))


def _shared(
    grad: Array,
    mask: Array,
    query: Array,
    key: Array,
    *,
    causal: bool = False,
    window: Window = EVERYTHING,
    lower_right: bool = False,
    **_: Any,
) -> Array:
    """grad, divided where a finite mask hides a whole row by how many keys share in it.

    Beside so large a number the log-normaliser has no digits for how many they are: the kernels
    find probabilities of 1, and these are in all that follows beside a factor of grad.
    """
    xp, dtype = array_module(query), compute_dtype(query.dtype)
    rows = xp.broadcast_to(mask.astype(dtype, copy=False), (*mask.shape[:-1], key.shape[-2]))
    seen = visible(query.shape[-2], key.shape[-2], causal, window, lower_right)
    if seen is not None:
        rows = xp.where(beside(xp.asarray(seen), query), rows, dtype.type(-np.inf))
    most = rows.max(-1, keepdims=True)
    hidden = (most < -(2.0 ** (np.finfo(dtype).nmant + 5))) & (most > -np.inf)
    count = xp.where(hidden, (rows == most).sum(-1, keepdims=True), 1)
    return beside((grad / count).astype(grad.dtype, copy=False), query)


def _bias(mask: Array | None, query: Array, key: Array) -> Array | None:
    """The mask as what is added to the scores, broadcast to (batch, heads, time_q, time_k)."""
    if mask is None:
        return None
    xp, dtype = array_module(query), compute_dtype(query.dtype)
    if mask.dtype == bool:
        mask = xp.where(mask, dtype.type(0), dtype.type(-np.inf))
    else:  # kernels multiply by log2 e, and what is finite stays so
        mask, least = mask.astype(dtype, copy=False), dtype.type(np.finfo(dtype).min / 2)
        mask = xp.where((mask < least) & (mask > -np.inf), least, mask)
    full = xp.broadcast_to(mask, (*query.shape[:-1], key.shape[-2]))
    return beside(full.reshape(-1, *full.shape[-3:]), query)
