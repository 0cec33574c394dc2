"""`python -m tests.gpu`: one line where it cannot run; where it can, what it reports."""

import json
import shutil
import subprocess
import sys

import pytest

from tests import gpu


def test_without_a_gpu_one_line_says_what_is_missing(tmp_path):
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", str(result)],
        cwd=gpu.ROOT,
        env={"PATH": "/nonexistent"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("tests.gpu: needs nvcc, nvidia-smi")
    assert line.endswith(", not found here")
    assert not result.exists()


@pytest.fixture
def machine(monkeypatch):
    """A machine that has everything, and parts that end with a code each."""
    codes = dict.fromkeys(gpu.SECONDS, 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(
        gpu,
        "output",
        lambda *command: {
            "-L": "GPU 0: NVIDIA H200",
            "--version": "Cuda compilation tools, release 13.0, V13.0.1",
        }.get(command[1], "NVIDIA H200, 580.1, 143771 MiB, 9.0\n"),
    )

    def run(command, *, timeout, **_):
        words = " ".join(command)
        part = next(
            part
            for part, word in (
                ("build", "setup.py"),
                ("sanitizer", "compute-sanitizer"),
                ("tests", "pytest"),
                ("times", "--times"),
            )
            if word in words
        )
        if codes[part] is None:
            raise subprocess.TimeoutExpired(command, timeout)
        said = "[]" if part == "times" else "some output\n5 passed"
        return subprocess.CompletedProcess(command, codes[part], said, "")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    return codes


def test_a_report(machine, tmp_path):
    path = tmp_path / "folder" / "result.json"
    assert gpu.main([str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["hardware"]["gpu"] == "NVIDIA H200"
    assert report["hardware"]["nvcc"] == "13.0"
    assert report["date"].endswith("+00:00")
    assert report["tests"] == {"passed": True, "seconds": 0.0, "said": "5 passed"}
    assert report["times"]["cases"] == []


@pytest.mark.parametrize("code", [1, None], ids=["fails", "too long"])
@pytest.mark.parametrize("part", gpu.SECONDS)
def test_what_fails(machine, tmp_path, part, code):
    machine[part] = code
    assert gpu.main([str(tmp_path / "result.json")]) == 1
    report = json.loads((tmp_path / "result.json").read_text())
    assert not report[part]["passed"]
    assert ("tests" in report) == (part != "build")


def test_it_ends_within_nine_minutes():
    assert sum(gpu.SECONDS.values()) < 9 * 60
