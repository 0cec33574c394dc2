"""Embedding and its transpose on the device (csrc/cuda/embedding.cu)."""

from typing import Any

import numpy as np

from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty
from minitorch.kernels.reference import embedding as reference
from minitorch.kernels.reference.embedding import check_rows

Array = Any

_MOST_COUNTED = 1 << 16
"""Indices up to which each is compared with all others."""


@device_kernel("embedding")
def embedding(weight: Array, index: Array) -> Array:
    """The reference's. On a GPU an index that is no row gives NaN: an error would have to wait."""
    if weight.dtype not in FLOATS or not index.size or not weight.size:
        return reference.embedding(weight, index)
    rows = _flat(index, weight.shape[0])
    out = empty(weight, (index.size, weight.shape[1]))
    call("embedding", contiguous(weight), rows, out)
    return out.reshape(*index.shape, weight.shape[1])


@device_kernel("embedding_backward")
def embedding_backward(
    grad: Array, index: Array, *, num_embeddings: int, out: Array | None = None
) -> Array:
    """The reference's, always added up in the same order; float32 sums for halves."""
    fits = out is None or (out.dtype == grad.dtype and out.flags.c_contiguous)
    if grad.dtype not in FLOATS or not grad.size or not fits:
        return reference.embedding_backward(grad, index, num_embeddings=num_embeddings, out=out)
    rows = _flat(index, num_embeddings)
    if out is None:
        out = empty(grad, (num_embeddings, grad.shape[-1]))
        out[...] = 0
    call("embedding_backward", _matrix(grad), *_sorted(rows), out)
    return out


def _sorted(rows: Array) -> tuple[Array, Array]:
    """The rows in rising order, and where each was."""
    if rows.size > _MOST_COUNTED:
        order = rows.argsort(kind="stable")
        return rows[order], order
    ordered, order = empty(rows), empty(rows)
    call("embedding_order", rows, ordered, order)
    return ordered, order


def _flat(index: Array, rows: int) -> Array:
    """The indices as the kernel reads them, checked where that costs no waiting."""
    if isinstance(index, np.ndarray):
        check_rows(index, rows)
    return contiguous(index.astype(np.int64, copy=False)).reshape(-1)


def _matrix(grad: Array) -> Array:
    return contiguous(grad).reshape(-1, grad.shape[-1])
