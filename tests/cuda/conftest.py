"""What tests of CUDA kernels share: the emulator's check build, and the float64 reference."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import minitorch as mt
from minitorch import kernels
from minitorch.backend import to_device
from minitorch.errors import DeviceError
from minitorch.kernels.cuda.extension import checked, is_available
from tests.cuda import cupy_of_numpy

TOLERANCE = {mt.float64: 1e-13, mt.float32: 4e-6, mt.bfloat16: 1e-2, mt.float16: 2e-3}


ORDERS = {"forward": ("forward", 0), "reversed": ("reversed", 0), "random": ("random", 7)}
"""In which order the emulator's threads run."""


ONE_ORDER = {"float64": "reversed", "bfloat16": "random", "float16": "forward"}
"""That of a dtype where another runs in all: threads meet in the same places for every dtype."""


def pytest_collection_modifyitems(config, items):
    """All orders for a test's first dtype, float32 where it has that, and one for each other."""
    chosen = [item for item in items if _dtype_and_order(item)]
    dtypes = {}
    for item in chosen:
        dtypes.setdefault(_test(item), []).append(_dtype_and_order(item)[0])
    repeated = set()
    for item in chosen:
        (dtype, order), own = _dtype_and_order(item), dtypes[_test(item)]
        first = "float32" if "float32" in own else own[0]
        if dtype != first and order != ONE_ORDER.get(dtype, order):
            repeated.add(item)
    config.hook.pytest_deselected(items=list(repeated))
    items[:] = [item for item in items if item not in repeated]


def _test(item):
    return item.path, item.originalname


def _dtype_and_order(item):
    """Of a test here that has both, else None."""
    if Path(__file__).parent not in item.path.parents or not hasattr(item, "callspec"):
        return None
    given = item.callspec.params
    if "dtype" not in given or given.get("hold") not in ORDERS:
        return None
    return str(given["dtype"]), given["hold"]


CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
"""The device on a GPU: `pytest -m gpu` runs what needs no emulator."""


@pytest.fixture(params=[*ORDERS, CUDA])
def hold(request):
    """hold(name, *arrays, **options): a kernel `held` against its reference.

    In the check build, in three orders; and on the device "cuda".
    """
    if not is_available("simt"):
        pytest.skip("minitorch._simt was not built: no C++20 compiler at installation")
    if request.param != "cuda":
        return partial(held, device="simt", watch=partial(checked, *ORDERS[request.param]))
    if not is_usable("cuda"):
        request.getfixturevalue("stand_in")
    return partial(held, device="cuda")


def held(name, *arrays, device, watch=nullcontext, like=None, **options):
    """The kernel's results on the device, after comparing them with the reference's.

    The reference computes in float64 what the kernel is given in any dtype; `like` (of the first
    array unless given) is the dtype whose bound counts.
    """
    like = like or next(x.dtype for x in arrays if hasattr(x, "dtype"))
    given = [placed(x, device) for x in arrays]
    settings = {key: placed(x, device) for key, x in options.items()}
    with np.errstate(all="ignore"), watch():
        results = flat(kernels.lookup(name, device)(*given, **settings))
    results = [placed(x, "cpu") if device == "cuda" else x for x in results]
    with np.errstate(all="ignore"):
        reference = kernels.implementations(name)["numpy"]
        expected = flat(reference(*map(wide, arrays), **options))
    assert len(results) == len(expected)
    for found, exact in zip(results, expected, strict=True):
        assert (found is None) == (exact is None)
        if found is not None:
            assert found.shape == exact.shape
            close(found, exact, like)
    return results if len(results) > 1 else results[0]


def close(found, exact, dtype):
    """Equal within the dtype's bound times the largest finite number expected."""
    largest = np.abs(exact[np.isfinite(exact)]).max(initial=0)
    np.testing.assert_allclose(
        np.asarray(found, np.float64), exact, rtol=0, atol=TOLERANCE[dtype] * (1 + largest)
    )


def flat(result):
    return list(result) if isinstance(result, tuple | list) else [result]


def wide(x):
    """Floats as float64; everything else as it is."""
    return np.asarray(x, np.float64) if getattr(x, "dtype", None) in TOLERANCE else x


def placed(x, device):
    """Arrays on the device, also those in lists; everything else as it is."""
    if isinstance(x, list | tuple):
        return type(x)(placed(item, device) for item in x)
    x = np.asarray(x) if isinstance(x, np.generic) else x
    return to_device(x, device) if hasattr(x, "strides") else x


@pytest.fixture(params=["simt", CUDA])
def device(request):
    """The emulated device, and the GPU: where there is none, its code on a stand-in's arrays."""
    if not is_available("simt"):
        pytest.skip("minitorch._simt was not built: no C++20 compiler at installation")
    if request.param == "cuda" and not is_usable("cuda"):
        request.getfixturevalue("stand_in")
    return request.param


@pytest.fixture
def stand_in():
    """Device "cuda" made of NumPy's arrays and the emulator's kernels."""
    with cupy_of_numpy.installed() as cupy:
        yield cupy


def is_usable(device):
    """Whether arrays can be there."""
    try:
        to_device(np.zeros(1), device)
    except DeviceError:
        return False
    return True
