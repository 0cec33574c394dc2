"""What this machine offers: `report()` asks the system, the compiler, the driver and the packages.

Every question is asked on its own, and one that cannot be answered is None in the report: it never
raises.
"""

import ctypes
import importlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from minitorch import __version__, kernels

DISTRIBUTION = "minitorch-engine"
REQUIRED = ["numpy", "ml_dtypes", "safetensors", "rich", "click", "matplotlib", "regex"]
"""What is asked for where minitorch runs from a checkout and was not installed."""
VECTOR_FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve", "sve2",
)  # fmt: skip
"""Flags of /proc/cpuinfo, x86 and ARM, that decide how fast a kernel can be."""


def report() -> dict[str, dict[str, Any]]:
    """All sections: {"section": {"question": answer}}, of types that JSON can hold."""
    return {
        "system": {
            "minitorch": __version__,
            "location": ask(lambda: str(Path(__file__).parents[1])),
            "python": platform.python_version(),
            "platform": ask(platform.platform),
        },
        "processor": {
            "model": ask(processor),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "usable cores": ask(lambda: len(os.sched_getaffinity(0))),
            "instruction sets": ask(instruction_sets),
        },
        "threads": {
            "of kernels": ask(kernels.get_num_threads),
            "MT_NUM_THREADS": os.environ.get("MT_NUM_THREADS"),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
            "NumPy's BLAS": ask(_blas),
        },
        "memory": {
            "total": ask(lambda: _meminfo("MemTotal")),
            "available": ask(lambda: _meminfo("MemAvailable")),
            "peak of this process": ask(peak_memory),
            "array buffers": ask(_allocator),
            "buffers are recycled": ask(lambda: _allocator() != "default_allocator"),
        },
        "compiler": {"C++": ask(_compiler), "C++20": ask(_compiles_cpp20), "ninja": ask(_ninja)},
        "kernels": {
            "compiled extensions": ask(_extensions),
            "why not compiled": ask(why_not_compiled),
            "compiled for, best first": ask(lambda: list(kernels.instruction_sets())),
            "MT_KERNELS": os.environ.get("MT_KERNELS"),
            "MT_ISA": os.environ.get("MT_ISA"),
            **{f"on {name}": count for name, count in (ask(_kernels) or {}).items()},
        },
        "cuda": {
            "nvcc": ask(lambda: _first_match(["nvcc", "--version"], r"release (\S+),")),
            "driver": ask(_driver),
            "GPUs": ask(_gpus),
            "cupy": ask(_cupy),
        },
        "packages": {name: ask(partial(importlib.metadata.version, name)) for name in packages()},
    }


def note_missing_kernels() -> None:
    """Say on stderr that the computation to come is slow, why, and what helps.

    pip hides what a build prints. Nothing is said where MT_KERNELS=numpy asks for it.
    """
    why = None if os.environ.get("MT_KERNELS") == "numpy" else why_not_compiled()
    if why:
        click.echo(f"note: no compiled kernels, so NumPy computes, much slower: {why}", err=True)


def why_not_compiled() -> str | None:
    """Why there are no compiled kernels, and what helps; None where there are."""
    try:
        importlib.import_module("minitorch._cpu")
    except ModuleNotFoundError as error:
        if error.name != "minitorch._cpu":
            return f"they do not load: {error}"
    except ImportError as error:
        return f"they do not load: {error}; install minitorch again"
    else:
        return None
    if not ask(_compiles_cpp20):
        return "there is no C++20 compiler; get g++ or clang++ and install minitorch again"
    return (
        "they were not built, though there is a C++20 compiler; install minitorch again, with "
        "MT_BUILD=1 in the environment to be told what prevents it"
    )


def ask(question: Callable[[], Any]) -> Any:
    """The answer to one question, or None where there is none."""
    try:
        return question()
    except Exception:
        return None


def processor() -> str | None:
    """The name of the processor's model."""
    return _cpuinfo("model name") or platform.processor() or None


def instruction_sets() -> list[str]:
    """Those of VECTOR_FLAGS that the processor has."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return [flag for flag in VECTOR_FLAGS if flag in flags]


def peak_memory() -> int:
    """The most memory that this process has held at once, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss starts from what the parent process had
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def packages() -> list[str]:
    """The distributions that minitorch requires, or can use."""
    requirements = ask(lambda: importlib.metadata.requires(DISTRIBUTION)) or REQUIRED
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requirements]
    return list(dict.fromkeys(names))


def _cpuinfo(key: str) -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _meminfo(key: str) -> int | None:
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _blas() -> str:
    blas: Any = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


def _allocator() -> str | None:
    """The name of the handler that NumPy asks for memory (NEP 49)."""
    import numpy._core.multiarray as multiarray

    return multiarray.get_handler_name()


def _cxx() -> str | None:
    asked = os.environ.get("CXX")
    candidates = shlex.split(asked)[:1] if asked else ("g++", "clang++", "c++")  # as in setup.py
    return next((path for name in candidates if (path := shutil.which(name))), None)


def _compiler() -> str | None:
    path = _cxx()
    return _output([path, "--version"]).splitlines()[0] if path else None


def _compiles_cpp20() -> bool:
    path = _cxx()
    program = "#include <concepts>\ntemplate <std::integral T> T f(T x) { return x; }\n"
    command = [path, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    return bool(path) and _run(command, program).returncode == 0  # type: ignore[arg-type]


def _ninja() -> str:
    return _output([shutil.which("ninja") or "ninja", "--version"]).strip()


def _extensions() -> list[str]:
    import minitorch

    folder = Path(minitorch.__path__[0])
    return sorted(path.name for path in folder.glob("_*") if path.suffix in (".so", ".pyd"))


def _kernels() -> dict[str, str]:
    """For each implementation, which kernels the CPU would run on it."""
    from minitorch.kernels import available

    chosen: dict[str, list[str]] = {}
    for name, implementations in available().items():
        chosen.setdefault(implementations[0], []).append(name)
    return {name: f"{len(kernels)}: {', '.join(kernels)}" for name, kernels in chosen.items()}


def _driver() -> str:
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return _output(query).splitlines()


def _cupy() -> str:
    import cupy

    return f"{cupy.__version__}, {cupy.cuda.runtime.getDeviceCount()} device(s)"


def _first_match(command: list[str], pattern: str) -> str | None:
    match = re.search(pattern, _output(command))
    return match[1] if match else None


def _output(command: list[str]) -> str:
    result = _run(command)
    result.check_returncode()
    return result.stdout


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=20)
