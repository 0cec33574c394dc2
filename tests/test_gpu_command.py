"""`python -m tests.gpu`: one line where it cannot run; where it can, what it does and reports."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from models.bench import step
from models.gpt2 import GPT2Config
from tests.cuda import cupy_of_numpy
from tests.gpu import __main__ as command
from tests.gpu import cases, measure, phases, report

H200 = {"gpu": "NVIDIA H200", "compute capability": "9.0", "nvcc": "13.0"}


def test_without_a_gpu_one_line_says_what_is_missing(tmp_path):
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", str(result)],
        cwd=command.ROOT,
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
def on_an_h200(monkeypatch):
    monkeypatch.setattr(report, "hardware", lambda: H200)
    monkeypatch.setattr(phases, "hardware", lambda: H200)


@pytest.fixture
def machine(monkeypatch, on_an_h200):
    """A machine that has everything, and phases that end as this says."""
    ends = {name: {"passed": True, "said": "fine"} for name in command.SECONDS}
    monkeypatch.setattr(command, "missing", list)
    for name in ends:
        monkeypatch.setitem(phases.PHASES, name, lambda report, seconds, name=name: ends[name])
    return ends


def test_a_report(machine, tmp_path, capsys):
    path = tmp_path / "folder" / "result.json"
    assert command.main([str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["hardware"] == H200
    assert found["date"].endswith("+00:00")
    assert found["phases"]["tests"] == {"passed": True, "said": "fine", "seconds": 0.0}
    assert capsys.readouterr().out.endswith(f"tests.gpu: passed; {path}\n")


@pytest.mark.parametrize("phase", command.SECONDS)
def test_what_fails(machine, tmp_path, phase, capsys):
    machine[phase] = {"passed": False, "said": "a word", "failed": {"one": "its last lines"}}
    assert command.main([str(tmp_path / "result.json")]) == 1
    found = json.loads((tmp_path / "result.json").read_text())["phases"]
    assert not found[phase]["passed"]
    assert ("tests" in found) == (phase != "build")
    assert f"{phase}: FAILED, a word\n  one: its last lines" in capsys.readouterr().out


def test_what_there_was_no_time_for_is_done_by_the_next_call(machine, tmp_path):
    path = str(tmp_path / "result.json")
    assert command.main(["--seconds", "5", path]) == 3
    assert command.main(["--resume", "--only", "build,golden,tests", path]) == 3
    machine["build"] = {"passed": False, "said": "it is not built again"}
    assert command.main(["--resume", path]) == 0
    with pytest.raises(SystemExit):
        command.main(["--only", "timing", path])


def test_a_process_that_takes_too_long_or_fails(on_an_h200):
    assert phases._run(0.2, "-c", "import time; time.sleep(9)")["said"] == "took more than 0 s"
    found = phases._run(20, "-c", "print('so far'); raise ValueError('no further')")
    assert not found["passed"]
    assert found["said"].startswith("so far\nTraceback")
    assert found["said"].endswith("ValueError: no further")


def test_golden_vectors(on_an_h200, monkeypatch, tmp_path):
    """By a program that gives back what it is given, for once compiled by nobody."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvcc").write_text("#!/bin/sh\nfor last; do :; done\ncp /bin/cat $last\n")
    (tools / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.setattr(phases.golden, "cases", lambda: {"exp2": ("-", b"1234", 4, True)})
    result = report.Report(tmp_path / "gpu.json", False)
    assert phases.record_golden(result, 20)["passed"]
    arrays, _ = phases.golden.load_safetensors(tmp_path / "gpu.golden.safetensors")
    assert arrays["exp2.output"].tobytes() == b"1234"
    shutil.copy("/bin/false", tools / "nvcc")
    assert not phases.record_golden(result, 20)["passed"]


def test_a_case_that_kills_its_process_and_one_that_hangs(on_an_h200, monkeypatch, tmp_path):
    """Both are reported, and those after them are timed; what is left out is said."""
    (tmp_path / "child.py").write_text(
        "import json, os, sys, time\n"
        "have = json.load(sys.stdin)\n"
        "for name in ('copy', 'dies', 'hangs', 'last', 'late'):\n"
        "    if name in have and name != 'copy': continue\n"
        "    print(json.dumps({'case': name}), flush=True)\n"
        "    if name == 'dies': sys.exit('illegal address')\n"
        "    if name == 'hangs': time.sleep(20)\n"
        "    if name == 'late': print(json.dumps({'case': name, 'ended': 'left out'})); break\n"
        "    print(json.dumps({'case': name, 'row': {'microseconds': {}}}), flush=True)\n"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(
        measure.subprocess,
        "Popen",
        lambda _, **options: popen([sys.executable, str(tmp_path / "child.py")], **options),
    )
    monkeypatch.setattr(measure, "CASE_SECONDS", 1.5)
    result = report.Report(tmp_path / "gpu.json", False)
    begun = time.monotonic()
    assert measure.all_cases(result, 60) == "late and those after it"
    assert time.monotonic() - begun < 15
    assert [*result.cases] == ["copy", "dies", "hangs", "last"]
    assert "illegal address" in result.cases["dies"]["errors"]["minitorch"]
    assert result.cases["hangs"]["errors"] == {"minitorch": "took more than 1.5 s"}
    again = report.Report(tmp_path / "gpu.json", resume=True)
    assert [*again.cases] == ["copy", "last"]


@pytest.fixture
def small(monkeypatch):
    """Sizes that can be emulated."""
    config = GPT2Config(vocab_size=7, n_positions=4, n_layer=1, n_head=1, n_embd=4, dropout=0.0)
    monkeypatch.setattr(step, "SIZES", {"tiny": (config, 1, 4)})
    monkeypatch.setattr(GPT2Config, "preset", lambda *_, **__: config)
    sizes = (
        ("LARGE", 4),
        ("ROWS", 2),
        ("VOCABULARY", (8, 9)),
        ("LONG", (2, 9)),
        ("SIDES", (16,)),
        ("TOKENS", 16),
        ("LAYERS", ((4, 9),)),
        ("EXPERTS", (2, 8, 8)),
        ("LENGTHS", (16384,)),
        ("WIDTHS", (2048,)),
        ("PAST", (2, 8)),
        ("BATCH", (2, 4)),
        ("REDUCED", (64,)),
    )
    for name, size in sizes:
        monkeypatch.setattr(cases, name, size)
    monkeypatch.setattr(cases, "normal", lambda *shape: np.ones([min(n, 16) for n in shape], "f4"))
    monkeypatch.setattr(cases, "HAS_TORCH", False)
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr(measure, "WARM_UP", 0)
    monkeypatch.setattr(measure, "MOST_CALLS", 1)


def test_every_case_runs(small, on_an_h200, tmp_path):
    """On the stand-in for CuPy, all but the copy, which is one of its arrays."""
    result = report.Report(tmp_path / "gpu.json", False)
    with cupy_of_numpy.installed():
        for case in cases.cases():
            if case.name != "copy":
                row, usable = measure.timed(case)
                assert usable
                assert "errors" not in row, case.name
                assert case.name not in result.cases
                result.cases[case.name] = row | {"copy_bytes_per_second": 1e9}
    result.enter("times", {"passed": True})
    found = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    trained = found["step gpt2 2 x 4 bfloat16"]
    assert trained["microseconds"].keys() == {"minitorch", "minitorch eager"}
    assert trained["tokens_per_second"] > 0
    assert trained["share_of_products"] > 0
    assert found["softmax bfloat16"]["share_of_copy"] > 0
    square = found["matmul 16 x 16 x 16 bfloat16"]
    assert square["flops_per_second"].keys() == {"minitorch", "cupy float16"}
    arithmetic, moved = square["floors_microseconds"]
    assert arithmetic == pytest.approx(2e6 * 16**3 / 989e12)
    assert moved == pytest.approx(1e6 * 3 * 16 * 16 * 2 / 4.8e12)
    table = (tmp_path / "gpu.md").read_text()
    assert "| matmul 16 x 16 x 16 bfloat16 |" in table
    assert "NVIDIA H200" in table.splitlines()[0]


def test_a_library_that_cannot_is_left_out_with_its_reason(on_an_h200, tmp_path):
    def build(library):
        if library == "torch":
            raise RuntimeError("no kernel for this")
        return lambda: None

    case = cases.Case("one", ["minitorch", "torch"], build, "float32", 8)
    with cupy_of_numpy.installed():
        row, usable = measure.timed(case)
    assert usable
    assert [*row["microseconds"]] == ["minitorch"]
    assert row["errors"] == {"torch": "RuntimeError: no kernel for this"}
    assert not measure.ours_failed(row)
