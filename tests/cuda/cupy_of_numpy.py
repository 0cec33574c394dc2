"""CuPy as the engine uses it, in NumPy: stands in for it where there is no GPU.

An array has a class of its own and lies in main memory, where the emulator's kernels find it. What
CuPy refuses is refused: to become a NumPy array unless by get(), and to meet one in a function or
an index. What it does not have is an AttributeError. So code for the GPU fails here in the places
where it would fail there; numbers, speed and asynchrony are another matter.
"""

import itertools
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

_METHODS = (
    "all any argmax argmin argpartition argsort astype clip copy cumprod cumsum diagonal dot max "
    "mean min nonzero partition prod ravel repeat reshape round searchsorted squeeze std sum "
    "swapaxes take trace transpose var view"
)
_HOST_METHODS = frozenset(_METHODS.split())
_METADATA = frozenset({"dtype", "flags", "itemsize", "nbytes", "ndim", "shape", "size", "strides"})


class ndarray:
    __array_priority__ = 100

    def __init__(self, host, base=None):
        self._host, self.base = host, base

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

    def fill(self, value):
        self._host.fill(_host(value))

    def __getitem__(self, key):
        return _device(self._host[_host(key)], self)

    def __setitem__(self, key, value):
        self._host[_host(key)] = _host(value)

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
        result = _call(getattr(self._host, name), others, {})
        return self if name.startswith("__i") and name not in ("__invert__",) else result

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
    out = options.get("out")
    result = function(*_host(args), **{key: _host(value) for key, value in options.items()})
    if out is not None:
        return out[0] if isinstance(out, tuple) else out
    if function is np.diagonal:
        result.flags.writeable = True  # as CuPy's is
    if source is None:
        source = next((x for x in args if isinstance(x, ndarray)), None)
    return _device(result, source)


def asarray(x, dtype=None):
    return x if isinstance(x, ndarray) and dtype in (None, x.dtype) else array(x, dtype)


def array(x, dtype=None, copy=True):
    return ndarray(np.array(x._host if isinstance(x, ndarray) else x, dtype))


def asnumpy(x):
    return x.get()


def ascontiguousarray(x, dtype=None):
    return _device(np.ascontiguousarray(x._host, dtype), x)


def __getattr__(name):
    function = getattr(np, name, None)
    if not callable(function) or name in _MISSING:
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    return lambda *args, **options: _call(function, args, options)


class Stream:
    """Records nothing: begins and ends a capture, in which values cannot be asked for."""

    current: ClassVar[list["Stream"]] = []
    _numbers = itertools.count(1)

    def __init__(self, null=False, non_blocking=False):
        self.ptr = 0 if null else next(self._numbers)
        self.capturing = False

    def __enter__(self):
        Stream.current.append(self)
        return self

    def __exit__(self, *_):
        Stream.current.pop()

    def synchronize(self):
        _no_capture("synchronize")

    def wait_event(self, event):
        pass

    def begin_capture(self, mode=None):
        self.capturing = True

    def end_capture(self):
        self.capturing = False
        return Graph()

    def is_capturing(self):
        return self.capturing


class Graph:
    def __init__(self):
        self.launches = 0

    def launch(self, stream=None):
        self.launches += 1


def get_current_stream():
    return Stream.current[-1] if Stream.current else Stream.null


def _no_capture(what):
    if get_current_stream().capturing:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")


Stream.null = Stream(null=True)


class MemoryPool:
    def used_bytes(self):
        return 0

    def free_all_blocks(self):
        pass


cuda = SimpleNamespace(
    Stream=Stream,
    Graph=Graph,
    MemoryPool=MemoryPool,
    get_current_stream=get_current_stream,
    Device=lambda *_: SimpleNamespace(compute_capability="90", synchronize=lambda: None),
    runtime=SimpleNamespace(
        getDeviceCount=lambda: 1,
        runtimeGetVersion=lambda: 13000,
        streamCaptureModeThreadLocal=1,
    ),
)
