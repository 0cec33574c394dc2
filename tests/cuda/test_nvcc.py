"""Every kernel compiles for the GPUs that it is meant for, and keeps its variables in registers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(CUDA.glob("*.cu")), ids=lambda path: path.stem)
def test_compiles_without_spills(source, tmp_path):
    if not shutil.which("nvcc"):
        pytest.skip("needs nvcc")
    command = ["nvcc", "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    for number in ("90a",) if source.stem.endswith("_wgmma") else ("80", "90a"):
        command += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    done = subprocess.run(
        [*command, "-c", source, "-o", tmp_path / "kernel.o"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill", done.stdout + done.stderr)
    assert spills, "ptxas said nothing of spills"
    assert set(spills) == {"0"}
    assert "serialized" not in done.stdout + done.stderr, "products wait for each other"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["async", "flags", "fragments", "launches"])
def test_instructions_of_hopper_compile(name, tmp_path):
    """The functions of ptx.h and wgmma.h, as the emulator's own tests use them."""
    if not shutil.which("nvcc"):
        pytest.skip("needs nvcc")
    code = ["-gencode", "arch=compute_90a,code=sm_90a"]
    source = ROOT / "tests" / "simt" / f"{name}.cu"
    command = ["nvcc", "-std=c++20", "--expt-relaxed-constexpr", *code, "-c", source]
    done = subprocess.run([*command, "-o", tmp_path / "program.o"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
