"""The build: incremental, and without a compiler an installation that runs on NumPy."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

for _module in ("setuptools", "pybind11", "ninja"):
    pytest.importorskip(_module, reason="not installed: pip install -e .[test]")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder)
    for name in ("csrc", "minitorch", "models"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def _build(checkout, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def _softmax_of(checkout):
    program = (
        "import minitorch as mt; from minitorch import kernels; "
        "print(kernels.available()['softmax'], mt.tensor([0.0, 0.0]).softmax(0).tolist())"
    )
    return _run(checkout, "-c", program).stdout.strip()


def _run(checkout, *arguments, **environment):
    """Python in the checkout; without -S an editable installation lends it its extensions."""
    paths = os.pathsep.join([str(checkout), sysconfig.get_path("purelib")])
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
    )


def test_without_a_compiler_one_line_says_so_and_numpy_serves(checkout):
    done = _build(checkout, CXX="/nonexistent/c++", MT_BUILD="auto")
    assert done.returncode == 0, done.stderr
    notices = [line for line in done.stderr.splitlines() if line.startswith("minitorch:")]
    assert notices == [
        "minitorch: installed without compiled kernels, on NumPy alone: "
        "no C++20 compiler found (CXX=/nonexistent/c++)"
    ]
    assert _softmax_of(checkout) == "('numpy',) [0.5, 0.5]"
    doctor = _run(checkout, "-m", "models.cli", "doctor", "--json", CXX="/nonexistent/c++")
    kernels = json.loads(doctor.stdout)["kernels"]
    assert kernels["why not compiled"].startswith("there is no C++20 compiler")


def test_a_missing_compiler_can_be_made_an_error(checkout):
    done = _build(checkout, CXX="/nonexistent/c++", MT_BUILD="1")
    assert done.returncode != 0
    assert "cannot build the compiled kernels: no C++20 compiler found" in done.stderr


@pytest.mark.parametrize(
    ("release", "message"),
    [
        ("11.8", "expected nvcc of CUDA 12.0 or later; {nvcc} is 11.8"),
        (None, "MT_CUDA=1, and no nvcc"),
    ],
    ids=["too old", "none"],
)
def test_kernels_for_a_gpu_that_cannot_be_built_can_be_an_error(tmp_path, release, message):
    nvcc = tmp_path / "nvcc"
    if release:
        nvcc.write_text(
            f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}.0\n"
        )
        nvcc.chmod(0o755)
    program = (
        "import setuptools; setuptools.setup = lambda **_: None; import setup; setup.find_nvcc()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}", "CUDA_HOME": "/nonexistent", "MT_CUDA": "1"},
        capture_output=True,
        text=True,
    )
    assert f"setup.BuildError: {message.format(nvcc=nvcc)}" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++")), reason="no C++ compiler here"
)
def test_only_what_changed_is_compiled_again(checkout):
    done = _build(checkout, MT_BUILD="1")
    assert done.returncode == 0, done.stderr
    objects = sorted((checkout / "build").rglob("*.o"))
    times = [path.stat().st_mtime_ns for path in objects]
    assert len(objects) >= 3
    assert _build(checkout, MT_BUILD="1").returncode == 0
    assert [path.stat().st_mtime_ns for path in objects] == times
    source = checkout / "csrc" / "cpu" / "buffers.cpp"
    source.write_text(source.read_text() + "\n")
    assert _build(checkout, MT_BUILD="1").returncode == 0
    changed = [p.name for p, t in zip(objects, times) if p.stat().st_mtime_ns != t]
    assert changed == ["buffers.o"]
    assert _softmax_of(checkout) == "('cpu', 'numpy') [0.5, 0.5]"
