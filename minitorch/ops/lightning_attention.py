r"""Lightning attention, block by block, as one operation; models/blocks/lightning.py has its forms.

    o_t = Σ_{s ≤ t} λ^{t-s} (q_t · k_s) v_s

Within a block of n tokens, i = 1, ..., n, and with the state S of those before,

    o_i = Σ_{j ≤ i} λ^{i-j} (q_i · k_j) v_j + λ^i q_i S,    S ← λ^n S + Σ_j λ^{n-j} k_j v_jᵀ

Backward the same blocks from the last to the first, with the gradient of S in place of S. What the
reference computes is the first formula, all products at once. Source: Qin et al. 2024, "Lightning
Attention-2" (arXiv 2401.04658), algorithms 1 and 2.
"""

import functools
from typing import Any

import numpy as np

from minitorch.errors import ShapeError
from minitorch.kernels.reference.lightning import Powers, powers
from minitorch.ops.definition import _kernel
from minitorch.ops.primitive import fused
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor


def decays(slopes: np.ndarray, real: np.ndarray, dtype: np.dtype, device: str = "cpu") -> Powers:
    """`powers` as Tensors: of a block of which `real`, (1 or batch, n) bool, are tokens."""
    found = powers(slopes, real)
    return Powers(*(Tensor(array.astype(dtype)).to(device) for array in found))


@functools.lru_cache(maxsize=256)
def unpadded_decays(slopes: tuple[float, ...], n: int, dtype: np.dtype, device: str) -> Powers:
    """For a block of n tokens."""
    return decays(np.array(slopes), np.ones((1, n), bool), dtype, device)


def _backward(grad: Any, x: Any, slopes: tuple[float, ...], block_size: int) -> tuple[Any]:
    kernel = _kernel("lightning_attention_backward")
    return (kernel(grad, x, slopes=slopes, block_size=block_size),)


def _reference(x: Tensor, *, slopes: tuple[float, ...], block_size: int) -> Tensor:
    batch, time, width = x.shape
    heads = x.reshape(batch, time, len(slopes), -1).transpose(1, 2)
    query, key, value = heads.chunk(3, -1)
    within = unpadded_decays(slopes, time, x.dtype, x.device).within
    out = (query @ key.mT * within) @ value
    return out.transpose(1, 2).reshape(batch, time, width // 3)


_lightning_attention = fused(
    "lightning_attention",
    _kernel("lightning_attention"),
    kernel="lightning_attention",
    reference=_reference,
    backward=_backward,
    autocast="lower",
    inputs=("x",),
    formula=r"\sum_{s \le t} \lambda^{t-s} (q_t \cdot k_s) v_s,\quad (q, k, v) = x",
    samples=lambda: [
        sample(real(2, 5, 2 * 3 * 2), slopes=(0.5, 0.1), block_size=n) for n in (2, 3, 8)
    ],
)


def lightning_attention(x: Tensor, slopes: tuple[float, ...], block_size: int = 256) -> Tensor:
    """Linear attention with a decay: (batch, time, heads · 3 dim) -> (batch, time, heads · dim).

    x: queries, keys and values, side by side in every head. slopes: of each head, λ = exp(-slope).
    The block size changes nothing but what it costs: block_size · dim products for a token and
    head within its block, and dim² through the state. Raises ShapeError where the width of x is not
    that of so many heads.
    """
    if x.ndim != 3 or not slopes or x.shape[2] % (3 * len(slopes)) or block_size < 1:
        raise ShapeError(
            "lightning_attention: expected (batch, time, heads 3 dim) for the heads that have "
            f"slopes, and a block_size of at least 1; got {x.shape}, {len(slopes)} and {block_size}"
        )
    return apply(_lightning_attention, [x], {"slopes": tuple(slopes), "block_size": block_size})
