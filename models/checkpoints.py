"""Checkpoints of a run: folders that are whole or absent, each with all that going on needs.

    OUT/checkpoints/step-00000200/
        config.json, model.safetensors, tokenizer.json   the model, as Hugging Face lays one out
        training.safetensors                             optimizer state and other arrays
        checkpoint.json                                  step, configuration, random state, data
                                                         position, and each file's size and CRC-32

A folder is filled under a hidden temporary name, flushed to the disk, and renamed: one step, before
which the older checkpoints are all there is and after which this one is complete. Deleting goes the
same way backwards.
"""

import contextlib
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitorch.errors import CheckpointError
from minitorch.io import load_safetensors, read_json, save_safetensors, write_json

STATE, ARRAYS = "checkpoint.json", "training.safetensors"
RUNS = Path("runs")
"""Where runs are, unless a command is told otherwise."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds besides the model: JSON values and arrays, by name."""

    path: Path
    state: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def step(self) -> int:
        """The number of optimizer steps done."""
        return self.state["step"]

    def part(self, name: str) -> dict[str, np.ndarray]:
        """The arrays that are named name.X, by X."""
        start = f"{name}."
        return {
            key[len(start) :]: value for key, value in self.arrays.items() if key.startswith(start)
        }


def named(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of several parts under the names by which `Checkpoint.part` finds them."""
    return {
        f"{part}.{name}": np.asarray(value) if isinstance(value, list) else value
        for part, values in parts.items()
        for name, value in values.items()
    }


def save(
    folder: Path,
    step: int,
    state: dict[str, Any],
    arrays: dict[str, np.ndarray],
    write_model: Callable[[Path], None],
) -> Path:
    """Make folder/step-N of the state, the arrays and what write_model puts there; returns it.

    A checkpoint of the same step is left as it is: the step decides all that is in it. Raises
    CheckpointError, leaving nothing behind, where the disk is full or not writable.
    """
    final = folder / f"step-{step:08d}"
    if final.exists():
        return final
    temporary = folder / f".{final.name}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
        write_model(temporary)
        save_safetensors(temporary / ARRAYS, arrays)
        files = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / STATE, {"step": step, **state, "files": files})
        _sync(temporary)
        temporary.rename(final)
        _sync(folder)
    except OSError as error:
        raise CheckpointError(f"checkpoint {final}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def steps(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def prune(folder: Path, keep: int, best: int) -> None:
    """Delete all but the newest `keep` and that of step `best`, and what a killed run left."""
    for path in steps(folder)[:-keep]:
        if path.name != f"step-{best:08d}":
            doomed = folder / f".{path.name}.{secrets.token_hex(4)}.tmp"
            path.rename(doomed)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; CheckpointError where a file is missing, damaged, or does not belong."""
    state = verify(path)
    arrays, _ = load_safetensors(path / ARRAYS)
    return Checkpoint(path, state, arrays)


def verify(path: Path) -> dict[str, Any]:
    """The state of a checkpoint; CheckpointError where a file is not as it was written."""
    try:
        state = read_json(path / STATE)
    except CheckpointError as error:
        raise _damaged(path, f"{STATE} cannot be read") from error
    try:
        files: dict[str, Any] = state["files"]
        complete = ARRAYS in files and state["step"] >= 0 and isinstance(state["config"], dict)
    except (KeyError, TypeError):
        complete = False
    if not complete:
        raise _damaged(path, f"{STATE} is not that of a checkpoint")
    for name, expected in files.items():
        if not (path / name).is_file():
            raise _damaged(path, f"{name} is missing")
        if _fingerprint(path / name) != expected:
            raise _damaged(path, f"{name} is not as it was written")
    return state


def newest(run: Path) -> Path:
    """The newest checkpoint of a run."""
    found = steps(run / "checkpoints")
    if not found:
        what = "holds no checkpoint" if run.is_dir() else "does not exist"
        raise CheckpointError(f"{run} {what}; give a folder that `minitorch train` wrote")
    return found[-1]


def model_folder(folder: Path, best: bool = False) -> Path:
    """Where a model, or adapters, lie: the folder, or the newest or best checkpoint of a run in it.

    Raises CheckpointError where there is none, or where the checkpoint is damaged.
    """
    path = folder
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        if not steps(folder / "checkpoints"):
            holds = "holds neither config.json nor a checkpoint"
            raise CheckpointError(
                f"{folder} {holds if folder.is_dir() else 'does not exist'}; give the folder of a "
                "model as Hugging Face lays one out, or one that `minitorch train` wrote"
            )
        path = newest(folder)
        if best:
            step = (verify(path).get("best") or {}).get("step", 0)
            path = path.with_name(f"step-{step:08d}")
    if (path / STATE).is_file():
        verify(path)
    return path


@contextlib.contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Within the block no other process gets past this line for the same folder.

    Raises CheckpointError where one is in it. The lock goes with the process, however it ends.
    """
    try:
        import fcntl
    except ImportError:  # not a Unix
        yield
        return
    with open(run / ".lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"{run}: another process is training here; wait for it, or choose another --out"
            ) from None
        yield


def _fingerprint(path: Path) -> dict[str, int]:
    """Size and CRC-32: enough against a truncated file or a bad disk, not against a forger."""
    crc = size = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"bytes": size, "crc32": crc}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, what: str) -> CheckpointError:
    others = [other.name for other in steps(path.parent) if other != path]
    remedy = f"delete this folder to go on from {others[-1]}" if others else "train again"
    return CheckpointError(f"checkpoint {path}: {what}; {remedy}")
