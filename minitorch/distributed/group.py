"""A group of ranks, and the ranks that share a device.

    group = device_group(4, device="cuda")
    group.all_reduce(gradients)  # of four tensors of one shape each becomes their sum

On a GPU each rank is a grid on a stream of its own, in the emulator a grid beside the others, and
on the CPU nothing but a place in the list (csrc/cuda/collectives.cu, minitorch.kernels.reference).
All ranks get the same bits. Calls are not recorded: gradients do not go through them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch import kernels
from minitorch.backend import is_float, to_device
from minitorch.errors import ConfigError, DeviceError, DtypeError, GraphError, ShapeError
from minitorch.kernels.cuda.collectives import MOST_RANKS, SPACE_BYTES, collective_space
from minitorch.modes import is_grad_enabled
from minitorch.tensor import Tensor, wrap

OPS = ("sum", "avg")


class Group:
    """Ranks of which some, often one or all, live in this program.

    device: where their tensors are. spaces: for each rank of the group memory that all reach.
    rank: the first that lives here; here: how many do. Made by `device_group` and `peer_group`.
    """

    def __init__(self, device: str, spaces: Sequence[Any], *, rank: int = 0, here: int = 1):
        self.device = device
        self._spaces = list(spaces)
        self._rank, self._here = rank, here

    def size(self) -> int:
        """How many ranks there are."""
        return len(self._spaces)

    def rank(self) -> int:
        """The first rank that lives in this program."""
        return self._rank

    def all_reduce(
        self, tensors: Sequence[Tensor], op: str = "sum", *, algorithm: str | None = None
    ) -> None:
        """Each tensor becomes, in place, the sum ("avg": the mean) of those of all ranks.

        algorithm: "one-shot", "two-shot" or "ring"; None chooses by the size. In the first two the
        sum is made in the order of the ranks, ((x0 + x1) + x2) + ...
        """
        arrays = self._arrays("all_reduce", tensors)
        self._run("all_reduce", arrays, average=_mean(op), algorithm=algorithm, out=arrays)
        _written(tensors)

    def reduce_scatter(self, tensors: Sequence[Tensor], op: str = "sum") -> list[Tensor]:
        """For each rank its part of the sum ("avg": the mean): (size n, ...) -> (n, ...).

        In PyTorch: torch.distributed.reduce_scatter_tensor.
        """
        arrays = self._arrays("reduce_scatter", tensors)
        if not arrays[0].shape or arrays[0].shape[0] % self.size():
            raise ShapeError(
                f"reduce_scatter: expected a first dimension that {self.size()} ranks can share; "
                f"got shape {arrays[0].shape}. Pad it"
            )
        return [*map(wrap, self._run("reduce_scatter", arrays, average=_mean(op)))]

    def all_gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """For each rank the tensors of all, one after the other: (n, ...) -> (size n, ...).

        In PyTorch: torch.distributed.all_gather_into_tensor.
        """
        arrays = self._arrays("all_gather", tensors, any_dtype=True)
        return [*map(wrap, self._run("all_gather", arrays))]

    def broadcast(self, tensors: Sequence[Tensor], src: int = 0) -> None:
        """Each tensor becomes, in place, that of rank `src`."""
        if not 0 <= src < self.size():
            raise ConfigError(f"broadcast: expected src in [0, {self.size()}); got {src}")
        arrays = self._arrays("broadcast", tensors, any_dtype=True)
        self._run("broadcast", arrays, source=src, out=arrays)
        _written(tensors)

    def _run(self, name: str, arrays: list[Any], **options: Any) -> list[Any]:
        kernel = kernels.lookup(name, self.device)
        return kernel(self._spaces, arrays, rank=self._rank, **options)

    def _arrays(
        self, name: str, tensors: Sequence[Tensor], *, any_dtype: bool = False
    ) -> list[Any]:
        if len(tensors) != self._here:
            raise ShapeError(
                f"{name}: expected {self._here} tensors, one of each rank that lives here; "
                f"got {len(tensors)}"
            )
        first = tensors[0]
        for x in tensors:
            if x.shape != first.shape:
                raise ShapeError(f"{name}: expected one shape; got {first.shape} and {x.shape}")
            if x.dtype != first.dtype or not (any_dtype or is_float(x.dtype)):
                expected = "one dtype" if any_dtype else "one floating dtype"
                raise DtypeError(
                    f"{name}: expected {expected} on all ranks; got {first.dtype} and {x.dtype}. "
                    "Convert with to()"
                )
            if x.device != self.device:
                raise DeviceError(
                    f"{name}: expected tensors on {self.device!r}, the group's device; got "
                    f"{x.device!r}. Move them with to()"
                )
            if x.requires_grad and is_grad_enabled():
                raise GraphError(
                    f"{name}: gradients do not go through it; call it under no_grad() or on "
                    "detach()"
                )
        if first.numel() and len({x.data_ptr() for x in tensors}) < len(tensors):
            raise ConfigError(
                f"{name}: two ranks were given the same memory; clone() one of the tensors"
            )
        return [x.data for x in tensors]


def device_group(size: int, *, device: str = "cpu", space_bytes: int = SPACE_BYTES) -> Group:
    """`size` ranks, all of them in this program and on one device, "cpu", "cuda" or "simt".

    space_bytes: of memory on the device for each rank; larger arrays go through it in rounds. The
    CPU needs none. Raises ConfigError for more ranks than the kernels take.
    """
    if size < 1 or (device != "cpu" and size > MOST_RANKS):
        raise ConfigError(f"device_group: expected 1 to {MOST_RANKS} ranks; got {size}")
    like = to_device(np.zeros(1, np.uint8), device)
    spaces = [None if device == "cpu" else collective_space(like, space_bytes) for _ in range(size)]
    return Group(device, spaces, here=size)


def _mean(op: str) -> bool:
    if op not in OPS:
        raise ConfigError(f"expected an op among {', '.join(OPS)}; got {op!r}")
    return op == "avg"


def _written(tensors: Sequence[Tensor]) -> None:
    for x in tensors:
        x.bump_version()
