"""One rank of several GPUs, a process each: spaces that all reach through NVLink or PCIe.

Every process allocates its own space and hands out a handle of it (CUDA IPC); the others open the
handle, which gives the GPUs access to each other (peer access). From then on the kernels are the
same as on one device: they read and write through these addresses.

Written by CUDA's documentation and not yet run: it needs two GPUs of one machine.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitorch.backend import to_device
from minitorch.distributed.group import Group
from minitorch.errors import ConfigError, DeviceError
from minitorch.kernels.cuda.collectives import MOST_RANKS, SPACE_BYTES


def peer_group(
    rank: int,
    size: int,
    exchange: Callable[[bytes], Sequence[bytes]],
    *,
    space_bytes: int = SPACE_BYTES,
) -> Group:
    """Rank `rank` of `size`, each of them a process with a current GPU of its own.

    exchange: gives every process what all have passed to it, in the order of the ranks, as
    mpi4py's MPI.COMM_WORLD.allgather does. Raises DeviceError where a GPU cannot reach another.
    """
    if not 0 <= rank < size <= MOST_RANKS:
        raise ConfigError(
            f"peer_group: expected a rank below a size of at most {MOST_RANKS}; "
            f"got rank {rank} of {size}"
        )
    own = _allocated(space_bytes)
    spaces = []
    for other, handle in enumerate(exchange(_handle(own))):
        spaces.append(own if other == rank else _opened(handle, space_bytes, rank, other))
    exchange(b"opened")  # nobody writes before all flags can be written
    return Group("cuda", spaces, rank=rank)


def _allocated(size: int) -> Any:
    """Zeros in memory of the driver's: a handle of the pool's would share all of a larger block."""
    to_device(np.zeros(1), "cuda")  # DeviceError where there is no GPU
    import cupy

    space = _array(cupy.cuda.Memory(size), size)
    space.fill(0)
    cupy.cuda.get_current_stream().synchronize()
    return space


def _handle(space: Any) -> bytes:
    import cupy

    return cupy.cuda.runtime.ipcGetMemHandle(space.data.ptr)


def _opened(handle: bytes, size: int, rank: int, other: int) -> Any:
    import cupy

    runtime = cupy.cuda.runtime
    try:
        address = runtime.ipcOpenMemHandle(handle)  # enables peer access
    except runtime.CUDARuntimeError as error:
        raise DeviceError(
            f"peer_group: the GPU of rank {rank} cannot reach the memory of rank {other} ({error});"
            " expected processes of one machine on GPUs with peer access, `nvidia-smi topo -p2p r`"
            " lists them"
        ) from error
    return _array(cupy.cuda.UnownedMemory(address, size, None), size)


def _array(memory: Any, size: int) -> Any:
    import cupy

    return cupy.ndarray((size,), np.uint8, cupy.cuda.MemoryPointer(memory, 0))
