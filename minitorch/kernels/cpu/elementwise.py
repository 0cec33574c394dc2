"""Arithmetic, conversions, elementary functions (csrc/cpu/kernels/elementwise.cpp), on threads."""

from typing import Any

import numpy as np

from minitorch.backend import bfloat16, float32, float64
from minitorch.kernels.cpu.arrays import FLOATS
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import activations, elementwise
from minitorch.kernels.table import register

_DTYPES = frozenset({float32, float64})
_LARGE = 1 << 16
"""Elements from which threads pay; below, NumPy's own loop is done before they have begun."""


@register("add", "cpu")
def add(a: Any, b: Any, *, out: np.ndarray | None = None) -> Any:
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
        and (out is None or out is a)
    ):
        if out is None:
            out = np.empty_like(a)
        extension.add(a, b, out)
        return out
    return np.add(a, b, out=out)


@register("cast", "cpu", half=(bfloat16,))
def cast(x: np.ndarray, *, dtype: np.dtype) -> np.ndarray:
    """The reference's, of contiguous float32 to bfloat16 and back; NumPy rounds one by one."""
    if not x.flags.c_contiguous or (x.dtype, dtype) not in _CASTS:
        return elementwise.cast(x, dtype=dtype)
    out = np.empty(x.shape, dtype)
    extension.cast(x, out)
    return out


_CASTS = {(float32, bfloat16), (bfloat16, float32)}


def _elementary(name: str) -> None:
    """Register the extension's function of this name."""
    kernel = getattr(extension, name)
    fallback = activations.ELEMENTARY[name]

    @register(name, "cpu", half=(bfloat16,))
    def function(x: np.ndarray) -> np.ndarray:
        if x.dtype not in FLOATS:
            return fallback(x)
        x = np.asarray(x, order="C")
        out = np.empty(x.shape, x.dtype)
        kernel(x, out)
        return out


for _name in activations.ELEMENTARY:
    _elementary(_name)
