"""What the emulator counts of a kernel's accesses to memory (csrc/simt/traffic.h)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minitorch.kernels.cuda.extension import check_build, checked


@dataclass(frozen=True)
class Traffic:
    """The accesses of one line of a kernel: those of a warp's lanes at once are a request.

    memory: "shared" or "global"; access: "read" or "write", of so many bytes by each lane.
    transfers: wavefronts of shared memory, or sectors of 32 bytes of global memory, that all
    requests took; least: what they would have taken if no two lanes met in a bank, and if the bytes
    that are wanted lay side by side. lanes: of the costliest request, how many bytes behind the
    beginning of its memory (of the block's shared memory, or of an array) each lane began, or None.
    """

    kernel: str
    file: str
    line: int
    memory: str
    access: str
    bytes: int
    requests: int
    transfers: int
    least: int
    lanes: tuple[int | None, ...]

    @property
    def conflicts(self) -> int:
        """Wavefronts that had to wait for others because of bank conflicts; 0 of global memory."""
        return self.transfers - self.least if self.memory == "shared" else 0

    @property
    def efficiency(self) -> float:
        """The least transfers as a part of those taken."""
        return self.least / self.transfers


def parse_traffic(text: str) -> list[Traffic]:
    """The counts that the emulator has written as JSON."""
    return [Traffic(**row | {"lanes": tuple(row["lanes"])}) for row in json.loads(text)]


@contextmanager
def counted() -> Iterator[list[Traffic]]:
    """Run the emulated kernels in the check build, and count what their accesses cost.

    Gives a list that is filled when the block ends, in the order of kernels, files and lines.
    Raises KernelError for what the checks find.
    """
    module = check_build()
    traffic: list[Traffic] = []
    module.count_traffic(True)
    try:
        with checked():
            yield traffic
        traffic += parse_traffic(module.traffic())
    finally:
        module.count_traffic(False)
