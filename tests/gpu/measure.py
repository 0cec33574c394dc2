"""How the cases are timed: in a process of their own, which is begun anew where a case ends it.

An error of a kernel can leave a process without its device, and a case may hang. So the process
says which case it begins and what came out, a line of JSON each, and who listens keeps that.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gpu.report import OURS, Report, Row

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 9
WARM_UP = 3
BATCH = 0.003
"""Seconds of calls that are timed together, so that the launches of one hide behind another."""
MOST_CALLS = 100
CASE_SECONDS = 120
"""What a case may take, compilation by PyTorch included."""
SPARE = 20
"""Seconds before the end at which no other case is begun."""


def all_cases(report: Report, seconds: float) -> str:
    """Time what the report lacks; says what there was no time for, or ""."""
    end = time.monotonic() + seconds
    while True:
        begun, ended = _listen(report, end)
        if ended == "done":
            return ""
        if ended == "left out" or time.monotonic() > end - SPARE:
            return f"{begun or 'the first case'} and those after it"
        if begun is None:
            report.add("copy", {"errors": {OURS: ended}})
            return "all: nothing could be timed"
        report.add(begun, {"errors": {OURS: ended}})


def ours_failed(row: Row) -> bool:
    return any(name.startswith(OURS) for name in row.get("errors", {}))


def _listen(report: Report, end: float) -> tuple[str | None, str]:
    """The case that a process began last, and how it ended: "done", "left out", or an error."""
    left = end - time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.measure", str(left)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    errors = _Tail(process.stderr)
    process.stdin.write(json.dumps([*report.cases]))
    process.stdin.close()
    begun, ended = None, ""
    killer = _Killer(process)
    killer.restart(min(CASE_SECONDS, left))
    for line in process.stdout:
        if not line.startswith("{"):
            continue  # of a library that talks
        said = json.loads(line)
        if "row" in said:
            report.add(said["case"], said["row"])
        begun, ended = said["case"], said.get("ended", "")
        killer.restart(min(CASE_SECONDS, end - time.monotonic()))
    killer.cancel()
    code = process.wait()
    if ended or (code == 0 and not killer.killed):
        return begun, ended or "done"
    if begun in report.cases:  # its row says what happened
        return begun, "error"
    return begun, f"took more than {CASE_SECONDS} s" if killer.killed else errors.text(code)


class _Killer:
    """Ends a process that says nothing for some seconds."""

    def __init__(self, process: subprocess.Popen[str]):
        self.killed, self._process, self._timer = False, process, threading.Timer(0, lambda: None)

    def restart(self, seconds: float) -> None:
        self.cancel()
        self._timer = threading.Timer(max(seconds, 0), self._kill)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        self._timer.cancel()

    def _kill(self) -> None:
        self.killed = True
        self._process.kill()


class _Tail:
    """Reads a stream to its end, and knows the last lines."""

    def __init__(self, stream: Any):
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            self._lines = [*self._lines[-20:], line]

    def text(self, code: int) -> str:
        self._thread.join(5)
        return f"ended with {code}: " + "".join(self._lines)[-1500:]


def main(seconds: float, have: list[str]) -> int:
    """Time the cases but those that are there; 3 where the device is of no use any more."""
    from tests.gpu.cases import cases

    end = time.monotonic() + seconds
    copied: float | None = None
    for case in cases():
        if case.name in have and copied is not None:
            continue
        if end - time.monotonic() < SPARE:
            _say(case.name, ended="left out")
            return 0
        _say(case.name)
        row, usable = timed(case)
        if copied is None and "cupy" in row["microseconds"]:  # the first one: the copy itself
            copied = 1e6 * case.bytes / row["microseconds"]["cupy"]
        row["copy_bytes_per_second"] = copied
        _say(case.name, row=row)
        if not usable:
            return 3
    return 0


def _say(case: str, **more: Any) -> None:
    print(json.dumps({"case": case, **more}), flush=True)


def timed(case: Any) -> tuple[Row, bool]:
    """Medians of one call, the libraries in turns; and whether the device can still be used.

    A library that cannot do it is left out, with its reason.
    """
    calls: dict[str, Callable[[], Any]] = {}
    counts: dict[str, int] = {}
    errors: dict[str, str] = {}
    row: Row = {"microseconds": {}, "dtype": case.dtype, "flops": case.flops, "bytes": case.bytes}
    row |= {"products": True} if case.products else {}
    row |= {"tokens": case.tokens} if case.tokens else {}
    _free()
    for library in case.libraries:
        try:
            call = case.build(library)
            for _ in range(WARM_UP):  # kernels are compiled, and steps captured
                call()
            once = max(seconds(call, 1), 1e-6)
            calls[library], counts[library] = call, min(MOST_CALLS, math.ceil(BATCH / once))
        except Exception as error:
            errors[library] = f"{type(error).__name__}: {error}"[:500]
    try:
        took: dict[str, list[float]] = {library: [] for library in calls}
        for _ in range(ROUNDS):
            for library, call in calls.items():
                took[library].append(seconds(call, counts[library]))
        row["microseconds"] = {
            library: 1e6 * statistics.median(values) for library, values in took.items()
        }
        _free()
    except Exception as error:  # of a kernel that ran before, perhaps
        row["errors"] = errors | {OURS: f"{type(error).__name__}: {error}"[:500]}
        return row, False
    return row | ({"errors": errors} if errors else {}), True


def seconds(call: Callable[[], Any], count: int) -> float:
    """Of one of so many calls, the device idle before and waited for after."""
    import cupy

    device = cupy.cuda.Device()
    device.synchronize()
    begun = time.perf_counter()
    for _ in range(count):
        call()
    device.synchronize()
    return (time.perf_counter() - begun) / count


def _free() -> None:
    """Wait for the device, and give back what the libraries keep of the case before."""
    import cupy

    cupy.cuda.Device().synchronize()
    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), json.load(sys.stdin)))
