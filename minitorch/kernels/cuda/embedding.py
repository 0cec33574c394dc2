"""Embedding and its transpose on the device (csrc/cuda/embedding.cu)."""

from typing import Any

import numpy as np

from minitorch.kernels.cuda.extension import FLOATS, call, contiguous, device_kernel, empty
from minitorch.kernels.reference import embedding as reference
from minitorch.kernels.reference.embedding import check_rows

Array = Any


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
    order = rows.argsort(kind="stable")
    call("embedding_backward", _matrix(grad), rows[order], order, out)
    return out


def _flat(index: Array, rows: int) -> Array:
    """The indices as the kernel reads them, checked where that costs no waiting."""
    if isinstance(index, np.ndarray):
        check_rows(index, rows)
    return contiguous(index.astype(np.int64, copy=False)).reshape(-1)


def _matrix(grad: Array) -> Array:
    return contiguous(grad).reshape(-1, grad.shape[-1])
