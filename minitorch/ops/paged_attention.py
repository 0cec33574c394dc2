"""Attention to a cache that lies in pages of one pool, for decoding.

    softmax(scale Q_i K_iᵀ) V_i        K_i, V_i: the pages of sequence i, one after another

Source: Kwon et al. 2023 (PagedAttention).
"""

import numpy as np

from minitorch import backend
from minitorch.errors import ShapeError
from minitorch.ops.attention import EVERYTHING, Window, _options, _with
from minitorch.ops.definition import _kernel
from minitorch.ops.primitive import nondifferentiable
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor

_paged_attention = nondifferentiable(
    "paged_attention",
    _kernel("paged_attention"),
    kernel="paged_attention",
    inputs=("query", "keys", "values", "sinks", "table", "lengths"),
    formula=r"\operatorname{softmax}(Q_i K_i^\top / \sqrt{d}) V_i,\quad K_i, V_i \text{ in pages}",
    samples=lambda: [
        sample(
            real(2, 4, 2, 3),
            real(5, 2, 2, 3, seed=1),
            real(5, 2, 2, 3, seed=2),
            sinks,
            np.array([[3, 0, 1], [4, 2, 0]]),
            np.array([5, 3]),
            **options,
        )
        for sinks, options in [
            (None, _with(causal=True, lower_right=True)),
            (real(4), _with(softcap=1.5, lower_right=True)),
        ]
    ],
    why="a cache is on no tape; scaled_dot_product_attention has derivatives",
)


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    *,
    is_causal: bool = True,
    scale: float | None = None,
    window_size: Window = EVERYTHING,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention to a cache that lies in pages of one pool, for decoding; it has no derivative.

    query: (batch, heads, time_q, head_dim), the last positions of each sequence. key_pages,
    value_pages: (pages, kv_heads, page_size, head_dim), heads a multiple of kv_heads. block_table:
    (batch, n), integers: key t of sequence i is row t % page_size of page block_table[i, t //
    page_size]. lengths: (batch,), integers: how many keys each sequence has, those of its queries
    included. The other options are those of scaled_dot_product_attention. Returns (batch, heads,
    time_q, head_dim). A sequence grows by a page without a copy of what is there, and several may
    share one. Raises ShapeError for shapes that do not fit.
    Source: Kwon et al. 2023 (PagedAttention). In flash-attn: flash_attn_with_kvcache, which has
    (pages, page_size, kv_heads, head_dim).
    """
    name = "paged_attention"
    shapes = query.shape, key_pages.shape, value_pages.shape
    if (
        any(len(shape) != 4 for shape in shapes)
        or query.shape[3] != key_pages.shape[3]
        or key_pages.shape[:3] != value_pages.shape[:3]
        or query.shape[1] % max(key_pages.shape[1], 1)
    ):
        raise ShapeError(
            f"{name}: expected query (batch, heads, time_q, head_dim) and key_pages, value_pages "
            f"(pages, kv_heads, page_size, head_dim), heads a multiple of kv_heads; got {shapes}"
        )
    batch = len(query)
    integers = not any(map(backend.is_float, (block_table.dtype, lengths.dtype)))
    if not integers or block_table.shape[:-1] != (batch,) or lengths.shape != (batch,):
        raise ShapeError(
            f"{name}: expected integers, block_table ({batch}, n) and lengths ({batch},); got "
            f"{block_table.shape} of {block_table.dtype} and {lengths.shape} of {lengths.dtype}"
        )
    options = _options(
        *(name, query.shape[1], is_causal, scale, window_size, softcap, sinks, "lower_right")
    )
    return apply(
        _paged_attention, [query, key_pages, value_pages, sinks, block_table, lengths], options
    )
