"""Lightning attention, block by block: minitorch/ops/lightning_attention.py has the formulas."""

import functools
from typing import Any, NamedTuple

import numpy as np

from minitorch.backend import array_module, device_of, to_device
from minitorch.kernels.reference.parts import part
from minitorch.kernels.table import register

Array = np.ndarray


class Powers(NamedTuple):
    """Powers of λ in a block of n tokens, all (1 or batch, heads, ..., ...).

    within: (n, n), λ^{i-j}; query: (n, 1), λ^i; key: (n, 1), λ^{n-j}; whole: (1, 1), λ^n.
    """

    within: Any
    query: Any
    key: Any
    whole: Any


def powers(slopes: Any, real: Array) -> Powers:
    """For a block of which `real`, (1 or batch, n) bool, are tokens and the others padding."""
    slopes = np.asarray(slopes)[:, None]
    place = real.cumsum(1)[:, None]
    last = place[..., -1:]
    between = np.tril(place[..., :, None] - place[..., None, :])
    return Powers(
        np.tril(np.exp(-slopes[..., None] * between)) * real[:, None, None],
        np.exp(-slopes * place)[..., None],
        (np.exp(-slopes * (last - place)) * real[:, None])[..., None],
        np.exp(-slopes * last)[..., None],
    )


@functools.lru_cache(maxsize=256)
def _of_block(slopes: tuple[float, ...], n: int, dtype: np.dtype, device: str) -> Powers:
    found = powers(slopes, np.ones((1, n), bool))
    return Powers(*(to_device(array.astype(dtype), device) for array in found))


def by_head(x: Any, heads: int) -> tuple[Any, Any, Any]:
    """Queries, keys and values, which lie side by side in every head: (batch, heads, time, dim)."""
    batch, time, width = x.shape
    parts = x.reshape(batch, time, heads, width // heads).swapaxes(1, 2)
    dim = width // heads // 3
    return parts[..., :dim], parts[..., dim : 2 * dim], parts[..., 2 * dim :]


class _Block:
    """One block of a call: its part of each array, and its powers of λ."""

    def __init__(self, start: int, block_size: int, slopes: tuple[float, ...], x: Any):
        self.columns = slice(start, min(start + block_size, x.shape[1]))
        n = self.columns.stop - start
        self.within, self.query, self.key, self.whole = _of_block(slopes, n, x.dtype, device_of(x))
        self.first, self.last = start == 0, self.columns.stop == x.shape[1]

    def of(self, *arrays: Any) -> list[Any]:
        return [array[:, :, self.columns] for array in arrays]

    def after(self, matmul: Any, state: Any, key: Any, value: Any) -> Any:
        """The state after the block."""
        added = matmul((key * self.key).swapaxes(2, 3), value)
        if not self.first:
            added += self.whole * state
        return added


def _blocks(slopes: tuple[float, ...], block_size: int, x: Any) -> list[_Block]:
    return [_Block(start, block_size, slopes, x) for start in range(0, x.shape[1], block_size)]


@register("lightning_attention", "numpy")
def lightning_attention(x: Any, *, slopes: tuple[float, ...], block_size: int) -> Any:
    """o_t = Σ_{s ≤ t} λ^{t-s} (q_t · k_s) v_s, λ = exp(-slope) of each head.

    x: (batch, time, heads 3 dim), query, key and value of a head side by side. Returns (batch,
    time, heads dim).
    """
    matmul, heads = part("matmul", x), len(slopes)
    queries, keys, values = by_head(x, heads)
    joined = array_module(x).empty((*x.shape[:2], x.shape[2] // 3), x.dtype)
    out, state = joined.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2), None
    for block in _blocks(slopes, block_size, x):
        query, key, value, to = block.of(queries, keys, values, out)
        scores = matmul(query, key.swapaxes(2, 3))
        scores *= block.within
        to[...] = matmul(scores, value)
        if not block.first:
            to += matmul(query * block.query, state)
        if not block.last:
            state = block.after(matmul, state, key, value)
    return joined


@register("lightning_attention_backward", "numpy")
def lightning_attention_backward(
    grad: Any, x: Any, *, slopes: tuple[float, ...], block_size: int
) -> Any:
    """The gradient of x. grad: (batch, time, heads dim), the rest as above."""
    matmul, heads = part("matmul", x), len(slopes)
    dx = array_module(x).empty(x.shape, x.dtype)
    inputs, outputs = by_head(x, heads), by_head(dx, heads)
    grads = grad.reshape(*grad.shape[:2], heads, -1).swapaxes(1, 2)
    blocks = _blocks(slopes, block_size, x)
    states: list[Any] = [None]
    for block in blocks[:-1]:
        states.append(block.after(matmul, states[-1], *block.of(*inputs[1:])))
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
    return dx
