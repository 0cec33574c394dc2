r"""Lightning attention, block by block, as one operation; models/blocks/lightning.py has its forms.

    o_t = Σ_{s ≤ t} λ^{t-s} (q_t · k_s) v_s

Within a block of n tokens, i = 1, ..., n, and with the state S of those before,

    o_i = Σ_{j ≤ i} λ^{i-j} (q_i · k_j) v_j + λ^i q_i S,    S ← λ^n S + Σ_j λ^{n-j} k_j v_jᵀ

Backward the same blocks from the last to the first, with the gradient of S in place of S. What the
reference computes is the first formula, all products at once. Source: Qin et al. 2024, "Lightning
Attention-2" (arXiv 2401.04658), algorithms 1 and 2.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from minitorch import backend
from minitorch.errors import ShapeError
from minitorch.ops.definition import _kernel
from minitorch.ops.primitive import fused
from minitorch.ops.samples import real, sample
from minitorch.tape import apply
from minitorch.tensor import Tensor


class Decays(NamedTuple):
    """Powers of λ in a block of n tokens, all (1 or batch, heads, ..., ...).

    within: (n, n), λ^{i-j}; query: (n, 1), λ^i; key: (n, 1), λ^{n-j}; whole: (1, 1), λ^n.
    """

    within: Tensor
    query: Tensor
    key: Tensor
    whole: Tensor


def decays(slopes: np.ndarray, real: np.ndarray, dtype: np.dtype, device: str = "cpu") -> Decays:
    """For a block of which `real`, (1 or batch, n) bool, are tokens and the others padding."""
    slopes = np.asarray(slopes)[:, None]
    place = real.cumsum(1)[:, None]
    last = place[..., -1:]
    between = np.tril(place[..., :, None] - place[..., None, :])
    arrays = (
        np.tril(np.exp(-slopes[..., None] * between)) * real[:, None, None],
        np.exp(-slopes * place)[..., None],
        (np.exp(-slopes * (last - place)) * real[:, None])[..., None],
        np.exp(-slopes * last)[..., None],
    )
    return Decays(*(Tensor(array.astype(dtype)).to(device) for array in arrays))


@functools.lru_cache(maxsize=256)
def unpadded_decays(slopes: tuple[float, ...], n: int, dtype: np.dtype, device: str) -> Decays:
    """For a block of n tokens."""
    return decays(np.array(slopes), np.ones((1, n), bool), dtype, device)


def _parts(x: Any, heads: int) -> tuple[Any, Any, Any]:
    """Queries, keys and values, which lie side by side in every head: (batch, heads, time, dim)."""
    batch, time, width = x.shape
    by_head = x.reshape(batch, time, heads, width // heads).swapaxes(1, 2)
    dim = width // heads // 3
    return by_head[..., :dim], by_head[..., dim : 2 * dim], by_head[..., 2 * dim :]


class _Block:
    """One block of a call: its part of each array, and its powers of λ."""

    def __init__(self, start: int, block_size: int, slopes: tuple[float, ...], x: Any):
        self.columns = slice(start, min(start + block_size, x.shape[1]))
        n = self.columns.stop - start
        powers = unpadded_decays(slopes, n, x.dtype, backend.device_of(x))
        self.within, self.query, self.key, self.whole = (power.data for power in powers)
        self.first, self.last = start == 0, self.columns.stop == x.shape[1]

    def of(self, *arrays: Any) -> list[Any]:
        return [array[:, :, self.columns] for array in arrays]


def _blocks(slopes: tuple[float, ...], block_size: int, x: Any) -> list[_Block]:
    return [_Block(start, block_size, slopes, x) for start in range(0, x.shape[1], block_size)]


def _after(block: _Block, state: Any, key: Any, value: Any) -> Any:
    """The state after a block."""
    added = _kernel("matmul")((key * block.key).swapaxes(2, 3), value)
    if not block.first:
        added += block.whole * state
    return added


def _forward(x: Any, *, slopes: tuple[float, ...], block_size: int) -> Any:
    matmul, heads = _kernel("matmul"), len(slopes)
    queries, keys, values = _parts(x, heads)
    joined = backend.array_module(x).empty((*x.shape[:2], x.shape[2] // 3), x.dtype)
    out, state = joined.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2), None
    for block in _blocks(slopes, block_size, x):
        query, key, value, to = block.of(queries, keys, values, out)
        scores = matmul(query, key.swapaxes(2, 3))
        scores *= block.within
        to[...] = matmul(scores, value)
        if not block.first:
            to += matmul(query * block.query, state)
        if not block.last:
            state = _after(block, state, key, value)
    return joined


def _backward(grad: Any, x: Any, slopes: tuple[float, ...], block_size: int) -> tuple[Any]:
    matmul, heads = _kernel("matmul"), len(slopes)
    dx = backend.array_module(x).empty(x.shape, x.dtype)
    inputs, outputs = _parts(x, heads), _parts(dx, heads)
    grads = grad.reshape(*grad.shape[:2], heads, -1).swapaxes(1, 2)
    blocks = _blocks(slopes, block_size, x)
    states: list[Any] = [None]
    for block in blocks[:-1]:
        states.append(_after(block, states[-1], *block.of(*inputs[1:])))
    dstate: Any = None
    for block, state in zip(reversed(blocks), reversed(states), strict=True):
        query, key, value = block.of(*inputs)
        dquery, dkey, dvalue, g = block.of(*outputs, grads)
        scores, dscores = matmul(query, key.swapaxes(2, 3)), matmul(g, value.swapaxes(2, 3))
        scores *= block.within
        dscores *= block.within
        dquery[...] = matmul(dscores, key)
        dkey[...] = matmul(dscores.swapaxes(2, 3), query)
        dvalue[...] = matmul(scores.swapaxes(2, 3), g)
        if not block.last:
            dkey += matmul(value, dstate.swapaxes(2, 3)) * block.key
            dvalue += matmul(key * block.key, dstate)
        if not block.first:
            dquery += matmul(g, state.swapaxes(2, 3)) * block.query
            read = matmul((query * block.query).swapaxes(2, 3), g)
            dstate = read if block.last else read + block.whole * dstate
    return (dx,)


def _reference(x: Tensor, *, slopes: tuple[float, ...], block_size: int) -> Tensor:
    batch, time, width = x.shape
    heads = x.reshape(batch, time, len(slopes), -1).transpose(1, 2)
    query, key, value = heads.chunk(3, -1)
    within = unpadded_decays(slopes, time, x.dtype, x.device).within
    out = (query @ key.mT * within) @ value
    return out.transpose(1, 2).reshape(batch, time, width // 3)


_lightning_attention = fused(
    "lightning_attention",
    _forward,
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
