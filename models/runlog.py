"""The log of a run: one JSON object per evaluation and line, and the same for TensorBoard.

A row is on the disk before the checkpoint that follows it. Going on from a checkpoint drops the
rows past it, and half a row that a killed run left, so each step is in the log once.
"""

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from minitorch.errors import CheckpointError
from minitorch.io import atomic_write


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without the unfinished last one that a killed run may have left.

    A missing file has no rows. Raises CheckpointError for a line that is not a row.
    """
    *lines, _unfinished = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] + 0
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"read {path}: line {number} is not a row of a log; correct or delete it"
            ) from None
        rows.append(row)
    return rows


class RunLog:
    """Appends to out/log.jsonl and, where tensorboardX is installed, to out/tensorboard/.

    step: the one that the run goes on from; rows past it are dropped. best_by: the metric by which
    one row is the best, the lowest unless higher_is_better. Raises CheckpointError where the disk
    is full or not writable.
    """

    def __init__(
        self, out: Path, step: int = 0, best_by: str = "val_loss", higher_is_better: bool = False
    ):
        self.path = out / "log.jsonl"
        self._best_by = best_by
        self._choose = max if higher_is_better else min
        self.rows = [row for row in read_log(self.path) if row["step"] <= step]
        with atomic_write(self.path) as file:
            file.writelines(map(_line, self.rows))
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._tensorboard = _tensorboard(out / "tensorboard", step)

    @property
    def last_step(self) -> int:
        """The step of the last row; 0 before the first."""
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def best(self) -> dict[str, Any] | None:
        """{"step", best_by} of the best row; None before the first that has the metric."""
        key = self._best_by
        rows = [row for row in self.rows if key in row]
        if not rows:
            return None
        row = self._choose(rows, key=lambda row: row[key])
        return {"step": row["step"], key: row[key]}

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; row["step"] is the step that it describes."""
        line = _line(row)
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(0, "the disk took part of a row only")
            os.fsync(self._file)
        except OSError as error:
            raise CheckpointError(f"write {self.path}: {error.strerror}") from error
        self.rows.append(row)
        if self._tensorboard is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._tensorboard.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush and close the files."""
        os.close(self._file)
        if self._tensorboard is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported for the log itself
                self._tensorboard.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer that hides what an earlier process wrote past the step, or None."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
