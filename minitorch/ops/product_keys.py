r"""Product keys: the best of n² keys for a query, found among 2 n.

    s_ij = <q¹, c_i> + <q², c'_j>          q = (q¹, q²), n halves c_i and n halves c'_j

Source: Lample et al. 2019, "Large memory layers with product keys" (arXiv 1907.05242), section 3.1.
"""

from functools import partial
from typing import Any

import numpy as np

from minitorch import backend, kernels, modes
from minitorch.errors import ShapeError
from minitorch.ops.definition import _kernel
from minitorch.ops.indexing import embedding, topk
from minitorch.ops.primitive import fused
from minitorch.ops.promotion import promote
from minitorch.ops.samples import real, sample
from minitorch.tape import apply, computed
from minitorch.tensor import Tensor, wrap


def product_topk(first: Tensor, second: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of all sums first_i + second_j: the sums, and i n + j; (..., k) both.

    The k best sums are made of the k best of either half. first, second: (..., n). Raises
    ShapeError where they differ or k is more than n².
    """
    n = first.shape[-1]
    if first.shape != second.shape or not 1 <= k <= n * n:
        raise ShapeError(
            "product_topk: expected two tensors (..., n) of one shape, and k from 1 to n²; got "
            f"{first.shape}, {second.shape} and {k}"
        )
    best = min(k, n)
    with modes.no_grad():  # of all these sums k have a gradient
        (values, i), (others, j) = topk(first, best), topk(second, best)
        _, at = topk((values.unsqueeze(-1) + others.unsqueeze(-2)).flatten(-2), k)
        i, j = i.gather(-1, at // best), j.gather(-1, at % best)
    return first.gather(-1, i) + second.gather(-1, j), i * n + j


def product_key_topk(query: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The scores of the k of n² keys that fit a query best, and i n + j: (rows, k) both.

    query: (rows, 2 d); keys: (2, n, d), all first halves and all second ones. The scores descend;
    their gradients reach what was chosen. The same as product_topk of the products of the halves;
    on the CPU one kernel, which holds 2 n products of some rows at a time, and a backward that
    takes k terms for a row instead of 2 n. Raises ShapeError for what does not fit.
    """
    n = keys.shape[1] if keys.ndim == 3 else 0
    if (
        query.ndim != 2
        or keys.ndim != 3
        or keys.shape[0] != 2
        or query.shape[1] != 2 * keys.shape[2]
        or not 1 <= k <= n * n
    ):
        raise ShapeError(
            "product_key_topk: expected query (rows, 2 d), keys (2, n, d) and k from 1 to n²; got "
            f"{query.shape}, {keys.shape} and {k}"
        )
    query, keys = promote([query, keys])
    mode = modes.thread.mode
    plain = type(query.data) is np.ndarray and type(keys.data) is np.ndarray
    if not plain or mode.observers or mode.anomaly or backend.half_precision(query.dtype):
        first, second = query.chunk(2, -1)
        return product_topk(first @ keys[0].mT, second @ keys[1].mT, k)
    run = backend.arithmetic.copy().run
    scores, found = run(partial(kernels.lookup("product_keys"), k=k), query.data, keys.data)
    indices = wrap(found)
    return computed(_product_scores, [query, keys, indices], {}, scores), indices


def product_scores(query: Tensor, keys: Tensor, indices: Tensor) -> Tensor:
    """The scores of keys that were chosen in any way, as indices i n + j: (rows, k), their shape.

    query, keys: product_key_topk's. Raises ShapeError for what does not fit.
    """
    if (
        query.ndim != 2
        or keys.ndim != 3
        or query.shape[1] != 2 * keys.shape[2]
        or indices.ndim != 2
        or len(indices) != len(query)
    ):
        raise ShapeError(
            "product_scores: expected query (rows, 2 d), keys (2, n, d) and indices (rows, k); got "
            f"{query.shape}, {keys.shape} and {indices.shape}"
        )
    query, keys = promote([query, keys])
    return apply(_product_scores, [query, keys, indices], {})


def _reference(query: Tensor, keys: Tensor, indices: Tensor) -> Tensor:
    n, halves = keys.shape[1], query.chunk(2, -1)
    first, second = (
        (embedding(at, keys[i]) @ halves[i].unsqueeze(-1)).squeeze(-1)
        for i, at in enumerate((indices // n, indices % n))
    )
    return first + second


def _backward(grad: Any, query: Any, keys: Any, indices: Any, needs: tuple[bool, ...]) -> Any:
    return *_kernel("product_scores_backward")(grad, query, keys, indices, needs=needs), None


_product_scores = fused(
    "product_scores",
    _kernel("product_scores"),
    kernel="product_scores",
    reference=_reference,
    backward=_backward,
    inputs=("query", "keys", "indices"),
    formula=r"\langle q^1_r, c_i \rangle + \langle q^2_r, c'_j \rangle, \quad i n + j = e_{rk}",
    samples=lambda: [sample(real(3, 4), real(2, 5, 2), np.array([[24, 0], [7, 7], [13, 3]]))],
)
