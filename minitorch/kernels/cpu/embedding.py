"""Embedding and its transpose (csrc/cpu/kernels/embedding.h)."""

import numpy as np

from minitorch.backend import bfloat16
from minitorch.kernels.cpu.arrays import FLOATS, integers
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import embedding as reference
from minitorch.kernels.reference.embedding import check_rows
from minitorch.kernels.table import register

Array = np.ndarray


@register("embedding", "cpu", half=(bfloat16,))
def embedding(weight: Array, index: Array) -> Array:
    """The reference's."""
    if weight.dtype not in FLOATS or not weight.flags.c_contiguous or not index.size:
        return reference.embedding(weight, index)
    check_rows(index, weight.shape[0])
    out = np.empty((index.size, weight.shape[1]), weight.dtype)
    extension.embedding(weight, _flat(index), out)
    return out.reshape(*index.shape, weight.shape[1])


@register("embedding_backward", "cpu", half=(bfloat16,))
def embedding_backward(
    grad: Array, index: Array, *, num_embeddings: int, out: Array | None = None
) -> Array:
    """The reference's, rows added in their order; float32 sums for bfloat16."""
    fits = out is None or (out.dtype == grad.dtype and out.flags.c_contiguous)
    if grad.dtype not in FLOATS or not grad.size or not fits:
        return reference.embedding_backward(grad, index, num_embeddings=num_embeddings, out=out)
    check_rows(index, num_embeddings)
    rows = np.ascontiguousarray(grad).reshape(-1, grad.shape[-1])
    accumulate = out is not None
    if out is None:
        out = np.empty((num_embeddings, grad.shape[-1]), grad.dtype)
    extension.embedding_backward(rows, _flat(index), out, accumulate)
    return out


def _flat(index: Array) -> Array:
    return integers(index).reshape(-1)
