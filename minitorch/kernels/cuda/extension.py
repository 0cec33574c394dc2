"""The CUDA kernels (csrc/cuda), on a GPU or in the emulator, by where a call's arrays are.

CuPy arrays go to minitorch._cuda, on CuPy's current stream; the emulated device's (`SimtArray`) to
minitorch._simt or, inside of `checked()`, to minitorch._simt_checked, which compares every access
to memory with all others.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np

from minitorch import capture
from minitorch.backend import SimtArray, array_module, beside, bfloat16, float16, float32, float64
from minitorch.errors import DeviceError, KernelError
from minitorch.kernels.table import register

FLOATS = frozenset({float32, float64, bfloat16, float16})
_CODES = {
    name: code
    for code, name in enumerate(
        ("float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool")
    )
}
_KernelT = TypeVar("_KernelT", bound=Callable[..., Any])
_emulator, _emulated_capability = "minitorch._simt", 90


def device_kernel(name: str) -> Callable[[_KernelT], _KernelT]:
    """Decorator: enter a function as the kernel `name` of the GPU and the emulator, if built."""

    def enter(function: _KernelT) -> _KernelT:
        half = (bfloat16, float16)
        if is_available("cuda"):
            register(name, "cuda", half=half)(function)
        if is_available("simt"):
            register(name, "simt", half=half)(_emulated(function))
        return function

    return enter


def _emulated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, that takes NumPy arrays for the emulated device's: MT_KERNELS=simt gives it."""

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        given = [*arguments, *options.values()]
        if any(isinstance(x, SimtArray) for x in _flat(given)):
            return function(*arguments, **options)
        moved = {key: _viewed(x, SimtArray) for key, x in options.items()}
        return _viewed(function(*[_viewed(x, SimtArray) for x in arguments], **moved), np.ndarray)

    return run


def _viewed(x: Any, kind: type) -> Any:
    if isinstance(x, np.ndarray):
        return x.view(kind)
    return type(x)(_viewed(item, kind) for item in x) if isinstance(x, list | tuple) else x


def call(name: str, *arguments: Any) -> None:
    """Run a compiled kernel on arrays, numbers, None, and lists of these; it writes into arrays."""
    first = next(x for x in _flat(arguments) if hasattr(x, "dtype"))
    emulated = isinstance(first, np.ndarray)  # SimtArray, or what NumPy made of one
    if emulated:
        module, stream = _load(_emulator), 0
    else:
        module, stream = _load("minitorch._cuda"), array_module(first).cuda.get_current_stream().ptr
    getattr(module, name)(stream, *[_described(x) for x in arguments])


def empty(like: Any, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Any:
    """A new array where `like` is, C-contiguous."""
    shape, dtype = like.shape if shape is None else shape, like.dtype if dtype is None else dtype
    if isinstance(like, SimtArray):
        return SimtArray(shape, dtype)
    return array_module(like).empty(shape, dtype)


def draw_shift(seed: int) -> Any:
    """What kernels add to the offset of a draw: None, or in a captured step one number's array."""
    return None if capture.thread.current is None else capture.thread.current.shift(seed)


def contiguous(x: Any) -> Any:
    """x, or a copy of it where its elements do not lie in row-major order."""
    return x if x.flags.c_contiguous else beside(array_module(x).ascontiguousarray(x), x)


@contextmanager
def checked(
    order: str = "forward", seed: int = 0, choices: Sequence[int] = (), capability: int = 90
) -> Iterator[None]:
    """Run the emulated kernels in the check build; raises KernelError for what it finds.

    order: in which threads that could all run do: "forward", "reversed" or "random" from seed.
    choices: whose turns come before that: the i-th turn of a block is that of the thread choices[i]
    of those that can run, modulo how many these are, and so are the first blocks chosen. Any list
    of natural numbers is a schedule; a shorter one, or one of smaller numbers, is simpler.
    capability: of the GPU that is emulated, by which some kernels choose how to go about it.
    """
    global _emulator, _emulated_capability
    module = check_build()
    module.clear_findings()
    module.set_schedule(order, seed, choices=list(choices), capability=capability)
    before = _emulator, _emulated_capability
    _emulator, _emulated_capability = "minitorch._simt_checked", capability
    try:
        yield
    finally:
        _emulator, _emulated_capability = before
    if findings := json.loads(module.findings()):
        schedule = f"{order}, seed {seed}" if order == "random" else order
        schedule += f" after {list(choices)}" if choices else ""
        raise KernelError(
            f"the emulator found ({schedule}):\n"
            + "\n".join(f"{f['file']}:{f['line']}: {f['kind']}: {f['message']}" for f in findings)
        )


def check_build() -> Any:
    """minitorch._simt_checked; raises DeviceError where it was not built."""
    return _load("minitorch._simt_checked")


@cache
def is_available(device: str) -> bool:
    """Whether the kernels of "cuda" or "simt" were built, and for "cuda" CuPy is there."""
    needed = ("minitorch._cuda", "cupy") if device == "cuda" else ("minitorch._simt",)
    return all(find_spec(module) is not None for module in needed)


@cache
def _load(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        needs = "nvcc" if name.endswith("_cuda") else "a C++20 compiler"
        raise DeviceError(
            f"the kernels of {name} are not there ({error}); install where there is {needs}"
        ) from None


def _flat(arguments: Any) -> Iterator[Any]:
    for x in arguments:
        if isinstance(x, list | tuple):
            yield from _flat(x)
        else:
            yield x


def _described(x: Any) -> Any:
    """An array as the extension takes it: address, dtype, shape, strides in elements."""
    if isinstance(x, list):
        return [_described(item) for item in x]
    if not hasattr(x, "dtype"):
        return x
    strides = tuple(stride // x.itemsize for stride in x.strides)
    return address(x), _CODES[str(x.dtype)], x.shape, strides


def address(x: Any) -> int:
    """Where an array's first element is."""
    return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr)


def capability(x: Any) -> int:
    """Of the device where x is: 80, 90, ..."""
    return _emulated_capability if isinstance(x, np.ndarray) else _capability_of(x.device.id)


@cache
def _capability_of(device: int) -> int:
    return int(import_module("cupy").cuda.Device(device).compute_capability)


@cache
def _multiprocessors_of(device: int) -> int:
    return int(import_module("cupy").cuda.Device(device).attributes["MultiProcessorCount"])


def multiprocessors(x: Any) -> int:
    """Of the device where x is: how many blocks, at least, run at once; the emulator's are 4."""
    return 4 if isinstance(x, np.ndarray) else _multiprocessors_of(x.device.id)
