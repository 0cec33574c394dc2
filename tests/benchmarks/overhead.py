"""Overhead per operation on small arrays, against the peers, in one process and interleaved.

    python tests/benchmarks/overhead.py [--rounds 30] [--json FILE]

Each case is timed for every library in turn, round after round, one thread each; the figure is the
median over the rounds, in microseconds for each operation, and the ratio that of the medians.
Needs the extra `peers`; a library that is absent is left out.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

import minitorch as mt
from minitorch.io import write_json

SIZE = 8
CHAIN = 20
REPEAT = 200


def _minitorch() -> dict[str, Callable[[], object]]:
    a, b = (mt.tensor(np.ones(SIZE, np.float32), requires_grad=True) for _ in range(2))
    plain = a.detach()

    def chain():
        y = a
        for _ in range(CHAIN):
            y = y * b
        y.sum().backward()
        a.grad = b.grad = None

    return {
        "add, nothing recorded": lambda: plain + plain,
        "add, recorded": lambda: a + b,
        "mul, recorded": lambda: a * b,
        "exp, recorded": lambda: a.exp(),
        f"{CHAIN} mul, sum, backward": chain,
    }


def _torch() -> dict[str, Callable[[], object]]:
    import torch

    torch.set_num_threads(1)
    a, b = (torch.ones(SIZE, requires_grad=True) for _ in range(2))
    plain = a.detach()

    def chain():
        y = a
        for _ in range(CHAIN):
            y = y * b
        y.sum().backward()
        a.grad = b.grad = None

    return {
        "add, nothing recorded": lambda: plain + plain,
        "add, recorded": lambda: a + b,
        "mul, recorded": lambda: a * b,
        "exp, recorded": lambda: a.exp(),
        f"{CHAIN} mul, sum, backward": chain,
    }


def _mygrad() -> dict[str, Callable[[], object]]:
    import mygrad

    a, b = (mygrad.tensor(np.ones(SIZE, np.float32)) for _ in range(2))
    plain = mygrad.tensor(np.ones(SIZE, np.float32), constant=True)

    def chain():
        y = a
        for _ in range(CHAIN):
            y = y * b
        y.sum().backward()
        a.null_grad()
        b.null_grad()

    return {
        "add, nothing recorded": lambda: plain + plain,
        "add, recorded": lambda: a + b,
        "mul, recorded": lambda: a * b,
        "exp, recorded": lambda: mygrad.exp(a),
        f"{CHAIN} mul, sum, backward": chain,
    }


def _autograd() -> dict[str, Callable[[], object]]:
    """HIPS autograd records only inside of grad; one operation alone cannot be timed."""
    import autograd
    import autograd.numpy as anp

    a, b = (np.ones(SIZE, np.float32) for _ in range(2))

    def product(a, b):
        y = a
        for _ in range(CHAIN):
            y = y * b
        return anp.sum(y)

    gradient = autograd.grad(product, (0, 1))
    return {f"{CHAIN} mul, sum, backward": lambda: gradient(a, b)}


LIBRARIES = {
    "minitorch": _minitorch,
    "torch": _torch,
    "mygrad": _mygrad,
    "autograd": _autograd,
}


def _time(call: Callable[[], object], repeat: int) -> float:
    begun = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - begun) / repeat


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Case -> library -> median microseconds for each operation."""
    cases: dict[str, dict[str, Callable[[], object]]] = {}
    for library, build in LIBRARIES.items():
        try:
            import_module(library)
        except ImportError:
            continue
        for case, call in build().items():
            cases.setdefault(case, {})[library] = call
    results = {}
    for case, calls in cases.items():
        chained = "backward" in case
        repeat, operations = (REPEAT // 10, CHAIN + 1) if chained else (REPEAT, 1)
        times: dict[str, list[float]] = {library: [] for library in calls}
        for call in calls.values():
            _time(call, repeat)
        for _ in range(rounds):
            for library, call in calls.items():
                times[library].append(_time(call, repeat))
        results[case] = {
            library: 1e6 * statistics.median(seconds) / operations
            for library, seconds in times.items()
        }
    return results


def _version(library: str) -> str:
    try:
        return version("minitorch-engine" if library == "minitorch" else library)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    results = measure(options.rounds)
    print(f"{'microseconds for each operation':34}" + "".join(f"{x:>12}" for x in LIBRARIES))
    for case, times in results.items():
        figures = [f"{times[x]:12.2f}" if x in times else f"{'-':>12}" for x in LIBRARIES]
        print(f"{case:34}" + "".join(figures))
    if options.json:
        write_json(
            options.json,
            {
                "date": datetime.now(UTC).strftime("%Y-%m-%d"),
                "command": f"python tests/benchmarks/overhead.py --rounds {options.rounds}",
                "processor": _processor(),
                "python": platform.python_version(),
                "versions": {library: _version(library) for library in (*LIBRARIES, "numpy")},
                "array": f"float32, {SIZE} elements",
                "unit": "microseconds for each operation, median",
                "results": results,
            },
        )
        print(json.dumps({"written": str(options.json)}))


if __name__ == "__main__":
    main()
