"""The pool of threads: settings, forks, and Python threads that use it at once."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from minitorch import kernels
from minitorch.errors import ConfigError
from minitorch.kernels.cpu.extension import extension

pytestmark = pytest.mark.skipif(
    extension is None, reason="minitorch._cpu was not built: no C++20 compiler at installation"
)


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )
    return done.stdout.strip(), done.stderr


def product(seed=0):
    a = np.random.default_rng(seed).standard_normal((200, 300))
    return kernels.lookup("matmul")(a, a.T)


def test_the_environment_sets_threads_and_instruction_set():
    program = "import minitorch as mt; print(mt.get_num_threads())"
    assert run(program, MT_NUM_THREADS="3")[0] == "3"
    assert "MT_NUM_THREADS: expected a number" in run(program, MT_NUM_THREADS="many")[1]
    affinity = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); " + program
    assert run(affinity, MT_NUM_THREADS="")[0] == "1"
    assert "use_instruction_set: expected one of" in run(program, MT_ISA="mmx")[1]
    assert run(program, MT_ISA="portable", MT_NUM_THREADS="2")[0] == "2"


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", 10_000])
def test_a_bad_number_is_refused(count):
    with pytest.raises(ConfigError, match="set_num_threads: expected an integer from 1 to 1024"):
        kernels.set_num_threads(count)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes():
    program = """
import os, numpy as np
from minitorch import kernels
a = np.arange(60_000.0).reshape(200, 300)
expected = kernels.lookup("matmul")(a, a.T)
for _ in range(5):
    child = os.fork()
    if child == 0:
        right = (kernels.lookup("matmul")(a, a.T) == expected).all()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (kernels.lookup("matmul")(a, a.T) == expected).all()
print("right")
"""
    out, error = run(program, MT_NUM_THREADS="3")
    assert out == "right", error


def test_python_threads_may_compute_at_once(threads):
    threads(3)
    expected = product()
    wrong: list[int] = []

    def work():
        wrong.extend(i for i in range(30) if not (product() == expected).all())

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_the_size_may_change_between_loops(threads):
    expected = product()
    for count in (1, 4, 2, 7, 1, 3):
        threads(count)
        assert kernels.get_num_threads() == count
        assert (product() == expected).all()
