"""All that needs a GPU, in one command: `python -m tests.gpu [--resume] [RESULT.json]`.

    build      the kernels, in place, for this machine
    golden     what this GPU's instructions give for the inputs of tests/simt/golden.py, written
               beside the result; in tests/simt/golden the emulator's tests repeat it
    tests      those of tests/cuda that need no emulator, each file in a process of its own
    sanitizer  compute-sanitizer watches a training step and products on tensor cores
    times      kernels and training steps beside CuPy and PyTorch (cases.py)

It takes nine minutes at most, or what `--seconds` says: what there is no time for is left out, and
`--resume` goes on where the result that is there ends; `--only times,golden` does these alone. The
result is written after each phase and each case, whole or not at all, and a table beside it. What
fails is reported, and the rest goes on. Nothing is downloaded: python3 with the packages below,
nvcc and a driver must be there.
Exit code 0 if all passed, 1 if something failed, 2 if it cannot be run here, 3 if the time was too
short for all.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tests" / "benchmarks" / "results" / "gpu.json"
PROGRAMS = ("nvcc", "nvidia-smi")
PACKAGES = (
    *("numpy", "cupy", "ml_dtypes", "safetensors", "rich", "click", "pybind11", "ninja"),
    *("setuptools", "pytest", "hypothesis"),
)
SECONDS = {"build": 200, "golden": 40, "tests": 130, "sanitizer": 60, "times": 500}
"""What each phase may take, of the seconds of all, which are fewer."""
LEAST = 10
"""Seconds with which no phase is begun."""


def main(arguments: Sequence[str]) -> int:
    options = _parsed(arguments)
    if lacking := missing():
        print(f"tests.gpu: needs {', '.join(lacking)}, not found here", file=sys.stderr)
        return 2
    from tests.gpu.phases import PHASES
    from tests.gpu.report import Report

    end = time.monotonic() + options.seconds
    report = Report(options.result, options.resume)
    for name in options.only:
        if report.passed(name):
            continue
        left = min(SECONDS[name], end - time.monotonic())
        if left < LEAST:
            report.enter(name, {"left_out": "no time was left"})
            continue
        begun = time.monotonic()
        found = PHASES[name](report, left)
        report.enter(name, {**found, "seconds": round(time.monotonic() - begun, 1)})
        print(f"{name}: {report.line(name)}", flush=True)
        if name == "build" and not found["passed"]:
            break
    code = report.exit_code()
    ended = {0: "passed", 1: "FAILED", 3: "not done; go on with --resume"}[code]
    print(f"{report.table()}\ntests.gpu: {ended}; {options.result}")
    return code


def missing() -> list[str]:
    """Programs and packages that are not here; "a GPU" where the driver shows none."""
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    lacking += [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        return lacking
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [] if "GPU 0" in listed.stdout else ["a GPU"]


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("result", nargs="?", type=Path, default=RESULT, metavar="RESULT.json")
    parser.add_argument("--resume", action="store_true", help="keep what has passed in RESULT.json")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it")
    parser.add_argument(
        "--only",
        type=lambda text: [name for name in SECONDS if name in _names(text)],
        default=[*SECONDS],
        metavar="PHASES",
        help=f"of {','.join(SECONDS)}",
    )
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SECONDS]:
        raise argparse.ArgumentTypeError(
            f"expected phases among {', '.join(SECONDS)}; got {', '.join(unknown)}"
        )
    return names


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
