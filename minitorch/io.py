"""Files that are whole or absent: atomic writes, JSON, and tensors in the safetensors format.

A file is written beside its destination, flushed to the disk, and renamed over it. Whoever looks
sees the old file or the new one, never half of one, whatever interrupts the writing.

A safetensors file holds tensors and nothing that runs when it is read:

    8 bytes   n, the length of the header, little-endian
    n bytes   JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}
    the rest  the tensors' bytes, little-endian, C order, without holes or overlaps

Source: https://huggingface.co/docs/safetensors. The format is short enough to be read and written
here: nothing is then copied twice, the same tensors always give the same bytes (the safetensors
package writes the metadata in a random order), and each field is checked before it is used. The
tests hold both directions against that package.
"""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from minitorch.backend import to_device
from minitorch.errors import CheckpointError, DtypeError

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype.name: code for code, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_MAX_JSON = 100_000_000  # bytes; also the safetensors package's bound on a header


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """A file to write that takes the place of `path` at the end of the block, whole or not at all.

    mode is "wb", or "w" for UTF-8 text. When the block or the disk fails, `path` is as it was and
    the temporary file is gone. A symbolic link is followed, so that it goes on pointing there.
    Raises CheckpointError where the operating system refuses: a full disk, no such folder, ...
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"atomic_write: expected mode 'wb' or 'w'; got {mode!r}")
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}.tmp")
    encoding, newline = (None, None) if mode == "wb" else ("utf-8", "\n")
    try:
        try:
            with open(
                temporary, mode.replace("w", "x"), encoding=encoding, newline=newline
            ) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise CheckpointError(
            f"write {path}: {error.strerror or error}. What was there before is untouched; "
            "free some space or choose another place, then write again"
        ) from error
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power cut, where the system can promise that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Write `obj`, made of dicts, lists, strings, finite numbers, booleans and None, as JSON."""
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"write {path}: not expressible as JSON: {error}") from error
    with atomic_write(path) as file:
        file.write(f"{text}\n".encode())


def read_json(path: str | os.PathLike) -> Any:
    """What `write_json` wrote. Raises CheckpointError where the file is missing or damaged."""
    with _open(path) as (file, size):
        if size > _MAX_JSON:
            raise _damaged(path, f"{size:,} bytes of JSON, expected at most {_MAX_JSON:,}")
        return _parse(path, file.read())


def save_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors (minitorch's or NumPy's, of any shape and layout) under their names.

    metadata: strings by name, kept in the file's header. The same arguments give the same bytes,
    and they are written whole or not at all.
    Raises DtypeError for a dtype that the format lacks, CheckpointError where writing fails.
    """
    arrays = {name: _array(path, name, tensor) for name, tensor in tensors.items()}
    # The widest dtypes come first: then every tensor is aligned to its own size.
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {}
    if metadata:
        header[_METADATA] = {key: _string(path, metadata[key]) for key in sorted(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": _CODES[arrays[name].dtype.name],
            "shape": list(arrays[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(_bytes_of(arrays[name]))


def _array(path: str | os.PathLike, name: str, tensor: Any) -> np.ndarray:
    """The C-contiguous little-endian array on the host that a NumPy array or a Tensor holds."""
    if not isinstance(name, str) or name == _METADATA:
        raise CheckpointError(f"write {path}: {name!r} cannot be the name of a tensor")
    array = tensor.data if hasattr(tensor, "requires_grad") else tensor
    array = array if isinstance(array, np.generic) else to_device(array, "cpu")
    code = _CODES.get(array.dtype.name)
    if code is None:
        raise DtypeError(
            f"write {path}: tensor {name!r} has dtype {array.dtype}; "
            f"expected one of {', '.join(_CODES)}"
        )
    return np.asarray(array, _DTYPES[code], order="C")


def _string(path: str | os.PathLike, value: str) -> str:
    if not isinstance(value, str):
        raise CheckpointError(f"write {path}: metadata is made of strings; got {value!r}")
    return value


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """The array's own memory as uint8 of one dimension: bfloat16 has no buffer protocol."""
    return array.reshape(-1).view(np.uint8)


def load_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a file by name, as writable arrays, and its metadata.

    Raises CheckpointError where the file is missing, truncated, or not a safetensors file. Nothing
    is allocated before the file has been seen to be long enough to fill it.
    """
    with _open(path) as (file, size):
        layout, metadata, _ = _read_layout(path, file, size)
        tensors = {
            name: _read_tensor(path, file, name, dtype, shape)
            for name, (dtype, shape, _) in layout.items()
        }
    return tensors, metadata


def map_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a file without reading them: the system fetches each page when it is used.

    The arrays can be written to, and the file then stays as it is: pages are copied on writing.
    Tensors that are not aligned to their own size, and booleans, which have to be checked, are
    read. Raises what load_safetensors does.
    """
    with _open(path) as (file, size):
        layout, metadata, start = _read_layout(path, file, size)
        pages = np.memmap(file, np.uint8, "c") if size else np.empty(0, np.uint8)
        tensors = {}
        for name, (dtype, shape, begin) in layout.items():
            if (start + begin) % dtype.itemsize or dtype == np.bool_:
                file.seek(start + begin)
                tensors[name] = _read_tensor(path, file, name, dtype, shape)
            else:
                stop = start + begin + math.prod(shape) * dtype.itemsize
                memory = np.asarray(pages[start + begin : stop])
                with _shape_exists(path, name, shape):
                    tensors[name] = memory.view(dtype).reshape(shape)
    return tensors, metadata


def _read_layout(
    path: str | os.PathLike, file: IO[bytes], size: int
) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...], int]], dict[str, str], int]:
    """(dtype, shape, begin) of each tensor in the order of the data; metadata; the data's start.

    Checked: that the tensors fill the file, without holes or overlaps.
    """
    header, metadata, start = _read_header(path, file, size)
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    layout, end = {}, 0
    for name in sorted(entries, key=lambda name: entries[name][2:]):
        dtype, shape, begin, stop = entries[name]
        if begin != end:
            raise _damaged(path, f"tensor {name!r} begins at {begin}, expected {end}")
        layout[name], end = (dtype, shape, begin), stop
    if start + end != size:
        problem = "truncated" if start + end > size else "followed by something else"
        raise _damaged(path, f"{problem}: {size:,} bytes, expected {start + end:,}")
    return layout, metadata, start


def _read_header(
    path: str | os.PathLike, file: IO[bytes], size: int
) -> tuple[dict[str, Any], dict[str, str], int]:
    """The header's tensors, its metadata, and the position in the file at which the data begin."""
    if size < 8:
        raise _damaged(path, f"{size} bytes, too short for a safetensors file")
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MAX_JSON):
        raise _damaged(
            path,
            f"a header of {length:,} bytes in a file of {size:,}: truncated, or not safetensors",
        )
    header = _parse(path, file.read(length))
    if not isinstance(header, dict):
        raise _damaged(path, "the header is not a JSON object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, f"{_METADATA} is not an object of strings")
    return header, metadata, 8 + length


def _entry(
    path: str | os.PathLike, name: str, entry: Any
) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of a tensor, checked against each other."""
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [begin, end], **rest} if (
            not rest and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
        ):
            pass
        case _:
            raise _damaged(path, f"tensor {name!r} is described by {str(entry)[:200]}")
    if code not in _DTYPES:
        raise _damaged(
            path, f"tensor {name!r} has dtype {code}, expected one of {', '.join(_DTYPES)}"
        )
    expected = math.prod(shape) * _DTYPES[code].itemsize
    if end - begin != expected:
        raise _damaged(
            path, f"tensor {name!r} of shape {shape} holds {end - begin} bytes, expected {expected}"
        )
    return _DTYPES[code], tuple(shape), begin, end


def _read_tensor(
    path: str | os.PathLike, file: IO[bytes], name: str, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    with _shape_exists(path, name, shape):
        array = np.empty(shape, dtype)
    memory = _bytes_of(array)
    if file.readinto(memory) != array.nbytes:  # type: ignore[attr-defined]
        raise _damaged(path, f"truncated while tensor {name!r} was being read")
    if dtype == np.bool_ and memory.size and memory.max() > 1:
        raise _damaged(path, f"tensor {name!r} is of booleans and holds neither 0 nor 1")
    return array


@contextlib.contextmanager
def _shape_exists(path: str | os.PathLike, name: str, shape: tuple[int, ...]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # more dimensions than NumPy has, or zero times too many elements
        raise _damaged(path, f"tensor {name!r} of shape {list(shape)}: {error}") from error


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[tuple[IO[bytes], int]]:
    """An existing regular file and its size; the operating system's errors become ours."""
    try:
        if not os.path.isfile(path):
            what = "not a regular file" if os.path.exists(path) else "no such file"
            raise CheckpointError(f"read {path}: {what}. Check the path")
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CheckpointError(f"read {path}: {error.strerror or error}") from error


def _parse(path: str | os.PathLike, text: bytes) -> Any:
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _damaged(path: str | os.PathLike, what: str) -> CheckpointError:
    return CheckpointError(
        f"read {path}: {what}. The file is damaged or of another kind: "
        "take an earlier checkpoint, or copy or download it again"
    )
