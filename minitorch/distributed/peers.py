"""One rank of several GPUs, a process each: spaces that all reach through NVLink or PCIe.

    group = peer_group(rank, size, MPI.COMM_WORLD.allgather)
    group.all_reduce([gradient])
    group.close()

Every process allocates its own space and hands out a handle of it (CUDA IPC); the others open the
handle, which gives the GPUs access to each other (peer access). From then on the kernels are the
same as on one device: they read and write through these addresses. Memory that others have open
must not be freed, so that a group ends as it begins, by all ranks together.

Between GPUs not yet run: it needs two of one machine. Source: CUDA Runtime API, "Interprocess
Communication" (cudaIpcGetMemHandle and what follows it).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitorch.backend import to_device
from minitorch.distributed.group import Group
from minitorch.errors import ConfigError, DeviceError
from minitorch.kernels.cuda.collectives import MOST_RANKS, SPACE_BYTES

Exchange = Callable[[bytes], Sequence[bytes]]


class PeerGroup(Group):
    """A group of which one rank lives here; `close`, or the end of a with block, ends it."""

    def __init__(self, rank: int, size: int, exchange: Exchange, space_bytes: int):
        self._meeting = _Meeting(rank, size, exchange)
        self._opened: list[int] = []
        own = _allocated(space_bytes)
        spaces = []
        try:
            offer = space_bytes.to_bytes(8, "little") + _handle(own)
            for other, found in enumerate(self._meeting("share their memory", offer)):
                bytes_there = int.from_bytes(found[:8], "little")
                if bytes_there != space_bytes:
                    raise ConfigError(
                        "peer_group: expected one space_bytes on all ranks; "
                        f"got {space_bytes} on rank {rank} and {bytes_there} on rank {other}"
                    )
                spaces.append(own if other == rank else self._open(found[8:], space_bytes, other))
            self._meeting("begin")  # nobody writes before all flags can be written
        except BaseException:
            self._leave()
            raise
        super().__init__("cuda", spaces, rank=rank)

    def close(self) -> None:
        """Wait until all ranks come here, and give the memory back. Raises DeviceError if one
        does not come; of this rank everything is given back all the same."""
        if not self._spaces:
            return
        import cupy

        cupy.cuda.Device().synchronize()
        try:
            self._meeting("finish")  # nobody's kernels need the spaces any more
        finally:
            self._leave()
        try:
            self._meeting("close")  # nobody has them open
        finally:
            self._spaces = []

    def __enter__(self) -> "PeerGroup":
        return self

    def __exit__(self, failed: Any, *_: Any) -> None:
        if failed is None:
            self.close()
        else:  # others may wait elsewhere
            self._leave()

    def _run(self, name: str, arrays: list[Any], **options: Any) -> list[Any]:
        if not self._opened and self.size() != 1:
            raise ConfigError(f"{name}: expected an open group; got one that was closed")
        return super()._run(name, arrays, **options)

    def _open(self, handle: bytes, size: int, other: int) -> Any:
        import cupy

        runtime = cupy.cuda.runtime
        try:
            address = runtime.ipcOpenMemHandle(handle)  # enables peer access
        except runtime.CUDARuntimeError as error:
            raise DeviceError(
                f"peer_group: the GPU of rank {self._meeting.rank} cannot reach the memory of rank "
                f"{other} ({error}); expected processes of one machine on GPUs with peer access, "
                "`nvidia-smi topo -p2p r` lists them"
            ) from error
        self._opened.append(address)
        return _array(cupy.cuda.UnownedMemory(address, size, None), size)

    def _leave(self) -> None:
        import cupy

        while self._opened:
            cupy.cuda.runtime.ipcCloseMemHandle(self._opened.pop())


def peer_group(
    rank: int, size: int, exchange: Exchange, *, space_bytes: int = SPACE_BYTES
) -> PeerGroup:
    """Rank `rank` of `size`, each of them a process with a current GPU of its own.

    exchange: gives every process what all have passed to it, in the order of the ranks, as
    mpi4py's MPI.COMM_WORLD.allgather does. Raises DeviceError where a GPU cannot reach another, or
    exchange raises, as it should where a process is gone.
    """
    if not 0 <= rank < size <= MOST_RANKS:
        raise ConfigError(
            f"peer_group: expected a rank below a size of at most {MOST_RANKS}; "
            f"got rank {rank} of {size}"
        )
    return PeerGroup(rank, size, exchange, space_bytes)


class _Meeting:
    """All ranks at one place of the program: what each of them brought there."""

    def __init__(self, rank: int, size: int, exchange: Exchange):
        self.rank, self._size, self._exchange = rank, size, exchange

    def __call__(self, to: str, what: bytes = b"") -> list[bytes]:
        try:
            found = [*self._exchange(to.encode() + b"\n" + what)]
        except Exception as error:
            raise DeviceError(
                f"peer_group: rank {self.rank} of {self._size} met nobody to {to} "
                f"({type(error).__name__}: {error}); expected all ranks to live until the group is "
                "closed; look for the one that ended first"
            ) from error
        brought = [message.partition(b"\n") for message in found]
        if len(found) != self._size or any(place != to.encode() for place, *_ in brought):
            others = ", ".join(place.decode(errors="replace") for place, *_ in brought)
            raise ConfigError(
                f"peer_group: expected {self._size} ranks to {to}; got {len(found)}: {others}; "
                "exchange must pass on what all ranks give, each time in their order"
            )
        return [message for *_, message in brought]


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


def _array(memory: Any, size: int) -> Any:
    import cupy

    return cupy.ndarray((size,), np.uint8, cupy.cuda.MemoryPointer(memory, 0))
