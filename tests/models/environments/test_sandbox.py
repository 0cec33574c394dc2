"""Programs that are judged by what they return, in a process that can do little else."""

import os
import socket
import time

import pytest

from minitorch.errors import ConfigError
from models.environments.sandbox import Limits, call, passes_tests

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs a Unix")
ADDS = "def solve(a, b):\n    return a + b\n"
TESTS = [[[1, 2], 3], [[-4, 4], 0], [[10, 5], 15]]


def judged(program, tests=TESTS, **options):
    (value,) = passes_tests(**options)(["?"], [program], tests=[tests])
    return value


def in_solve(statement, value="a + b"):
    return f"def solve(a, b):\n    {statement}\n    return {value}\n"


@pytest.mark.parametrize(
    "program",
    [
        ADDS,
        "from functools import reduce\nimport heapq, math\n" + ADDS,
        in_solve("print('passed')"),
    ],
)
def test_right_programs_pass(program):
    assert judged(program) == 1.0


@pytest.mark.parametrize(
    "program",
    [
        "",
        "not a program",
        "solve = 3",
        "def other(a, b): return a + b",
        in_solve("pass", "a - b"),
        in_solve("pass", "3"),  # right for the first
        in_solve("pass", "float('nan')"),
        in_solve("pass", "{1}"),
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit(0)",
        "print('[3, 0, 15]')",
        "print('[true, true, true]')\nimport os; os._exit(0)",
        "class Any(int):\n    def __eq__(self, other): return True\ndef solve(a, b): return Any(7)",
        "import json; json.dumps = lambda *a, **k: '[]'\n" + ADDS.replace("+", "-"),
    ],
)
def test_wrong_programs_do_not(program):
    assert judged(program) == 0.0


def test_true_is_not_one():
    assert judged("def solve(a): return True", [[[1], 1]]) == 0.0
    assert judged("def solve(a): return [1, {'b': None}]", [[[1], [1, {"b": None}]]]) == 1.0


@pytest.mark.parametrize(
    "statement",
    ["x = [0] * 10**9", "x = 10 ** 10 ** 10", "while True: pass", "import time; time.sleep(60)"],
)
def test_greed_ends(statement):
    started = time.monotonic()
    limits = Limits(seconds=2.0, processor_seconds=1)
    assert call(in_solve(statement), "solve", [[1, 2]], limits) is None
    assert time.monotonic() - started < 20


def test_too_much_output():
    assert call("def solve(): return 'x' * 10**6", "solve", [[]], Limits()) is None


def test_no_files_are_written_or_removed(tmp_path):
    tmp_path.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_text("here")
    victim.chmod(0o666)
    for statement in (
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        f"import os; os.open({str(tmp_path / 'new')!r}, os.O_CREAT | os.O_WRONLY)",
        f"import os; os.remove({str(victim)!r})",
        f"import os; os.rename({str(victim)!r}, {str(tmp_path / 'moved')!r})",
        f"import os; os.truncate({str(victim)!r}, 0)",
        f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
        f"open({str(victim)!r}).read()",
    ):
        assert judged(in_solve(statement)) == 0.0, statement
        assert [path.name for path in tmp_path.iterdir()] == ["victim"]
        assert victim.read_text() == "here"


def test_no_network_and_no_processes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for statement in (
            f"import socket; socket.create_connection(('127.0.0.1', {port}))",
            "import _socket; _socket.socket()",
            "import subprocess; subprocess.run(['true'])",
            "import os; os.system('true')",
            "import os; os.fork()",
            "import os; os.kill(os.getppid(), 0)",
            "import ctypes",
        ):
            assert judged(in_solve(statement)) == 0.0, statement


def test_rows_without_tests():
    with pytest.raises(ConfigError, match="at least one test"):
        judged(ADDS, [])
    with pytest.raises(ConfigError, match="rows with 'tests'"):
        passes_tests()(["?"], [ADDS])
