"""The process in which sandbox.py runs a program; a script of its own, which imports nothing here.

Reads a request from standard input, shuts the doors, runs the program, and prints what its function
returned for each list of arguments, as one JSON list.
"""

import importlib
import json
import os
import resource
import sys
from typing import Any

NOBODY = 65534
IMPORTABLE = (
    *("bisect", "collections", "fractions", "functools", "heapq"),
    *("itertools", "math", "re", "string"),
)
FORBIDDEN = frozenset(
    [
        *("os.chdir", "os.chflags", "os.chmod", "os.chown", "os.exec", "os.fork", "os.forkpty"),
        *("os.kill", "os.killpg", "os.link", "os.mkdir", "os.posix_spawn", "os.remove"),
        *("os.rename", "os.rmdir", "os.setxattr", "os.removexattr", "os.spawn", "os.symlink"),
        *("os.system", "os.truncate", "os.utime", "os.putenv", "os.unsetenv", "os.listdir"),
        *("os.scandir", "open", "ctypes.dlopen", "signal.pthread_kill", "subprocess.Popen"),
        *("socket.__new__", "mmap.__new__", "gc.get_objects", "gc.get_referrers"),
        *("object.__setattr__", "sys._getframe", "shutil.rmtree", "syslog.openlog"),
    ]
)


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    code = compile(request["program"], "<program>", "exec")
    write, out = os.write, os.dup(1)
    for name in IMPORTABLE:  # while files can still be opened
        importlib.import_module(name)
    blank = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(blank, standard)
    _shut(request["processor_seconds"], request["memory"])
    space: dict[str, Any] = {"__name__": "program"}
    exec(code, space)
    results = [space[request["function"]](*given) for given in request["arguments"]]
    write(out, json.dumps(results).encode())


def _shut(processor_seconds: int, memory: int) -> None:
    for what, limit in (
        (resource.RLIMIT_CPU, processor_seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple, forbidden: frozenset = FORBIDDEN) -> None:
    if event in forbidden:
        raise PermissionError(f"{event} is not allowed here")


if __name__ == "__main__":
    main()
