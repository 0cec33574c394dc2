"""Draws from the distribution that logits describe."""

import numpy as np

from minitorch.kernels.philox import stream
from minitorch.kernels.table import register

Array = np.ndarray


@register("categorical", "numpy")
def categorical(
    logits: Array,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    offset: int,
) -> Array:
    """An index for each row, from softmax(logits / temperature) cut to the most probable ones.

    logits: (rows, columns). Returns (rows,) int64, -1 for a row with a NaN or of no finite maximum.
    The draw is argmax(logits / temperature + Gumbel noise); the noise of a row is a function of
    seed, offset and the row's number. top_k, top_p and min_p, in this order, each set a floor;
    what equals it stays. 0, 1 and 0 are all. Source: Maddison et al. 2014, "A* sampling"; Fan et
    al. 2018; Holtzman et al. 2020; Nguyen et al. 2024.
    """
    rows, columns = logits.shape
    drawable = np.isfinite(logits.max(1))
    scaled = (logits - np.where(drawable, logits.max(1), 0)[:, None]) / temperature
    floor = np.full((rows, 1), -np.inf)
    if 0 < top_k < columns:
        floor = np.partition(logits, -top_k, 1)[:, -top_k, None]
    if top_p < 1:
        floor = np.maximum(
            floor, _nucleus(np.where(logits < floor, -np.inf, scaled), logits, top_p)
        )
    if min_p > 0:
        floor = np.maximum(floor, logits.max(1, keepdims=True) + temperature * np.log(min_p))
    score = np.where(logits < floor, -np.inf, scaled + _gumbel(rows, columns, seed, offset))
    return np.where(drawable, score.argmax(1), -1)


def _nucleus(scaled: Array, logits: Array, p: float) -> Array:
    """The largest logit of each row such that those not below it have p of the probability."""
    order = np.argsort(-scaled, 1)
    cumulative = np.cumsum(np.exp(np.take_along_axis(scaled, order, 1)), 1)
    last = (cumulative < p * cumulative[:, -1:]).sum(1, keepdims=True)
    return np.take_along_axis(logits, np.take_along_axis(order, last, 1), 1)


def _gumbel(rows: int, columns: int, seed: int, offset: int) -> Array:
    """-log(-log(1 - u)): each row begins at a block of eight 32-bit numbers of its own."""
    shape = (rows, -(-columns // 8) * 8)
    bits = stream(seed, offset).integers(0, 1 << 32, shape, dtype=np.uint32)[:, :columns]
    return -np.log(-np.log1p(-(bits + 0.5) / (1 << 32)))
