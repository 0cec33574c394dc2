"""The log: rows once each, whatever happened to the process or the disk before."""

import errno
import json
import os

import pytest

from minitorch.errors import CheckpointError
from models.runlog import RunLog, read_log


def row(step, **values):
    return {"step": step, "val_loss": 2.0 / step, **values}


def test_rows_are_on_the_disk_as_they_are_written(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(row(1))
        assert read_log(tmp_path / "log.jsonl") == [row(1)]
        log.write(row(2, note="é"))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == log.rows == [row(1), row(2, note="é")]


def test_going_on_drops_rows_past_the_checkpoint_and_half_a_row(tmp_path):
    with RunLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.write(row(step))
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(b'{"step": 40, "val')
    with RunLog(tmp_path, step=20) as log:
        assert [r["step"] for r in log.rows] == [10, 20]
        log.write(row(30))
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [10, 20, 30]


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"no": "step"}', '{"step": "x"}'])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(CheckpointError, match="line 2 is not a row"):
        RunLog(tmp_path)


@pytest.mark.parametrize("taken", [None, 5])
def test_a_full_disk_is_an_error_and_the_rows_before_stay(tmp_path, monkeypatch, taken):
    write = os.write

    def full(descriptor, data):
        if taken is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:taken])

    with RunLog(tmp_path) as log:
        log.write(row(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(CheckpointError, match=r"log\.jsonl"):
                log.write(row(2))
    assert read_log(tmp_path / "log.jsonl") == [row(1)]


def test_tensorboard_gets_the_same_rows(tmp_path):
    pytest.importorskip("tensorboardX", reason="not installed: pip install -e .[test]")
    with RunLog(tmp_path) as log:
        log.write(row(1))
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"val_loss" in events.read_bytes()
