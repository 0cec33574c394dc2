"""CuPy as the engine uses it, in NumPy: stands in for it where there is no GPU.

An array has a class of its own and lies in main memory, where the emulator's kernels find it. What
CuPy refuses is refused: to become a NumPy array unless by get(), and to meet one in a function or
an index. What it does not have is an AttributeError. So code for the GPU fails here in the places
where it would fail there; numbers, speed and asynchrony are another matter.

A stream that is captured computes nothing: what it is given goes into a graph, kernels and NumPy's
functions alike, and each launch of the graph does it all, in place. Asking for a value, sorting and
matrix products are errors meanwhile, as with CuPy, which waits for the first two and has no cuBLAS
in a capture.
"""

import itertools
import mmap
import operator
import os
import sys
import tempfile
import weakref
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from unittest import mock

import numpy as np

from minitorch import backend, kernels
from minitorch import cuda as graphs
from minitorch.kernels import table
from minitorch.kernels.cuda import extension

_METHODS = (
    "all any argmax argmin argpartition argsort astype clip copy cumprod cumsum diagonal dot max "
    "mean min nonzero partition prod ravel repeat reshape round searchsorted squeeze std sum "
    "swapaxes take trace transpose var view"
)
_HOST_METHODS = frozenset(_METHODS.split())
_METADATA = frozenset({"dtype", "flags", "itemsize", "nbytes", "ndim", "shape", "size", "strides"})


class ndarray:
    __array_priority__ = 100

    def __init__(self, host, base=None, memory=None):
        if memory is not None:  # a shape, a dtype, and where
            host, base = np.frombuffer(memory.memory.bytes, base).reshape(host), None
        self._host, self.base, self._memory = host, base, memory
        if (graph := _graph()) is not None:
            graph.keep.append(host)  # whose address a launch may have

    def __getattr__(self, name):
        if name in _METADATA:
            return getattr(self._host, name)
        if name in _HOST_METHODS:
            return lambda *args, **options: _call(getattr(self._host, name), args, options, self)
        raise AttributeError(f"cupy.ndarray has no {name!r}")

    @property
    def data(self):
        return SimpleNamespace(ptr=self._host.ctypes.data)

    @property
    def device(self):
        return SimpleNamespace(id=0)

    @property
    def T(self):
        return self.transpose()

    def get(self):
        _no_capture("get")
        return self._host.copy()

    def item(self):
        _no_capture("item")
        return self._host.item()

    def tolist(self):
        return self.get().tolist()

    def set(self, host, stream=None):
        _no_capture("set")
        np.copyto(self._host, host)

    def fill(self, value):
        value = _host(value)
        _queue(lambda: self._host.fill(value))

    def __getitem__(self, key):
        if isinstance(key, ndarray) and key.dtype == bool:
            _no_capture("an index by a mask")
        return _call(operator.getitem, (self, key), {}, self)

    def __setitem__(self, key, value):
        key, value = _host(key), _host(value)
        _queue(lambda: operator.setitem(self._host, key, value))

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if not hasattr(sys.modules[__name__], ufunc.__name__):
            return NotImplemented
        if method in ("reduce", "accumulate") and ufunc not in (np.add, np.multiply):
            raise NotImplementedError(f"`cupy_{ufunc.__name__}.{method}` is not supported yet")
        return _call(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function, types, args, options):
        name = function.__name__
        if any(kind not in (ndarray, np.ndarray) for kind in types) or name in _MISSING:
            return NotImplemented
        return _call(function, args, options)

    def __bool__(self):
        return bool(self.item())

    def __int__(self):
        return int(self.item())

    def __float__(self):
        return float(self.item())

    def __index__(self):
        return self.item().__index__()


def _operator(name):
    def run(self, *others):
        if any(isinstance(x, np.ndarray) and x.ndim for x in others):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if name.startswith("__i") and name not in ("__invert__",):
            values = _host(others)
            _queue(lambda: getattr(self._host, name)(*values))
            return self
        return _call(getattr(self._host, name), others, {}, self)

    return run


_OPERATORS = (
    "add sub mul truediv floordiv mod pow radd rsub rmul rtruediv rfloordiv rmod rpow matmul "
    "rmatmul neg pos abs invert and or xor rand ror rxor lshift rshift eq ne lt le gt ge "
    "iadd isub imul itruediv ifloordiv ipow iand ior ixor"
)
for _name in _OPERATORS.split():
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
ndarray.__hash__ = None

_MISSING = frozenset({"array2string", "piecewise", "fromiter", "nested_iters"})


def _host(x):
    """What NumPy is given for an argument; a NumPy array is not taken."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(x, list | tuple):
        return type(x)(map(_host, x))
    return x


def _device(x, source=None):
    """What NumPy returned, numbers as arrays of no dimensions; a view knows whose it is."""
    if isinstance(x, list | tuple):
        return type(x)(_device(item, source) for item in x)
    if not isinstance(x, np.ndarray | np.generic):
        return x
    host = np.asarray(x)
    shares = source is not None and np.may_share_memory(host, source._host)
    return ndarray(host, (source if source.base is None else source.base) if shares else None)


def _call(function, args, options, source=None):
    """What the function returns; in a capture an array that each launch of the graph fills."""
    name, graph = getattr(function, "__name__", ""), _graph()
    if name.strip("_") in _WAITING:
        _no_capture(name)
    if name.strip("_") in _CUBLAS and graph is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is unsupported")
    out, given = options.get("out"), _host(tuple(args))
    named = {key: _host(value) for key, value in options.items()}
    if out is not None:
        _queue(lambda: function(*given, **named))
        return out[0] if isinstance(out, tuple) else out
    result = function(*given, **named)
    if function is np.diagonal:
        result.flags.writeable = True  # as CuPy's is
    if source is None:
        source = next((x for x in args if isinstance(x, ndarray)), None)
    found = _device(result, source)
    if graph is not None:
        graph.fill(found, lambda: function(*given, **named))
    return found


_WAITING = frozenset(
    ["argpartition", "argsort", "flatnonzero", "lexsort", "nonzero", "partition", "sort", "unique"]
)
_CUBLAS = frozenset(["dot", "einsum", "inner", "matmul", "rmatmul", "tensordot", "vdot"])


def asarray(x, dtype=None):
    return x if isinstance(x, ndarray) and dtype in (None, x.dtype) else array(x, dtype)


def array(x, dtype=None, copy=True):
    if isinstance(x, ndarray):
        return x.astype(x.dtype if dtype is None else dtype)
    _no_capture("array of what is in main memory")
    return ndarray(np.array(x, dtype))


def empty(shape, dtype=float):
    return ndarray(np.zeros(shape, dtype))


def asnumpy(x):
    return x.get()


def ascontiguousarray(x, dtype=None):
    return _call(np.ascontiguousarray, (x, dtype), {}, x)


def __getattr__(name):
    function = getattr(np, name, None)
    if not callable(function) or name in _MISSING:
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    return lambda *args, **options: _call(function, args, options)


class Stream:
    """A queue that does everything at once, unless it is captured."""

    current: ClassVar[list["Stream"]] = []
    _numbers = itertools.count(1)

    def __init__(self, null=False, non_blocking=False):
        self.ptr = 0 if null else next(self._numbers)
        self.graph = None

    def __enter__(self):
        Stream.current.append(self)
        return self

    def __exit__(self, *_):
        Stream.current.pop()

    def synchronize(self):
        if self.graph is not None:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: synchronize")

    def record(self):
        return object()

    def wait_event(self, event):
        pass

    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default stream")
        self.graph = Graph()

    def end_capture(self):
        graph, self.graph = self.graph, None
        return graph

    def is_capturing(self):
        return self.graph is not None


class Graph:
    """What a captured stream was given, to be done at each launch."""

    def __init__(self):
        self.calls, self.keep, self.launches = [], [], 0

    def fill(self, found, compute):
        """Have compute() fill the array that was found, or several, unless it is a view."""
        if isinstance(found, ndarray) and found.base is None:
            self.calls.append(lambda: np.copyto(found._host, compute()))
        elif isinstance(found, list | tuple):
            for i, part in enumerate(found):
                self.fill(part, lambda i=i: compute()[i])

    def launch(self, stream=None):
        self.launches += 1
        with np.errstate(all="ignore"):
            for call in self.calls:
                call()


def get_current_stream():
    return Stream.current[-1] if Stream.current else Stream.null


def _graph():
    """That of the current stream, while it is captured."""
    return get_current_stream().graph


def _queue(call):
    if (graph := _graph()) is None:
        call()
    else:
        graph.calls.append(call)


def _no_capture(what):
    if _graph() is not None:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")


class Extension:
    """A module of kernels, launched on the current stream."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        kernel = getattr(self.module, name)

        def launch(stream, *arguments):
            assert stream == get_current_stream().ptr
            _queue(lambda: kernel(0, *arguments))

        return launch


Stream.null = Stream(null=True)


class MemoryPool:
    def malloc(self, size):
        raise NotImplementedError("arrays of the stand-in have NumPy's memory")

    def used_bytes(self):
        return 0

    def free_all_blocks(self):
        pass


class Memory:
    """Of the driver's: a file, which other processes can map; gone when nobody holds it here."""

    of: ClassVar[dict[int, "Memory"]] = {}
    misused: ClassVar[list[str]] = []
    """What freed memory that others had open."""

    def __init__(self, size):
        file, self.path = tempfile.mkstemp(prefix="cupy_")
        os.truncate(file, size)
        self.bytes = mmap.mmap(file, size)
        os.close(file)
        self.ptr = _address(self.bytes)
        self.of[self.ptr] = weakref.proxy(self)
        self.end = weakref.finalize(self, self.free, self.path)

    @classmethod
    def free(cls, path):
        cls.misused += [str(user) for user in Path(path).parent.glob(Path(path).name + ".*")]
        os.unlink(path)


class UnownedMemory:
    """What a handle was opened to."""

    def __init__(self, address, size, owner):
        self.bytes, self.ptr = _opened[address][0], address


class _Runtime(SimpleNamespace):
    """Handles as CUDA has them: 64 bytes, which another process alone may open, until it closes."""

    class CUDARuntimeError(RuntimeError):
        pass

    @staticmethod
    def ipcGetMemHandle(address):
        return Memory.of[address].path.encode().ljust(64, b"\0")

    @classmethod
    def ipcOpenMemHandle(cls, handle):
        path = handle.rstrip(b"\0").decode()
        if not os.path.exists(path) or any(path == own.path for own in Memory.of.values()):
            raise cls.CUDARuntimeError("cudaErrorInvalidValue: invalid argument")
        with open(path, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        note = f"{path}.{os.getpid()}"
        Path(note).touch()
        _opened[_address(mapped)] = mapped, note
        return _address(mapped)

    @staticmethod
    def ipcCloseMemHandle(address):
        os.unlink(_opened.pop(address)[1])


_opened: dict[int, tuple[mmap.mmap, str]] = {}


def _address(mapped):
    return np.frombuffer(mapped, np.uint8).ctypes.data


@contextmanager
def _using_allocator(malloc):
    yield


def get_default_memory_pool():
    return MemoryPool()


cuda = SimpleNamespace(
    using_allocator=_using_allocator,
    Stream=Stream,
    Graph=Graph,
    MemoryPool=MemoryPool,
    get_current_stream=get_current_stream,
    Device=lambda *_: SimpleNamespace(
        compute_capability="90",
        attributes={"MultiProcessorCount": 4},
        synchronize=lambda: None,
    ),
    Memory=Memory,
    UnownedMemory=UnownedMemory,
    MemoryPointer=lambda memory, offset: SimpleNamespace(memory=memory, ptr=memory.ptr + offset),
    runtime=_Runtime(
        getDeviceCount=lambda: 1,
        runtimeGetVersion=lambda: 13000,
        streamCaptureModeThreadLocal=1,
    ),
)


@contextmanager
def installed():
    """In the block the device "cuda" is made of these arrays and the emulator's kernels."""
    own, load = sys.modules[__name__], mock.Mock(return_value=sys.modules[__name__])
    with ExitStack() as stack:
        _put(stack, sys.modules, "cupy", own)
        _put(stack, sys.modules, "minitorch._cuda", Extension(import_module("minitorch._simt")))
        for module in (backend, graphs):
            stack.enter_context(mock.patch.object(module, "load_cupy", load))
        for name in kernels.available():
            if (emulated := kernels.implementations(name).get("simt")) is not None:
                kernel = emulated.__wrapped__
                _put(stack, table._table[name], "cuda", kernel)
                _put(stack, table._half, kernel, table._half[emulated])
        _forget()
        yield own
    _forget()


def _put(stack, mapping, key, value):
    """The value under the key until the stack unwinds."""
    if key in mapping:
        stack.callback(mapping.__setitem__, key, mapping[key])
    else:
        stack.callback(mapping.pop, key)
    mapping[key] = value


def _forget():
    extension._load.cache_clear()
    kernels.lookup.cache_clear()
