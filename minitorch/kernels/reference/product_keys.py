"""Keys that are pairs of halves: the best of n² of them for a query, and the scores' gradients."""

import numpy as np

from minitorch.kernels.reference.parts import part
from minitorch.kernels.table import register

Array = np.ndarray


@register("product_keys", "numpy")
def product_keys(query: Array, keys: Array, *, k: int) -> tuple[Array, Array]:
    """The k largest <first half, keys[0, i]> + <second half, keys[1, j]>, and i n + j.

    query: (rows, 2 d); keys: (2, n, d). Returns (rows, k) both, in descending order.
    """
    n, topk = keys.shape[1], part("topk", query)
    first, second = (half @ key.T for half, key in zip(np.split(query, 2, 1), keys, strict=True))
    best = min(k, n)
    (a, i), (b, j) = topk(first, k=best), topk(second, k=best)
    scores, at = topk((a[:, :, None] + b[:, None]).reshape(len(query), -1), k=k)
    take = np.take_along_axis
    return scores, take(i, at // best, 1) * n + take(j, at % best, 1)


@register("product_scores", "numpy")
def product_scores(query: Array, keys: Array, indices: Array) -> Array:
    """The scores of keys i n + j that were chosen in any way. indices: (rows, k), its result's."""
    halves = zip(np.split(query, 2, 1), keys, _parts(keys, indices), strict=True)
    first, second = ((key[at] @ half[:, :, None])[:, :, 0] for half, key, at in halves)
    return first + second


@register("product_scores_backward", "numpy")
def product_scores_backward(
    grad: Array, query: Array, keys: Array, indices: Array, *, needs: tuple[bool, ...]
) -> tuple[Array | None, ...]:
    """Gradients for query and keys, None for those not needed."""
    embedding, back = part("embedding", query), part("embedding_backward", query)
    dquery, dkeys = [], []
    for half, key, at in zip(np.split(query, 2, 1), keys, _parts(keys, indices), strict=True):
        dquery.append((grad[:, None] @ embedding(key, at))[:, 0])
        dkeys.append(back(grad[:, :, None] * half[:, None], at, num_embeddings=len(key)))
    return (
        np.concatenate(dquery, 1) if needs[0] else None,
        np.stack(dkeys) if needs[1] else None,
    )


def _parts(keys: Array, indices: Array) -> tuple[Array, Array]:
    return indices // keys.shape[1], indices % keys.shape[1]
