"""Checkpoints: whole or absent, checked when they are read, the last good one never lost."""

import errno
import itertools
import json
import os

import numpy as np
import pytest

from minitorch.errors import CheckpointError
from models import checkpoints

ARRAYS = {"losses": np.arange(3.0), "0.exp_avg": np.ones((2, 2), np.float32)}
STATE = {"config": {"steps": 3}, "random": {"seed": 1, "offset": 2}}


def write_model(folder):
    (folder / "model.safetensors").write_bytes(b"weights")


def save(folder, step):
    return checkpoints.save(folder, step, STATE, ARRAYS, write_model)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_loaded(tmp_path):
    path = save(tmp_path / "checkpoints", 7)
    loaded = checkpoints.load(path)
    assert loaded.step == 7
    assert {key: loaded.state[key] for key in STATE} == STATE
    assert loaded.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    assert (path / "model.safetensors").read_bytes() == b"weights"
    assert checkpoints.newest(tmp_path) == path


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    (tmp_path / ".step-00000025.abcd.tmp").mkdir()
    checkpoints.prune(tmp_path, keep=2, best=5)
    assert names(tmp_path) == ["step-00000005", "step-00000015", "step-00000020"]
    checkpoints.prune(tmp_path, keep=1, best=0)
    assert names(tmp_path) == ["step-00000020"]


@pytest.mark.parametrize("nth", [1, 3, 5])  # arrays, state, the folder itself
def test_a_full_disk_leaves_the_checkpoints_before_and_nothing_else(tmp_path, monkeypatch, nth):
    before = save(tmp_path, 1)
    real, calls = os.fsync, itertools.count(1)

    def fsync(descriptor):
        if next(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(tmp_path, 2)
    assert names(tmp_path) == [before.name]
    assert checkpoints.load(before).step == 1
    assert checkpoints.load(save(tmp_path, 2)).step == 2


def test_an_interruption_leaves_nothing_half_written(tmp_path):
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path, 2, STATE, ARRAYS, interrupted)
    assert names(tmp_path) == []


def truncate(path):
    data = (path / "training.safetensors").read_bytes()
    (path / "training.safetensors").write_bytes(data[:-3])


def flip_a_bit(path):
    data = bytearray((path / "model.safetensors").read_bytes())
    data[3] ^= 1
    (path / "model.safetensors").write_bytes(data)


def lose_a_file(path):
    (path / "model.safetensors").unlink()


def not_json(path):
    (path / "checkpoint.json").write_text("{")


def another_json(path):
    (path / "checkpoint.json").write_text(json.dumps([1, 2]))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_a_file, not_json, another_json])
def test_damage_is_found(tmp_path, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    damage(path)
    with pytest.raises(CheckpointError, match="step-00000002"):
        checkpoints.load(path)
    assert checkpoints.load(tmp_path / "step-00000001").step == 1


def test_no_checkpoint_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist; give a folder"):
        checkpoints.newest(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.newest(tmp_path)


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    with (
        checkpoints.exclusive(tmp_path),
        pytest.raises(CheckpointError, match="another process"),
        checkpoints.exclusive(tmp_path),
    ):
        pass
    with checkpoints.exclusive(tmp_path):
        pass
