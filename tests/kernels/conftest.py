"""What all tests of compiled kernels share: each runs on every instruction set of the processor."""

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.kernels.cpu.extension import extension

TOLERANCE = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 2e-14, mt.bfloat16: 1e-2}


@pytest.fixture(params=kernels.instruction_sets() or ["none"])
def instruction_set(request):
    """Run the kernels of one instruction set."""
    if extension is None:
        pytest.skip("minitorch._cpu was not built: no C++20 compiler at installation")
    kernels.use_instruction_set(request.param)
    yield request.param
    kernels.use_instruction_set(kernels.instruction_sets()[0])


@pytest.fixture
def threads():
    """A function that sets the number of threads, undone after the test."""
    before = kernels.get_num_threads()
    yield kernels.set_num_threads
    kernels.set_num_threads(before)


@pytest.fixture
def hold(instruction_set):
    """hold(name, *arrays, **options): the compiled kernel, held against its reference.

    The reference computes in float64 what the kernel is given in any dtype; the bound is that of
    the first array's dtype. NaN and infinity must be in the same places. Returns what the kernel
    did, and with 1 and with 2 threads that must be the same bits.
    """
    before = kernels.get_num_threads()

    def run(name, *arrays, **options):
        kernel = kernels.implementations(name)["cpu"]
        results = []
        for count in (1, 2):
            kernels.set_num_threads(count)
            results.append(_flat(kernel(*arrays, **options)))
        reference = kernels.implementations(name)["numpy"]
        with np.errstate(all="ignore"):
            expected = _flat(reference(*map(_wide, arrays), **options))
        dtype = arrays[0].dtype
        assert len(results[0]) == len(expected)
        for found, again, exact in zip(*results, expected, strict=True):
            assert found.tobytes() == again.tobytes()
            assert found.shape == exact.shape
            close(found, exact, dtype)
        return results[0] if len(results[0]) > 1 else results[0][0]

    yield run
    kernels.set_num_threads(before)


def _flat(result):
    return list(result) if isinstance(result, tuple | list) else [result]


def _wide(x):
    """Floats as float64; everything else as it is."""
    return np.asarray(x, np.float64) if getattr(x, "dtype", None) in TOLERANCE else x


def close(found, exact, dtype):
    """Equal within the dtype's bound times the largest finite number expected."""
    found = np.asarray(found, np.float64)
    largest = np.abs(exact[np.isfinite(exact)]).max(initial=0)
    np.testing.assert_allclose(found, exact, rtol=0, atol=TOLERANCE[dtype] * (1 + largest))
