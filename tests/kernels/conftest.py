"""What all tests of compiled kernels share: each runs on every instruction set of the processor."""

import pytest

from minitorch import kernels
from minitorch.kernels.cpu.extension import extension


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
