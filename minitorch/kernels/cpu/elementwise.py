"""Arithmetic on large arrays (csrc/cpu/kernels/elementwise.cpp), on all threads."""

from typing import Any

import numpy as np

from minitorch.backend import float32, float64
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.table import register

_DTYPES = frozenset({float32, float64})
_LARGE = 1 << 16
"""Elements from which threads pay; below, NumPy's own loop is done before they have begun."""


@register("add", "cpu")
def add(a: Any, b: Any) -> Any:
    """The reference's, of large contiguous arrays; of others the reference itself."""
    if (
        isinstance(a, np.ndarray)
        and isinstance(b, np.ndarray)
        and a.size >= _LARGE
        and a.shape == b.shape
        and a.dtype in _DTYPES
        and a.dtype == b.dtype
        and a.flags.c_contiguous
        and b.flags.c_contiguous
    ):
        out = np.empty_like(a)
        extension.add(a, b, out)
        return out
    return np.add(a, b)
