"""Token files: ids on disk, mapped into memory, so that a corpus may be larger than it.

8 bytes   b"MTTOKENS"
8 bytes   version 1, bytes per id (2 or 4); two little-endian uint32
8 bytes   number of ids, little-endian uint64
the rest  the ids, little-endian, unsigned
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from minitorch.errors import DataError
from minitorch.io import atomic_write

_MAGIC = b"MTTOKENS"
_HEADER = struct.Struct("<8sIIQ")
_DTYPES: dict[int, np.dtype] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


def write_tokens(path: str | os.PathLike, ids: np.ndarray | Iterable[int]) -> None:
    """Write ids, not negative, as 2 bytes each if the largest fits, else 4. Whole or not at all."""
    array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    if array.ndim != 1 or (array.size and (array.dtype.kind not in "iu" or array.min() < 0)):
        raise DataError(
            f"write_tokens: expected a vector of integers, not negative; got {array.dtype} of "
            f"shape {array.shape}"
        )
    width = 2 if not array.size or array.max() < 1 << 16 else 4
    with atomic_write(path) as file:
        file.write(_HEADER.pack(_MAGIC, 1, width, array.size))
        file.write(array.astype(_DTYPES[width]).tobytes())


def open_tokens(path: str | os.PathLike) -> np.ndarray:
    """The ids of a token file, read-only and mapped into memory: (count,) uint16 or uint32.

    Raises DataError where the file is missing, truncated or not a token file.
    """
    try:
        size = os.path.getsize(path)
        with Path(path).open("rb") as file:
            header = file.read(_HEADER.size)
    except OSError as error:
        raise DataError(f"open_tokens: cannot read {os.fspath(path)}: {error.strerror}") from None
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise DataError(f"open_tokens: {os.fspath(path)} is not a token file")
    _, version, width, count = _HEADER.unpack(header)
    if version != 1 or width not in _DTYPES or size != _HEADER.size + width * count:
        raise DataError(
            f"open_tokens: {os.fspath(path)} is damaged: its header promises {count} ids of "
            f"{width} bytes (version {version}), but the file has {size} bytes. Write it again"
        )
    if count == 0:
        return np.zeros(0, _DTYPES[width])
    return np.memmap(path, _DTYPES[width], "r", _HEADER.size, (count,))
