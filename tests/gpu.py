"""All that needs a GPU, in one command: `python -m tests.gpu [RESULT.json]`, below nine minutes.

It builds the kernels in place for this machine, runs on it what the tests of tests/cuda otherwise
run in the emulator and on a stand-in for CuPy, lets compute-sanitizer watch a training step, times
kernels beside CuPy and PyTorch (where that is installed), and writes what came out, with date and
hardware. Nothing is downloaded: python3 with the packages below, nvcc and a driver must be there.
Exit code 0 if all passed, 1 if something failed, 2 if it cannot be run here.
"""

import datetime
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
PROGRAMS = ("nvcc", "nvidia-smi")
PACKAGES = ("numpy", "cupy", "ml_dtypes", "pybind11", "ninja", "setuptools", "pytest", "hypothesis")
SECONDS = {"build": 240, "tests": 180, "sanitizer": 60, "times": 45}
"""What each part may take; together below nine minutes."""
ROUNDS = 15
ON_THE_GPU = "not simt and not forward and not reversed and not random"
"""Of the tests, those that need no emulator; pytest's expression."""


def main(arguments: list[str]) -> int:
    if lacking := missing():
        print(f"tests.gpu: needs {', '.join(lacking)}, not found here", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"date": now(), "hardware": hardware()}
    report["build"] = run("build", "setup.py", "build_ext", "--inplace")
    passed = report["build"]["passed"]
    if passed:
        suite = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
        report["tests"] = run("tests", *suite, "-k", ON_THE_GPU, "tests/cuda")
        step = "tests/cuda/test_engine.py::test_training[cuda-adamw-None]"
        report["sanitizer"] = run("sanitizer", *suite, step, under=sanitizer())
        report["times"] = run("times", "-m", "tests.gpu", "--times")
        passed = all(part["passed"] for part in report.values() if "passed" in part)
    path = Path(arguments[0]) if arguments else RESULTS / "gpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"tests.gpu: {'passed' if passed else 'FAILED'}; {path}")
    return 0 if passed else 1


def missing() -> list[str]:
    """Programs and packages that are not here; "a GPU" where the driver shows none."""
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    lacking += [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return lacking or ([] if "GPU 0" in output("nvidia-smi", "-L") else ["a GPU"])


def hardware() -> dict[str, str | None]:
    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    found = output("nvidia-smi", query, "--format=csv,noheader").split(", ")
    release = re.search(r"release (\S+),", output("nvcc", "--version"))
    return {
        **dict(zip(("gpu", "driver", "memory", "compute capability"), map(str.strip, found))),
        "nvcc": release and release[1],
        "python": sys.version.split()[0],
    }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def sanitizer() -> list[str]:
    """What makes a program watched; nothing where the toolkit came without it."""
    found = shutil.which("compute-sanitizer")
    return [found, "--error-exitcode", "9", "--target-processes", "all"] if found else []


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def run(part: str, *arguments: str, under: list[str] | None = None) -> dict[str, Any]:
    """This python3 with arguments, under another program perhaps: what became of it."""
    if under == []:
        return {"passed": True, "skipped": "compute-sanitizer was not found"}
    command = [*(under or []), sys.executable, *arguments]
    environment = {**os.environ, "MT_CUDA": "1", "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS[part],
        )
        code, said = done.returncode, done.stdout + (done.stderr if done.returncode else "")
    except subprocess.TimeoutExpired:
        code, said = None, f"took more than {SECONDS[part]} s"
    print(f"{part}: {'ok' if code == 0 else said[-4000:]}", flush=True)
    result: dict[str, Any] = {"passed": code == 0, "seconds": round(time.monotonic() - begun, 1)}
    if part == "times" and code == 0:
        return {**result, "cases": json.loads(said)}
    return {**result, "said": (said.strip().splitlines() or [""])[-1]}


def times() -> list[dict[str, Any]]:
    """Medians in microseconds, the libraries in turns, by the device's own clock."""
    measured = []
    for name, calls in cases():
        took: dict[str, list[float]] = {library: [] for library in calls}
        for call in calls.values():
            call()
        for _ in range(ROUNDS):
            for library, call in calls.items():
                took[library].append(seconds(call))
        figures = {library: statistics.median(values) * 1e6 for library, values in took.items()}
        measured.append({"case": name, "microseconds": figures})
    return measured


def seconds(call: Callable[[], Any]) -> float:
    """Of one call, the device idle before and waited for after."""
    import cupy

    device = cupy.cuda.Device()
    device.synchronize()
    begun = time.perf_counter()
    call()
    device.synchronize()
    return time.perf_counter() - begun


def cases() -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    """A name, and the same work by each library that is installed."""
    import cupy
    import numpy as np

    from minitorch import kernels
    from minitorch.backend import bfloat16, float32

    random = np.random.default_rng(0)

    def make(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    for dtype in (float32, bfloat16):
        for name, shapes, ours, theirs in (
            ("matmul", [(4096, 4096)] * 2, "matmul", lambda a, b: a @ b),
            ("softmax", [(8192, 4096)], "softmax", lambda x: x.softmax(-1)),
            ("gelu", [(8192, 4096)], "gelu", None),
        ):
            arrays = [make(*shape) for shape in shapes]
            on_gpu = [cupy.asarray(array.astype(dtype)) for array in arrays]
            kernel = kernels.lookup(ours, "cuda")
            calls = {"minitorch": lambda f=kernel, x=on_gpu: f(*x)}
            if name == "matmul" and dtype == float32:
                calls["cupy"] = lambda x=on_gpu: x[0] @ x[1]
            if importlib.util.find_spec("torch"):
                import torch

                kind = torch.float32 if dtype == float32 else torch.bfloat16
                peers = [torch.from_numpy(array).to("cuda", kind) for array in arrays]
                function = theirs or torch.nn.functional.gelu
                calls["torch"] = lambda f=function, x=peers: f(*x)
            yield f"{name} {dtype}", calls


if __name__ == "__main__":
    if sys.argv[1:] == ["--times"]:
        print(json.dumps(times()))
    else:
        sys.exit(main(sys.argv[1:]))
