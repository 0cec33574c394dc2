"""Reward for a program that passes tests: run it in a process of its own, and read what it returns.

The process is given the program and the arguments, and prints what the function returned for each,
as JSON. What it ought to return never enters it: a program that knows how it is judged can exit
early, print "passed" or redefine equality, and has not returned the right values by that.

Before the program begins, the process

    has loaded the modules that a solution may import, and can open no further file descriptor, so
    no file, no socket, no pipe, no other module;
    has limits on processor time, memory, processes and the size of files (0), by setrlimit;
    is nobody, where it was started by root;
    refuses, by an audit hook, what needs no descriptor: removing and renaming files, starting and
    signalling processes;

and it is killed with its group when its time is over or it has written too much.

What it is not: a wall against an attacker. It shares the kernel and the file system, can read what
the interpreter holds in memory, and a fault in CPython or a limit that the kernel does not enforce
for the user at hand lets it out. It is for programs that are wrong, endless or greedy, such as
small models write, on a machine with nothing on it that must not be lost. For strangers' programs
take a container or a virtual machine without a network. It needs a Unix.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitorch.errors import ConfigError
from models.environments.answers import Part, whole
from models.environments.rewards import Reward, _column

RUNNER = Path(__file__).with_name("_sandboxed.py")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use: seconds of the clock and of the processor, bytes of memory, bytes
    that it may print."""

    seconds: float = 5.0
    processor_seconds: int = 2
    memory: int = 512 << 20
    output: int = 64 << 10


def call(program: str, function: str, arguments: Sequence[list], limits: Limits) -> list | None:
    """What a function of the program returned for each list of arguments; None where it failed.

    A value that JSON cannot hold is a failure, as are an exception, an exit, too much output, and
    the end of the time.
    """
    if os.name != "posix":
        raise ConfigError("sandbox: expected a Unix, whose limits it needs; got " + sys.platform)
    request = {
        "program": program,
        "function": function,
        "arguments": arguments,
        "processor_seconds": limits.processor_seconds,
        "memory": limits.memory,
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(RUNNER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,
    )
    clock = threading.Timer(limits.seconds, _kill, [process])
    clock.start()
    try:
        printed = _exchange(process, json.dumps(request).encode(), limits.output)
    finally:
        clock.cancel()
        _kill(process)
        process.wait()
    return _results(printed, len(arguments))


def passes_tests(
    function: str = "solve", part: Part = whole, limits: Limits | None = None
) -> Reward:
    """1 where `function` of the program in the part passes all of the row's `tests`, else 0.

    tests: [[arguments, result], ...], values as JSON has them; all or nothing, since a constant
    passes some. One process for each completion.
    """

    def tests(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list:
        cases = _column("tests", "tests", columns)
        return [_judge(part(c), case) for c, case in zip(completions, cases, strict=True)]

    def _judge(program: str | None, case: Sequence[Sequence[Any]]) -> float:
        if not case:
            raise ConfigError("reward tests: expected at least one test for each row; got none")
        if program is None:
            return 0.0
        returned = call(program, function, [list(a) for a, _ in case], limits or Limits())
        return float(returned is not None and _same(returned, [result for _, result in case]))

    return tests


def _same(returned: Any, expected: Any) -> bool:
    """Equality of JSON values in which true is not 1."""
    return json.dumps(returned, sort_keys=True) == json.dumps(expected, sort_keys=True)


def _exchange(process: subprocess.Popen, request: bytes, limit: int) -> bytes:
    """What the process prints, up to one byte more than the limit."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin as stdin:
            stdin.write(request)
    except BrokenPipeError:
        return b""
    with process.stdout as stdout:
        printed = stdout.read(limit + 1)
    return printed if len(printed) <= limit else b""


def _results(printed: bytes, count: int) -> list | None:
    try:
        results = json.loads(printed)
    except (ValueError, RecursionError):
        return None
    return results if isinstance(results, list) and len(results) == count else None


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
