"""The device "cuda" where it cannot be used: each reason has its message."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from minitorch import backend
from minitorch.errors import DeviceError


def fake_cupy(count=1, toolkit=13000, capability="90"):
    """What the checks ask of CuPy, count being an exception where there is no driver."""

    def devices():
        if isinstance(count, Exception):
            raise count
        return count

    runtime = SimpleNamespace(getDeviceCount=devices, runtimeGetVersion=lambda: toolkit)
    device = SimpleNamespace(compute_capability=capability)
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, Device=lambda: device))


@pytest.fixture(autouse=True)
def asked_anew():
    backend.load_cupy.cache_clear()
    yield
    backend.load_cupy.cache_clear()


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, r"CuPy is not installed; pip install 'minitorch-engine\[cuda\]'"),
        (
            fake_cupy(RuntimeError("cudaErrorInsufficientDriver")),
            "no GPU, no driver.*InsufficientDriver",
        ),
        (fake_cupy(0), "the driver finds no GPU; is one hidden by CUDA_VISIBLE_DEVICES"),
        (fake_cupy(toolkit=11080), "expected CUDA 12.0 or later; CuPy was built for 11.8"),
        (fake_cupy(capability="75"), "expected a GPU of sm_80 or later.*sm_75"),
        (fake_cupy(), "the kernels were not built; .*MT_CUDA=1"),
    ],
    ids=["no cupy", "no driver", "no GPU", "old toolkit", "old GPU", "no kernels"],
)
def test_what_is_missing(monkeypatch, cupy, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=f"device 'cuda': {message}"):
        backend.to_device(np.zeros(3), "cuda")


def test_a_device_of_another_name():
    with pytest.raises(DeviceError, match="expected a device among cpu, cuda, simt; got 'gpu'"):
        backend.to_device(np.zeros(3), "gpu")
