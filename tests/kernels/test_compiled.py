"""The compiled kernels against their references, and the recycling of array buffers."""

import os
import subprocess
import sys

import numpy as np
import pytest

from minitorch import kernels
from minitorch.errors import ConfigError, KernelError
from minitorch.kernels import table
from minitorch.kernels.cpu.extension import extension
from minitorch.kernels.reference import softmax as reference

compiled = pytest.mark.skipif(
    extension is None, reason="minitorch._cpu was not built: no C++20 compiler at installation"
)


@compiled
def test_large_buffers_are_reused_and_still_right():
    shape = (300, 1000)
    np.zeros(shape).sum()
    before = kernels.buffer_statistics()
    for value in range(20):
        x = np.full(shape, value, np.float64)
        assert x.ctypes.data % 64 == 0
        zeros = np.zeros(shape)
        assert not zeros.any(), "calloc from a recycled buffer must be zero"
        assert (x == value).all()
    after = kernels.buffer_statistics()
    assert after["reused"] - before["reused"] > 20
    assert kernels.release_buffers() >= 0
    assert kernels.buffer_statistics()["idle_bytes"] == 0


@compiled
def test_an_array_outlives_the_allocator_that_made_it():
    ours = np.arange(100_000.0)
    try:
        kernels.recycle_buffers(False)
        theirs = np.arange(100_000.0)
        kernels.recycle_buffers(True)
        assert np.array_equal(ours, theirs)
        ours.resize(200_000, refcheck=False)
        assert not ours[100_000:].any()
        del ours, theirs
    finally:
        kernels.recycle_buffers(True)


@compiled
def test_recycling_touches_no_fresh_pages():
    """Page faults of a repeated large temporary, counted by the kernel of the system."""
    program = """
import resource, numpy as np, minitorch.kernels as k
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(1_000_000).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(); on = faults()
k.recycle_buffers(False); off = faults()
print(on, off)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    on, off = map(int, done.stdout.split())
    assert on < 500, done.stderr
    assert off >= on


def test_the_table_says_what_is_missing(monkeypatch):
    with pytest.raises(KernelError, match=r"no kernel is named 'convolute'; there are: .*softmax"):
        kernels.lookup("convolute")
    monkeypatch.setitem(table._table, "emulated", {"simt": reference.softmax})
    with pytest.raises(KernelError, match="no implementation for 'cuda'"):
        kernels.lookup("emulated", "cuda")
    with pytest.raises(ConfigError, match="quantum"), kernels.prefer("quantum"):
        pass
    with kernels.prefer("numpy"):
        assert kernels.lookup("softmax") is reference.softmax


def test_the_environment_forces_the_reference():
    program = (
        "from minitorch import kernels; from minitorch.kernels.reference import softmax; "
        "print(kernels.lookup('softmax') is softmax.softmax)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "MT_KERNELS": "numpy"},
    )
    assert done.stdout.strip() == "True", done.stderr
