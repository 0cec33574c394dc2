"""`python -m tests.gpu`: one line where it cannot run; where it can, what it reports."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from models.bench import step
from models.gpt2 import GPT2Config
from tests import gpu
from tests.cuda import cupy_of_numpy


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


def test_golden_vectors_need_a_gpu_and_a_file(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert gpu.main(["--golden"]) == 2
    assert "expected the FILE to write" in capsys.readouterr().err
    assert gpu.main(["--golden", "vectors.safetensors"]) == 2
    assert "--golden: needs nvcc, nvidia-smi, not found here" in capsys.readouterr().err


def test_what_there_is_no_time_for_is_left_out(monkeypatch):
    monkeypatch.setattr(gpu, "copy_rate", lambda: 1e9)
    monkeypatch.setattr(gpu, "SPARE", gpu.SECONDS["times"])
    monkeypatch.setattr(gpu, "cases", lambda: iter([gpu.Case("one", {}), gpu.Case("two", {})]))
    assert [row["case"] for row in gpu.times()] == ["copy", "one"]
    assert gpu.times()[-1]["left_out"] == "this one and those after it"


def test_every_case_of_the_times_runs(monkeypatch):
    """On the stand-in, in sizes that can be emulated."""
    pytest.importorskip("minitorch._simt", reason="no C++20 compiler at installation")
    small = GPT2Config(vocab_size=7, n_positions=4, n_layer=1, n_head=1, n_embd=4, dropout=0.0)
    monkeypatch.setattr(step, "SIZES", {"tiny": (small, 1, 4)})
    monkeypatch.setattr(GPT2Config, "preset", lambda *_, **__: small)
    monkeypatch.setattr(gpu, "HAS_TORCH", False)
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "copy_rate", lambda: 1e9)
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    monkeypatch.setattr(gpu, "LARGE", 4)
    monkeypatch.setattr(gpu, "SIDES", (8,))
    monkeypatch.setattr(gpu, "TOKENS", 8)
    monkeypatch.setattr(gpu, "LAYERS", ((4, 9),))
    monkeypatch.setattr(gpu, "LENGTHS", (16384,))
    monkeypatch.setattr(gpu, "WIDTHS", (2048,))
    monkeypatch.setattr(gpu, "normal", lambda *shape: np.ones([min(n, 9) for n in shape], "f4"))
    monkeypatch.setattr(gpu, "BATCH", (2, 4))
    with cupy_of_numpy.installed():
        found = {row["case"]: row for row in gpu.times()}
    expected = [
        "copy",
        "matmul 8 x 8 x 8 bfloat16",
        "matmul 9 x 4 x 8 bfloat16, left turned",
        "causal attention 16384 x 2048 bfloat16 forward + backward",
        "step gpt2 2 x 4 bfloat16",
        "softmax float32",
        "step tiny bfloat16",
        "clip + AdamW gpt2",
    ]
    assert {*expected} <= found.keys()
    assert found["step gpt2 2 x 4 bfloat16"]["share_of_products"] > 0
    assert found["step gpt2 2 x 4 bfloat16"]["tokens"].keys() == {"minitorch", "minitorch eager"}
    assert found["softmax bfloat16"]["share_of_copy"] > 0
    assert found["step tiny float32"]["microseconds"].keys() == {"minitorch", "minitorch eager"}
