"""Kernels: the inner loops of the engine, one signature each, looked up by name and device."""

from minitorch.kernels import cpu as cpu  # registers the compiled ones
from minitorch.kernels import cuda as cuda  # registers those of a GPU and of the emulator
from minitorch.kernels import reference as reference  # registers the NumPy implementations
from minitorch.kernels.buffers import buffer_statistics, recycle_buffers, release_buffers
from minitorch.kernels.cpu.extension import (
    get_num_threads,
    instruction_sets,
    set_num_threads,
    use_instruction_set,
)
from minitorch.kernels.cuda.ladder import (
    get_float32_matmul_precision,
    set_float32_matmul_precision,
)
from minitorch.kernels.table import (
    IMPLEMENTATIONS,
    available,
    implementations,
    lookup,
    prefer,
    register,
    takes_half,
)

__all__ = [
    "IMPLEMENTATIONS",
    "available",
    "buffer_statistics",
    "get_float32_matmul_precision",
    "get_num_threads",
    "implementations",
    "instruction_sets",
    "lookup",
    "prefer",
    "recycle_buffers",
    "register",
    "release_buffers",
    "set_float32_matmul_precision",
    "set_num_threads",
    "takes_half",
    "use_instruction_set",
]
