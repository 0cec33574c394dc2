"""Kernels: the inner loops of the engine, one signature each, looked up by name and device."""

from minitorch.kernels import reference as reference  # registers the NumPy implementations
from minitorch.kernels.buffers import buffer_statistics, recycle_buffers, release_buffers
from minitorch.kernels.cpu import instruction_sets, use_instruction_set  # registers the compiled
from minitorch.kernels.table import (
    IMPLEMENTATIONS,
    available,
    implementations,
    lookup,
    prefer,
    register,
)

__all__ = [
    "IMPLEMENTATIONS",
    "available",
    "buffer_statistics",
    "implementations",
    "instruction_sets",
    "lookup",
    "prefer",
    "recycle_buffers",
    "register",
    "release_buffers",
    "use_instruction_set",
]
