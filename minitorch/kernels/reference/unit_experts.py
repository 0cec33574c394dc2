"""Experts of one hidden unit each: rows of two tables, of which each token reads some."""

import numpy as np

from minitorch.kernels.reference.parts import part
from minitorch.kernels.table import register

Array = np.ndarray


@register("unit_experts", "numpy")
def unit_experts(
    x: Array, weights: Array, down: Array, up: Array, index: Array
) -> tuple[Array, Array]:
    """out[t] = Σ over j of weights[t, j] gelu(pre[t, j]) up[i], pre[t, j] = <down[i], x[t]>.

    i: index[t, j]. x: (tokens, width); weights, index: (tokens, k); down, up: (experts, width).
    Returns (tokens, width), and pre, (tokens, k), which the backward needs.
    """
    embedding = part("embedding", x)
    pre = (embedding(down, index) @ x[:, :, None])[:, :, 0]
    units = weights * part("gelu", x)(pre)
    return (units[:, None] @ embedding(up, index))[:, 0], pre


@register("unit_experts_backward", "numpy")
def unit_experts_backward(
    grad: Array,
    x: Array,
    weights: Array,
    down: Array,
    up: Array,
    index: Array,
    pre: Array,
    *,
    needs: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Gradients for x, weights, down and up, None for those not needed."""
    embedding, back = part("embedding", x), part("embedding_backward", x)
    units, read = part("gelu", x)(pre), (embedding(up, index) @ grad[:, :, None])[:, :, 0]
    slopes = part("gelu_backward", x)(weights * read, pre)

    def of_rows(factors: Array, vectors: Array) -> Array:
        rows = factors[:, :, None] * vectors[:, None]
        return back(rows, index, num_embeddings=len(down))

    return (
        (slopes[:, None] @ embedding(down, index))[:, 0] if needs[0] else None,
        units * read if needs[1] else None,
        of_rows(slopes, x) if needs[2] else None,
        of_rows(weights * units, grad) if needs[3] else None,
    )
