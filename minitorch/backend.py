"""Where arrays live, which dtypes they have, and what two dtypes become when they meet.

A tensor's data is a NumPy array (device "cpu"), a CuPy array (device "cuda"), or an array of the
emulated GPU (device "simt"). Dtypes are NumPy's own objects; bfloat16 comes from ml_dtypes. Float16
and bfloat16 are storage formats: arithmetic on them runs in float32 and is rounded once, at the end
(`half_precision`).

Promotion is PyTorch's, not NumPy's (c10/core/ScalarType.h and TensorIterator's result_type):

* bool < integers < floats, and a lower category never widens a higher one:
  int64 + float32 is float32 (NumPy would say float64);
* float16 + bfloat16 is float32: neither holds the other;
* a Python scalar never widens: float32 + 1e300 is float32, int8 + 1 is int8, and int64 + 0.5 has
  the default dtype, float32;
* a tensor of no dimensions widens only across categories: float32[3] + float64[] is float32.
"""

from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from functools import cache
from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np

from minitorch import capture
from minitorch.errors import DeviceError, DtypeError

_pybool = bool  # the name `bool` below is the dtype, as in PyTorch

float16 = np.dtype(np.float16)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)
float64 = np.dtype(np.float64)
int8 = np.dtype(np.int8)
int16 = np.dtype(np.int16)
int32 = np.dtype(np.int32)
int64 = np.dtype(np.int64)
uint8 = np.dtype(np.uint8)
bool = np.dtype(np.bool_)

DTYPES = {
    str(dtype): dtype
    for dtype in (
        float16,
        bfloat16,
        float32,
        float64,
        int8,
        int16,
        int32,
        int64,
        uint8,
        bool,
    )
}
_KNOWN = frozenset(DTYPES.values())
FLOATS = frozenset({float16, bfloat16, float32, float64})
DEFAULT_FLOAT = float32
"""What Python floats, and integers divided by integers, become."""

arithmetic = copy_context()
"""In copies of this context all operations compute: NumPy keeps in it what to do about overflow and
1 / 0 (nothing, as in PyTorch: the result says it with inf and NaN) and which allocator arrays come
from. The calling program's own settings are neither used nor changed."""

arithmetic.run(np.seterr, all="ignore")


def cast(array: Any, dtype: np.dtype) -> Any:
    """The array in another dtype, itself if it has that already; what is too large becomes inf."""
    return array if array.dtype == dtype else arithmetic.copy().run(array.astype, dtype)


def as_dtype(dtype: Any) -> np.dtype:
    """The dtype meant by a dtype, a NumPy scalar type, or a name such as "bfloat16"."""
    if isinstance(dtype, np.dtype) and dtype in _KNOWN:
        return dtype
    if dtype is float or dtype is int or dtype is _pybool:
        return DEFAULT_FLOAT if dtype is float else int64 if dtype is int else bool
    name = (
        dtype if isinstance(dtype, str) else str(np.dtype(dtype)) if dtype is not None else "None"
    )
    if name not in DTYPES:
        raise DtypeError(f"dtype: expected one of {', '.join(DTYPES)}; got {dtype!r}")
    return DTYPES[name]


def is_float(dtype: np.dtype) -> _pybool:
    """Whether dtype is one of the four floating types, the only ones that have gradients."""
    return dtype in FLOATS


def half_precision(dtype: np.dtype) -> _pybool:
    """Whether arithmetic on dtype runs in float32 and is rounded at the end."""
    return dtype.itemsize == 2 and dtype in (bfloat16, float16)


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """What kernels compute in, given arrays of this dtype: float32, but float64 in float64."""
    return float64 if dtype == float64 else float32


def _category(dtype: np.dtype) -> int:
    return 2 if dtype in FLOATS else 0 if dtype == bool else 1


@cache
def promote_types(a: np.dtype, b: np.dtype) -> np.dtype:
    """The dtype that holds both, the higher category deciding. torch.promote_types."""
    if _category(a) != _category(b):
        return a if _category(a) > _category(b) else b
    if a == b:
        return a
    if {a, b} == {float16, bfloat16}:
        return float32
    if bfloat16 in (a, b) or float16 in (a, b):
        return a if a.itemsize > b.itemsize else b
    return np.promote_types(a, b)


def scalar_dtype(value: Any) -> np.dtype:
    """The dtype of a Python scalar on its own."""
    if isinstance(value, _pybool):
        return bool
    if isinstance(value, int):
        return int64
    if isinstance(value, float):
        return DEFAULT_FLOAT
    raise DtypeError(
        f"expected a tensor, an array or a Python number; got {type(value).__name__}. "
        "Convert it with minitorch.tensor(...)"
    )


def result_type(operands: Iterable[Any]) -> np.dtype:
    """The common dtype of arrays and Python scalars, by the rules on top of this file."""
    ranks: list[np.dtype | None] = [None, None, None]  # dimensioned, zero-dimensional, scalars
    for operand in operands:
        shape = getattr(operand, "shape", None)
        rank = 2 if shape is None else 1 if shape == () else 0
        dtype = scalar_dtype(operand) if shape is None else operand.dtype
        known = ranks[rank]
        ranks[rank] = dtype if known is None else promote_types(known, dtype)
    return _outrank(ranks[0], _outrank(ranks[1], ranks[2]))  # type: ignore[return-value]


def _outrank(higher: np.dtype | None, lower: np.dtype | None) -> np.dtype | None:
    if higher is None or lower is None:
        return lower if higher is None else higher
    return promote_types(higher, lower) if _category(lower) > _category(higher) else higher


class SimtArray(np.ndarray):
    """An array of the emulated GPU: NumPy's in all but the kernels that compute with it.

    Device "simt" runs the CUDA kernels on the CPU (csrc/simt), slowly: it is there to test them.
    """


DEVICES = ("cpu", "cuda", "simt")


def device_of(array: Any) -> str:
    """ "cpu" for a NumPy array, or those of all samples inside of vmap; "cuda" for a CuPy array."""
    if type(array) is np.ndarray:
        return "cpu"
    if isinstance(array, SimtArray):
        return "simt"
    return "cpu" if isinstance(array, _HOST) or hasattr(array, "levels") else "cuda"


_HOST = (np.ndarray, np.generic)


def beside(array: Any, other: Any) -> Any:
    """The array as one of the device of `other`, which NumPy forgets of some results."""
    if (type(array) is np.ndarray is type(other)) or not isinstance(other, np.ndarray):
        return array
    array = np.asanyarray(array)
    return (
        array.view(SimtArray) if type(other) is SimtArray and type(array) is np.ndarray else array
    )


def array_module(array: Any) -> Any:
    """NumPy or CuPy, whichever made the array."""
    return np if isinstance(array, _HOST) else load_cupy()


def to_device(array: Any, device: str) -> Any:
    """The array on the device, copied only if it lives elsewhere.

    A copy out of a captured step raises GraphError; one into it is made once, for all replays.
    """
    if device not in DEVICES:
        raise DeviceError(f"to: expected a device among {', '.join(DEVICES)}; got {device!r}")
    here = device_of(array)
    if here == device:
        return array
    if here == "cuda":
        capture.must_not_wait(f"to({device!r})")
        array = array.get()
    if device == "cuda":
        host = np.asarray(array)
        under_way = capture.thread.current
        return load_cupy().asarray(host) if under_way is None else under_way.constant(host)
    return array.copy().view(SimtArray if device == "simt" else np.ndarray)


def numbers_on(compute: Callable[[], Sequence[float]], like: Any) -> Any:
    """compute()'s numbers as float64 where `like` is, for a kernel to read.

    In a captured step they are computed anew before each replay.
    """
    if capture.thread.current is not None:
        return capture.thread.current.renewed(compute)
    return to_device(np.array(compute(), float64), device_of(like))


@cache
def load_cupy() -> Any:
    """CuPy, once it is seen that it, a GPU and the kernels are there; else DeviceError."""
    try:
        import cupy
    except ModuleNotFoundError:
        raise _unusable("CuPy is not installed; pip install 'minitorch-engine[cuda]'") from None
    except Exception as error:
        raise _unusable(f"CuPy does not load ({error}); install CuPy again") from error
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
        toolkit = runtime.runtimeGetVersion()
        capability = int(cupy.cuda.Device().compute_capability) if count else 0
    except Exception as error:
        raise _unusable(
            f"no GPU, no driver, or one older than CuPy's CUDA ({error}); `minitorch doctor` says "
            "what is found"
        ) from error
    if not count:
        raise _unusable("the driver finds no GPU; is one hidden by CUDA_VISIBLE_DEVICES?")
    if toolkit < OLDEST_CUDA:
        raise _unusable(
            f"expected CUDA {_version(OLDEST_CUDA)} or later; CuPy was built for "
            f"{_version(toolkit)}. Install cupy-cuda13x"
        )
    if capability < OLDEST_GPU:
        raise _unusable(
            f"expected a GPU of sm_{OLDEST_GPU} or later (Ampere, Hopper, ...); this one is "
            f"sm_{capability}. Use the device 'cpu'"
        )
    if find_spec("minitorch._cuda") is None:
        raise _unusable(
            "the kernels were not built; install minitorch again where nvcc and the driver are, "
            "with MT_CUDA=1 in the environment to be told what prevents it"
        )
    return cupy


OLDEST_CUDA = 12000
"""As CUDA's runtime counts, 1000 major + 10 minor: the first with C++20 and sm_90a."""
OLDEST_GPU = 80


def _unusable(why: str) -> DeviceError:
    return DeviceError(f"device 'cuda': {why}")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
