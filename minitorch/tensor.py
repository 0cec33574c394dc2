"""Tensor: an array, and its place on the tape.

This file holds what a tensor is: its data, its metadata, how it is made, printed and converted.
What can be done with one is attached to the class where it is defined, by the decorator `method`:
the sweeps over the tape in autograd.py, the operations in ops/. So this file imports none of them,
and each operation stands in one place.

Two fields serve the tape's safety. `_counter` is a list of one integer, shared by all tensors that
share memory, and counts writes in place. `_made_at` is its value when this tensor was computed: if
they differ, somebody has since written into the memory through another name, and the tape of this
tensor no longer describes its values.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from minitorch import backend, capture
from minitorch.errors import DtypeError, GraphError, ShapeError

if TYPE_CHECKING:
    from minitorch._methods import Methods
else:
    Methods = object

F = TypeVar("F", bound=Callable[..., Any])


class Tensor(Methods):
    """An n-dimensional array that can record what is computed from it.

    data: an array (shared, not copied), a Tensor, a number or nested lists of numbers.
    dtype: the element type; without it arrays keep theirs and Python floats become float32.
    requires_grad: record operations, so that `backward` can fill `grad`; floating dtypes only.

    `minitorch.tensor(data)` is the same with a copy. In PyTorch: torch.Tensor.
    """

    __slots__ = (
        "__weakref__",
        "_counter",
        "_hooks",
        "_is_view",
        "_lowered",
        "_made_at",
        "_node",
        "data",
        "grad",
        "requires_grad",
    )
    __array_priority__ = 100  # numpy_array * tensor calls Tensor.__rmul__
    __array_ufunc__ = None

    data: Any
    grad: "Tensor | None"
    requires_grad: bool
    _node: Any
    _counter: Any
    _made_at: int
    _hooks: list[Any] | None
    _is_view: bool
    _lowered: Any  # of a parameter: a copy in half precision, see ops/conversion.py; else not set

    def __init__(self, data: Any, dtype: Any = None, requires_grad: bool = False):
        self.data = _as_array(data, dtype)
        self.grad = None
        self.requires_grad = False
        self._node = None
        self._counter = [0]
        self._made_at = 0
        self._hooks = None
        self._is_view = False
        if requires_grad:
            self.requires_grad_()

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each dimension."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.data.ndim

    @property
    def dtype(self) -> np.dtype:
        """The element type, a NumPy dtype object."""
        return self.data.dtype

    @property
    def device(self) -> str:
        """ "cpu", "cuda" or "simt"."""
        return backend.device_of(self.data)

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor: `backward` fills `grad` of leaves."""
        return self._node is None

    @property
    def grad_fn(self) -> Any:
        """The tape's node that made this tensor, or None for a leaf."""
        return self._node

    def dim(self) -> int:
        """The number of dimensions."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the length of one dimension."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """The number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    def element_size(self) -> int:
        """Bytes per element."""
        return self.dtype.itemsize

    def is_floating_point(self) -> bool:
        """Whether the dtype can carry gradients."""
        return backend.is_float(self.dtype)

    def is_contiguous(self) -> bool:
        """Whether elements lie in memory in C order without gaps."""
        return self.data.flags.c_contiguous

    def stride(self) -> tuple[int, ...]:
        """Elements to step over to move by one in each dimension."""
        return tuple(step // self.dtype.itemsize for step in self.data.strides)

    def data_ptr(self) -> int:
        """The address of the first element."""
        return self.data.data.ptr if self.device == "cuda" else self.data.ctypes.data

    def requires_grad_(self, requires_grad: bool = True) -> "Tensor":
        """Switch recording for this leaf, in place; returns it."""
        if requires_grad and not backend.is_float(self.dtype):
            raise DtypeError(
                f"requires_grad: only floating tensors have gradients; this one is {self.dtype}. "
                "Convert it with .float() or .double() first"
            )
        if requires_grad and self._counter is None:
            raise GraphError(
                "requires_grad: this tensor was made under inference_mode and cannot join a tape; "
                "clone() it outside"
            )
        if not requires_grad and self._node is not None:
            raise GraphError(
                "requires_grad_(False): only a leaf can stop recording; use detach() for a tensor "
                f"computed by {self._node.name}"
            )
        self.requires_grad = requires_grad
        return self

    def detach(self) -> "Tensor":
        """The same memory without a tape; a write in place through either is seen by both."""
        out = wrap(self.data)
        out._counter = self._counter
        return out

    def bump_version(self) -> None:
        """Tell the tape that the data was written in place."""
        if self._counter is not None:
            self._counter[0] += 1
            self._made_at = self._counter[0]

    @property
    def version(self) -> int:
        """How often the memory of this tensor was written in place."""
        return 0 if self._counter is None else self._counter[0]

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array that shares memory (on the CPU)."""
        self._look("numpy")
        if self.requires_grad:
            raise GraphError("numpy: this tensor is on a tape; call detach().numpy()")
        return np.asanyarray(backend.to_device(self.data, "cpu"))

    def _look(self, operation: str) -> None:
        """Called where a value is asked for, which a captured step does not have."""
        if capture.thread.current is not None and self.device != "cpu":
            capture.must_not_wait(operation)

    def item(self) -> Any:
        """The Python number in a tensor of one element."""
        if self.numel() != 1:
            raise ShapeError(f"item: expected one element; got shape {self.shape}")
        self._look("item")
        return self.data.item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        self._look("tolist")
        return self.data.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        if self.requires_grad:
            raise GraphError("__dlpack__: this tensor is on a tape; call detach() first")
        if self.dtype == backend.bfloat16:
            raise DtypeError("__dlpack__: NumPy cannot hand out bfloat16; call float() first")
        array = self.data
        if any(step < 0 for step in array.strides):
            if options.get("copy") is False:
                raise BufferError("__dlpack__: negative strides need a copy; call contiguous()")
            array = array.copy()  # other libraries have no negative strides, and may abort
        return array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len: a tensor of no dimensions has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator["Tensor"]:
        if not self.shape:
            raise ShapeError("iter: a tensor of no dimensions cannot be iterated over")
        return (self[i] for i in range(self.shape[0]))

    def __bool__(self) -> bool:
        if self.numel() != 1:
            raise ShapeError(
                f"bool: the truth of a tensor of shape {self.shape} is ambiguous; use .any() or "
                ".all()"
            )
        self._look("bool")
        return bool(self.data.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if backend.is_float(self.dtype):
            raise DtypeError(f"index: expected an integer tensor; got {self.dtype}")
        return int(self.item())

    def __hash__(self) -> int:
        return id(self)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __repr__(self) -> str:
        self._look("print")
        values = np.array2string(
            backend.to_device(self.data, "cpu"),
            separator=", ",
            prefix="tensor(",
            precision=4,
            threshold=1000,
        )
        notes = [values]
        if 0 in self.shape:
            notes.append(f"shape={self.shape}")
        if self.dtype not in (backend.DEFAULT_FLOAT, backend.int64, backend.bool):
            notes.append(f"dtype={self.dtype}")
        if self.device != "cpu":
            notes.append(f"device={self.device!r}")
        if self._node is not None:
            notes.append(f"grad_fn=<{self._node.name}>")
        elif self.requires_grad:
            notes.append("requires_grad=True")
        return f"tensor({', '.join(notes)})"

    def __copy__(self) -> "Tensor":
        out = wrap(self.data, type(self))
        out._counter = self._counter
        out.requires_grad = self.requires_grad
        out._node, out._made_at = self._node, self._made_at
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tensor":
        if self._node is not None:
            raise GraphError(
                f"deepcopy: only leaves can be copied whole; this tensor was computed by "
                f"{self._node.name}. Use detach().clone()"
            )
        out = wrap(self.data.copy(), type(self))
        memo[id(self)] = out
        out.requires_grad = self.requires_grad
        if self.grad is not None:
            out.grad = self.grad.__deepcopy__(memo)
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "pickle: tensors are not pickled, since loading a pickle runs code from the file; "
            "use minitorch.io.save_safetensors(path, {'name': tensor})"
        )


_new = object.__new__


def wrap(array: Any, kind: type[Tensor] = Tensor) -> Tensor:
    """A Tensor (or a subclass) around what is known to be an array: the fast constructor."""
    out = _new(kind)
    out.data = array
    out.grad = None
    out.requires_grad = False
    out._node = None
    out._counter = [0]
    out._made_at = 0
    out._hooks = None
    out._is_view = False
    return out


def tensor(data: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A new leaf tensor holding a copy of data (numbers, nested lists, an array or a Tensor)."""
    array = _as_array(data, dtype)
    source = data.data if isinstance(data, Tensor) else data
    if not isinstance(source, (list, tuple)) and np.may_share_memory(array, np.asarray(source)):
        array = array.copy()
    return Tensor(array, requires_grad=requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor that shares memory with a NumPy array."""
    if not isinstance(array, np.ndarray):
        raise DtypeError(f"from_numpy: expected a numpy.ndarray; got {type(array).__name__}")
    return Tensor(array)


def from_dlpack(source: Any) -> Tensor:
    """A tensor that shares memory with any CPU array that speaks DLPack, but for bfloat16."""
    if not hasattr(source, "__dlpack__"):
        raise DtypeError(
            "from_dlpack: expected an array with a method __dlpack__; got "
            f"{type(source).__name__}. Use minitorch.tensor(...)"
        )
    try:
        return Tensor(np.from_dlpack(source))
    except RuntimeError as error:
        kind = f"{getattr(source, 'dtype', '')} on {getattr(source, 'device', 'its device')}"
        raise DtypeError(
            f"from_dlpack: NumPy cannot take {kind} ({error}); convert it before, such as to "
            "float32 in main memory"
        ) from None


def _as_array(data: Any, dtype: Any) -> Any:
    if isinstance(data, Tensor):
        data = data.data
    if dtype is None and type(data) is np.ndarray:
        backend.as_dtype(data.dtype)  # raises if there are no tensors of it
        return data
    wanted = None if dtype is None else backend.as_dtype(dtype)
    if not hasattr(data, "__array__") and not hasattr(data, "__dlpack__"):
        data, python = _from_python(data), True
    else:
        python = False
    if isinstance(data, np.generic) or not hasattr(data, "ndim"):
        data = np.asarray(data)
    if wanted is None:
        wanted = backend.DEFAULT_FLOAT if python and data.dtype == np.float64 else data.dtype
    return backend.cast(data, backend.as_dtype(wanted))


def _from_python(data: Any) -> np.ndarray:
    try:
        array = np.array(_unwrap_nested(data))
    except ValueError as error:
        raise ShapeError(f"tensor: nested lists must be rectangular ({error})") from None
    if array.size == 0 and array.dtype == np.float64:
        return array
    if array.dtype.kind not in "fiub":
        raise DtypeError(
            f"tensor: expected numbers or nested lists of numbers; got {type(data).__name__} "
            f"of {array.dtype}"
        )
    return array


def _unwrap_nested(data: Any) -> Any:
    if isinstance(data, (list, tuple)):
        return [_unwrap_nested(item) for item in data]
    return data.detach().numpy() if isinstance(data, Tensor) else data


_attached: dict[str, Callable[..., Any]] = {}


def attached() -> dict[str, Callable[..., Any]]:
    """The functions that `method` and `method_as` made methods, by name, operators left out."""
    return {name: f for name, f in _attached.items() if not name.startswith("_")}


def method(function: F) -> F:
    """Make a function of a tensor also a method of Tensor, under the same name."""
    return method_as(function.__name__)(function)


def method_as(*names: str) -> Callable[[F], F]:
    """Make a function a method of Tensor under other names, such as "__add__"."""

    def attach(function: F) -> F:
        for name in names:
            setattr(Tensor, name, function)
            _attached[name] = function
        return function

    return attach
