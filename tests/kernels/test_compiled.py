"""The compiled kernels against their references, and the recycling of array buffers."""

import os
import subprocess
import sys

import numpy as np
import pytest

from minitorch import kernels
from minitorch.errors import ConfigError, KernelError
from minitorch.kernels import reference
from minitorch.kernels.cpu.extension import extension

compiled = pytest.mark.skipif(
    extension is None, reason="minitorch._cpu was not built: no C++20 compiler at installation"
)


@compiled
@pytest.mark.parametrize("instruction_set", kernels.instruction_sets())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 3, 16, 17, 64, 1000])
def test_softmax(instruction_set, dtype, width):
    before = kernels.instruction_sets()[0]
    x = (5 * np.random.default_rng(width).standard_normal((7, width))).astype(dtype)
    kernels.use_instruction_set(instruction_set)
    try:
        found = kernels.implementations("softmax")["cpu"](x, dim=-1, scale=0.7)
        columns = kernels.implementations("softmax")["cpu"](x, dim=0)
    finally:
        kernels.use_instruction_set(before)
    eps = np.finfo(dtype).eps
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found, reference.softmax(exact, scale=0.7), rtol=32 * eps)
    np.testing.assert_allclose(columns, reference.softmax(exact, dim=0), rtol=32 * eps)
    assert found.dtype == dtype


@compiled
def test_softmax_of_extremes_and_of_odd_memory():
    softmax = kernels.implementations("softmax")["cpu"]
    x = np.array([[1e4, -1e4, 0], [-np.inf, 0, -np.inf]], np.float32)
    np.testing.assert_array_equal(softmax(x), [[1, 0, 0], [0, 1, 0]])
    strided = np.random.default_rng(0).standard_normal((6, 8))[::2, ::-1]
    np.testing.assert_allclose(softmax(strided), reference.softmax(strided), rtol=1e-14)
    assert softmax(np.zeros((0, 3))).shape == (0, 3)


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


def test_the_table_says_what_is_missing():
    with pytest.raises(KernelError, match=r"no kernel is named 'convolute'; there are: .*softmax"):
        kernels.lookup("convolute")
    with pytest.raises(KernelError, match="no implementation for 'cuda'"):
        kernels.lookup("softmax", "cuda")
    with pytest.raises(ConfigError, match="quantum"), kernels.prefer("quantum"):
        pass
    with kernels.prefer("numpy"):
        assert kernels.lookup("softmax") is reference.softmax


def test_the_environment_forces_the_reference():
    program = (
        "from minitorch import kernels; from minitorch.kernels import reference; "
        "print(kernels.lookup('softmax') is reference.softmax)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "MT_KERNELS": "numpy"},
    )
    assert done.stdout.strip() == "True", done.stderr
