"""Arrays by head, as the operations want them that take a model's projections as they come.

All here work on arrays, not tensors.
"""

from typing import Any

from minitorch import backend
from minitorch.kernels.reference.attention import split_heads


def by_head(x: Any, heads: int) -> Any:
    """(batch, time, heads dim) as a view (batch, heads, time, dim)."""
    return split_heads(x, heads)[0]


def room(like: Any, dim: int) -> Any:
    """Empty, (batch, heads, time, dim) as in like, for heads that lie side by side."""
    batch, heads, time, _ = like.shape
    make = backend.array_module(like).empty
    return make((batch, time, heads, dim), like.dtype).transpose(0, 2, 1, 3)


def gradients_of_tables(grad: Any, x: Any, interleaved: bool) -> tuple[Any, Any]:
    """Those of cos and sin, from that of x turned: (time, dim / 2).

    grad, x: (batch, heads, time, dim).
    """
    half = x.shape[-1] // 2
    first = slice(0, None, 2) if interleaved else slice(0, half)
    second = slice(1, None, 2) if interleaved else slice(half, None)
    a, b, da, db = x[..., first], x[..., second], grad[..., first], grad[..., second]
    return (da * a + db * b).sum((0, 1)), (db * a - da * b).sum((0, 1))
