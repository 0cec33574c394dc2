"""The kernels in C++ (csrc/cpu), under the signatures of their references.

The extension takes contiguous arrays of float32 or float64 only; what it does not take goes to the
reference. Where it was not built, nothing is registered and the reference serves everything.
"""

from importlib import import_module
from types import ModuleType

import numpy as np

from minitorch.errors import ConfigError
from minitorch.kernels import reference
from minitorch.kernels.table import register

try:
    extension: ModuleType | None = import_module("minitorch._cpu")
except ImportError:
    extension = None

_COMPILED_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def instruction_sets() -> tuple[str, ...]:
    """What the compiled kernels can use on this processor, best first; () where none were built."""
    return tuple(extension.instruction_sets()) if extension else ()


def use_instruction_set(name: str) -> None:
    """Run the compiled kernels of this instruction set from now on; the best is the default."""
    if extension is None or name not in instruction_sets():
        raise ConfigError(
            f"use_instruction_set: expected one of {instruction_sets()}; got {name!r}; "
            f"is minitorch installed with its compiled kernels, and has this processor these?"
        )
    extension.use_instruction_set(name)


if extension:
    compiled = extension

    @register("softmax", "cpu")
    def softmax(x: np.ndarray, *, dim: int = -1, scale: float = 1.0) -> np.ndarray:
        """The reference's, in one visit of each row; another dim is moved last and back."""
        if x.dtype not in _COMPILED_DTYPES or x.ndim == 0:
            return reference.softmax(x, dim=dim, scale=scale)
        last = x.ndim - 1
        rows = np.ascontiguousarray(x if dim in (-1, last) else x.swapaxes(dim, last))
        out = np.empty_like(rows)
        compiled.softmax(rows, out, scale)
        return out if dim in (-1, last) else out.swapaxes(dim, last)
