"""The kernel table: which function computes a named kernel on a device.

Every kernel has one Python signature, that of its reference in `minitorch.kernels.reference`, and
up to four implementations of it:

    numpy   the reference, written to be read
    cpu     C++ from csrc/cpu
    cuda    CUDA from csrc/cuda, on a GPU
    simt    the same CUDA source under the emulator, on the CPU

A device takes the first implementation of its preference order that is registered: the reference
computes for every device that has no kernel, since CuPy answers NumPy's functions. The environment
variable MT_KERNELS puts another one first: MT_KERNELS=numpy runs the reference everywhere.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import numpy as np

from minitorch.errors import ConfigError, DeviceError, KernelError

Kernel = Callable[..., Any]
_KernelT = TypeVar("_KernelT", bound=Kernel)

IMPLEMENTATIONS = ("numpy", "cpu", "cuda", "simt")
PREFERENCE = {"cpu": ("cpu", "numpy"), "cuda": ("cuda", "numpy"), "simt": ("simt", "numpy")}

_table: dict[str, dict[str, Kernel]] = {}
_half: dict[Kernel, frozenset[np.dtype]] = {}
_first_choice: str | None = None


def register(
    name: str, implementation: str, *, half: Sequence[np.dtype] = ()
) -> Callable[[_KernelT], _KernelT]:
    """Decorator: enter a function into the table as this implementation of the kernel `name`.

    half: the 16-bit dtypes that it takes as they are; others are widened to float32 before.
    """
    if implementation not in IMPLEMENTATIONS:
        raise KernelError(
            f"register({name!r}): expected an implementation among {', '.join(IMPLEMENTATIONS)}; "
            f"got {implementation!r}"
        )

    def enter(function: _KernelT) -> _KernelT:
        _table.setdefault(name, {})[implementation] = function
        _half[function] = frozenset(half)
        lookup.cache_clear()
        return function

    return enter


@cache
def lookup(name: str, device: str = "cpu") -> Kernel:
    """The function that computes the kernel `name` on arrays of "cpu", "cuda" or "simt"."""
    kind = device.partition(":")[0]
    if kind not in PREFERENCE:
        raise DeviceError(
            f"lookup({name!r}): expected a device among {', '.join(PREFERENCE)}; got {device!r}"
        )
    candidates = implementations(name)
    for implementation in (_chosen(), *PREFERENCE[kind]):
        if implementation in candidates:
            return candidates[implementation]
    raise KernelError(
        f"lookup({name!r}): no implementation for {device!r}; "
        f"registered are: {', '.join(candidates)}"
    )


def takes_half(name: str, dtype: np.dtype, device: str = "cpu") -> bool:
    """Whether the kernel `name` of this device takes arrays of this 16-bit dtype as they are."""
    return dtype in _half[lookup(name, device)]


def implementations(name: str) -> dict[str, Kernel]:
    """Every registered implementation of one kernel, keyed by "numpy", "cpu", "cuda", "simt"."""
    if name not in _table:
        raise KernelError(f"no kernel is named {name!r}; there are: {', '.join(sorted(_table))}")
    return dict(_table[name])


def available() -> dict[str, tuple[str, ...]]:
    """For each kernel its implementations, the one that the CPU would use first."""
    order = (_chosen(), *PREFERENCE["cpu"], *IMPLEMENTATIONS)
    return {
        name: tuple(choice for choice in dict.fromkeys(order) if choice in _table[name])
        for name in sorted(_table)
    }


@contextmanager
def prefer(implementation: str) -> Iterator[None]:
    """Within the block, look-ups take this implementation of every kernel that has it."""
    global _first_choice
    before = _first_choice
    _first_choice = _checked(implementation, "prefer")
    lookup.cache_clear()
    try:
        yield
    finally:
        _first_choice = before
        lookup.cache_clear()


def _chosen() -> str | None:
    """What `prefer` or MT_KERNELS put before the device's own order."""
    if _first_choice is not None:
        return _first_choice
    from_environment = os.environ.get("MT_KERNELS", "")
    return _checked(from_environment, "MT_KERNELS") if from_environment else None


def _checked(implementation: str, where: str) -> str:
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"{where}: expected one of {', '.join(IMPLEMENTATIONS)}; got {implementation!r}"
        )
    return implementation
