"""What each phase of the command runs, in processes of its own: a kernel may take one along."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.gpu import measure
from tests.gpu.report import Report, hardware
from tests.simt import golden

ROOT = Path(__file__).resolve().parents[2]
PYTEST = (
    *("-m", "pytest", "-q", "-o", "addopts=", "--import-mode=importlib"),
    *("-p", "no:cacheprovider", "-m", "gpu"),
)
AT_ONCE = 4
"""Files of tests."""
NO_TESTS = 5
"""pytest's exit code."""
STEP = "tests/cuda/test_engine.py::test_training[cuda-adamw-None]"
PRODUCTS = "tests/cuda/test_matmul_tensor.py::test_each_step_on_the_device"
WATCHED = {"memcheck": (STEP, PRODUCTS), "racecheck": (PRODUCTS,), "synccheck": (STEP, PRODUCTS)}
"""The tools of compute-sanitizer, and the tests that each watches."""

Result = dict[str, Any]


def build(report: Report, seconds: float) -> Result:
    return _run(seconds, "setup.py", "build_ext", "--inplace")


def record_golden(report: Report, seconds: float) -> Result:
    """Compile tests/simt/fragments.cu with nvcc, and write what it gives for every case."""
    if not hardware().get("compute capability", "").startswith("9.0"):
        return {"passed": True, "said": "left out: the instructions are those of sm_90a"}
    path, end = report.path.with_suffix(".golden.safetensors"), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fragments"
        source = ROOT / "tests" / "simt" / "fragments.cu"
        flags = ["-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_90a"]

        def run(command: list[Any], given: bytes = b"") -> bytes:
            left = max(1.0, end - time.monotonic())
            done = subprocess.run(command, input=given, capture_output=True, timeout=left)
            if done.returncode:
                raise RuntimeError(f"{command[:2]}: {done.stderr.decode(errors='replace')[-1000:]}")
            return done.stdout

        try:
            run(["nvcc", *flags, source, "-o", program])
            golden.record(
                path, lambda name, given: run([program, name], given), json.dumps(hardware())
            )
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            return {"passed": False, "said": str(error)}
    return {"passed": True, "said": f"{len(golden.cases())} vectors in {path}"}


def test(report: Report, seconds: float) -> Result:
    """Each file by itself: what one leaves of the device is of no matter to the others."""
    end = time.monotonic() + seconds
    files = sorted(
        (ROOT / "tests" / "cuda").glob("test_*.py"), key=lambda path: -path.stat().st_size
    )

    def run(path: Path) -> Result:
        left = end - time.monotonic()
        if left < 1:
            return {"passed": False, "said": "not begun: no time was left"}
        return _run(left, *PYTEST, str(path.relative_to(ROOT)))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = dict(zip([path.stem for path in files], pool.map(run, files), strict=True))
    failed = {name: result["said"] for name, result in results.items() if not result["passed"]}
    counts = [re.search(r"(\d+) passed", result["said"]) for result in results.values()]
    said = f"{sum(int(count[1]) for count in counts if count)} tests of {len(files)} files passed"
    return {"passed": not failed, "said": said, **({"failed": failed} if failed else {})}


def sanitize(report: Report, seconds: float) -> Result:
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"passed": True, "said": "left out: compute-sanitizer was not found"}
    options = ["--error-exitcode", "9", "--target-processes", "all"]
    end, tools = time.monotonic() + seconds, {}
    for i, (tool, watched) in enumerate(WATCHED.items()):
        left = (end - time.monotonic()) / (len(WATCHED) - i)
        under = [program, "--tool", tool, *options]
        tools[tool] = _run(max(1.0, left), *PYTEST, *watched, under=under)
    failed = {tool: result["said"] for tool, result in tools.items() if not result["passed"]}
    said = ", ".join(tool for tool in tools if tool not in failed) + " found nothing"
    return {"passed": not failed, "said": said, **({"failed": failed} if failed else {})}


def time_cases(report: Report, seconds: float) -> Result:
    """Every case; those that are in the report are not timed again."""
    left_out = measure.all_cases(report, seconds)
    broken = [name for name, row in report.cases.items() if measure.ours_failed(row)]
    found: Result = {"passed": not broken, "said": f"{len(report.cases)} cases"}
    if broken:
        found["failed"] = dict.fromkeys(broken, "see the case")
    return {**found, "left_out": left_out} if left_out else found


PHASES: dict[str, Callable[[Report, float], Result]] = {
    "build": build,
    "golden": record_golden,
    "tests": test,
    "sanitizer": sanitize,
    "times": time_cases,
}


def _run(seconds: float, *arguments: str, under: list[str] | None = None) -> Result:
    """This python3 with arguments, under another program perhaps: what became of it."""
    path = os.pathsep.join([str(ROOT), *sys.path[1:]])
    environment = {**os.environ, "MT_CUDA": "1", "PYTHONPATH": path}
    command = [*(under or []), sys.executable, *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it has begun, too
        process.communicate()
        return {"passed": False, "said": f"took more than {seconds:.0f} s"}
    lines = out.strip().splitlines() or [""]
    if process.returncode in (0, NO_TESTS):
        return {"passed": True, "said": lines[-1]}
    return {"passed": False, "said": "\n".join([*lines, *errors.strip().splitlines()])[-4000:]}
