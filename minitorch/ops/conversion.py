"""The same values in other memory, on another device, or in another dtype: linear, J = I."""

from functools import partial
from typing import Any

import numpy as np

from minitorch import backend, capture
from minitorch.ops.primitive import linear
from minitorch.ops.promotion import cast
from minitorch.ops.samples import real, sample, unary
from minitorch.tape import computed, levels
from minitorch.tensor import Tensor, method, method_as

alias = linear(
    "alias",
    lambda x: x.view(),
    lambda grad: grad,
    formula="x",
    samples=unary(real),
    may_view=True,
    moves_data=True,
    doc="The same memory as a new node of the tape.",
)
method(alias)

clone = linear(
    "clone",
    lambda x: x.copy(order="C"),
    lambda grad: grad,
    formula="x",
    samples=unary(real),
    moves_data=True,
    doc="A copy in memory of its own.",
)
method(clone)


def _converted(x: Any, *, dtype: np.dtype) -> Any:
    if levels(x) or (isinstance(x, np.ndarray) and x.size < _SOME):
        return x.astype(dtype)
    return cast(x, dtype)


_SOME = 1 << 10
"""Elements from which a kernel call costs less than NumPy's loop over bfloat16."""

_cast = linear(
    "cast",
    _converted,
    lambda grad: grad,
    formula=r"\operatorname{cast}(x)",
    samples=lambda: [sample(real(3, 4), dtype=np.dtype(np.float64))],
    moves_data=True,
)
_cast.allocates = _cast.converts = True


@method
def to(x: Tensor, *target: Any, dtype: Any = None, device: str | None = None) -> Tensor:
    """The tensor in another dtype or on another device; itself where nothing changes.

    to("cuda"), to(minitorch.float64), to("bfloat16"), to(dtype=..., device=...), to(other). The
    gradient is cast back; integers and bool have none.
    """
    for item in target:
        if isinstance(item, Tensor):
            dtype, device = item.dtype, item.device
        elif isinstance(item, str) and item in backend.DEVICES:
            device = item
        else:
            dtype = item
    if device is not None and device != x.device:
        meta = {"device": device, "source": x.device}
        x = computed(_move, [x], meta, backend.to_device(x.data, device))
    if dtype is None or x.data.dtype == (wanted := backend.as_dtype(dtype)):
        return x
    if x.requires_grad and not backend.is_float(wanted):
        x = x.detach()
    return _cast(x, dtype=wanted)


class LoweredCopy:
    """A parameter in half precision: made for autocast at its first use, good until it changes.

    array: the copy. source, version: the parameter's array, and its version, that array is rounded
    from. counter: the version counter of array, which whoever holds the copy on a tape shares.
    """

    __slots__ = ("array", "counter", "source", "version")

    def __init__(self, x: Tensor, dtype: np.dtype):
        self.array = _converted(x.data, dtype=dtype)
        self.counter = [0]
        self.source, self.version = x.data, x.version

    def rounds(self, x: Tensor) -> bool:
        """Whether the copy is that of x as it is now."""
        return self.source is x.data and self.version == x.version

    def written(self, x: Tensor) -> None:
        """The array was filled again with what x is now: a tape that holds it as it was is void."""
        self.version = x.version
        self.counter[0] += 1

    def follow(self, x: Tensor) -> None:
        """Be the copy of x, which may have been written since: a captured step reads this array."""
        if not self.rounds(x):
            self.array[...] = _converted(x.data, dtype=self.array.dtype)
            self.written(x)
        x._lowered = self


def lowered_copy(x: Tensor) -> LoweredCopy | None:
    """The copy of a parameter, if there is one and it is good."""
    kept = getattr(x, "_lowered", None)
    return kept if kept is not None and kept.rounds(x) else None


@method_as("_in_half")
def _in_half(x: Tensor, dtype: Any) -> Tensor:
    """x.to(dtype) for autocast. Of a parameter the copy is kept, so that the next use finds it.

    Optimizers write it along with the parameter: in training no step casts its weights.
    """
    if x._node is not None or not x.requires_grad or levels(x.data):
        return x.to(dtype)
    kept = lowered_copy(x)
    if kept is None or kept.array.dtype != dtype:
        kept = x._lowered = LoweredCopy(x, dtype)
    if capture.thread.current is not None:
        capture.thread.current.before_replay(partial(kept.follow, x))
    out = computed(_cast, [x], {"dtype": dtype}, kept.array)
    if out._counter is not None:
        out._counter, out._made_at = kept.counter, kept.counter[0]
    return out


_move = linear(
    "move",
    lambda x, *, device, source: backend.to_device(x, device),
    lambda grad, source: to(grad, source),
    formula="x",
    samples=lambda: [sample(real(3, 4), device="cpu", source="cpu")],
    moves_data=True,
)


def _converter(name: str, dtype: np.dtype) -> None:
    def convert(x: Tensor) -> Tensor:
        return to(x, dtype)

    convert.__doc__ = f"The tensor as {dtype}."
    method_as(name)(convert)


for _name, _dtype in {
    "float": backend.float32,
    "double": backend.float64,
    "half": backend.float16,
    "bfloat16": backend.bfloat16,
    "long": backend.int64,
    "int": backend.int32,
    "bool": backend.bool,
}.items():
    _converter(_name, _dtype)


@method
def type_as(x: Tensor, other: Tensor) -> Tensor:
    """The tensor in the dtype of other."""
    return to(x, other.dtype)


@method
def cpu(x: Tensor) -> Tensor:
    """The tensor in main memory."""
    return to(x, "cpu")


@method
def contiguous(x: Tensor) -> Tensor:
    """The tensor itself if its elements lie in C order without gaps, else a copy that does."""
    return x if x.is_contiguous() else clone(x)
