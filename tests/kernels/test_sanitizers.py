"""The kernels under sanitizers, and on ARM under an emulator: the driver, without Python.

Slow, for the compiler: pytest tests/kernels/test_sanitizers.py -m slow
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPU = ROOT / "csrc" / "cpu"
PORTABLE = ["-DMT_INSTRUCTION_SET=portable", "-DMT_VECTOR_BYTES=16"]
AVX512 = ["-DMT_INSTRUCTION_SET=avx512", "-DMT_VECTOR_BYTES=64", "-mfma", "-mf16c"]
AVX512 += ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def has_avx512():
    info = Path("/proc/cpuinfo")
    return info.exists() and "avx512vl" in info.read_text()


def build(tmp_path, compiler, *flags):
    """The driver and the kernels, each file compiled by itself."""
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    sources = [CPU / "processor.cpp", CPU / "threads.cpp", *sorted((CPU / "kernels").glob("*.cpp"))]
    sources += sorted((ROOT / "tests" / "kernels" / "driver").glob("*.cpp"))
    command = [compiler, "-std=c++20", "-O1", "-pthread", *flags, f"-I{CPU}"]

    def compiled(source):
        out = tmp_path / f"{source.stem}.o"
        run(*command, "-c", str(source), "-o", str(out))
        return str(out)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    run(*command, *objects, "-o", str(tmp_path / "driver"))
    return tmp_path / "driver"


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def check(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_nothing_is_found(tmp_path, sanitizer):
    flags = ["-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    check(build(tmp_path, "g++", *PORTABLE, *flags))


def test_nothing_is_found_around_tile_registers(tmp_path):
    flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DMT_TILES"]
    check(build(tmp_path, "g++", *PORTABLE, *flags))


@pytest.mark.skipif(not has_avx512(), reason="this processor has no AVX-512")
@pytest.mark.parametrize("more", [[], ["-DMT_TILES"]])
def test_nothing_is_found_with_the_widest_vectors(tmp_path, more):
    """Attention has tile registers beside these alone."""
    flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *more]
    check(build(tmp_path, "g++", *AVX512, *flags))


@pytest.mark.skipif(platform.machine() == "aarch64", reason="this is ARM: the others ran on it")
def test_arm(tmp_path):
    program = build(tmp_path, "aarch64-linux-gnu-g++", *PORTABLE, "-static")
    if not shutil.which("qemu-aarch64"):
        pytest.skip("it compiles; there is no qemu-aarch64 here to run it")
    check("qemu-aarch64", program)
