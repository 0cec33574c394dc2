"""The tape: what was computed, as the sweeps will ask for it.

Every recorded operation leaves a `Node`: which primitive, with what options, from which earlier
nodes (edges), and the arrays that its derivative rule asked to keep. Nodes point backwards only,
and never at the tensor they made, so there are no cycles and memory goes when the last name goes.
They are numbered as they are made, so descending number is a topological order.
"""

import itertools
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from minitorch import backend
from minitorch.backend import arithmetic
from minitorch.errors import DtypeError, GraphError, MinitorchError, ShapeError
from minitorch.modes import (
    Mode,
    thread,
)
from minitorch.tensor import Tensor, wrap

Saved = tuple[Any, list[int], int]
"""What the tape keeps of a tensor: its array, its version counter, and the version it had. (A plain
tuple: a class of its own would cost a tenth of an operation's overhead.)"""

_numbers = itertools.count()


class Node:
    """One recorded operation.

    primitive: whose `vjp` and `jvp` know the derivative.
    meta: the options of the call, such as dim.
    edges: for each input the Node that made it, the leaf Tensor itself, or None if no gradient
        goes there.
    signature: (shape, dtype) of each input; ((), None) for Python scalars.
    saved: position of the input (or OUT) -> what the rule asked to keep.
    freed: no sweep may come here any more; in the last step through here it is already true.
    levels: the vmaps of which the result holds all samples, see `minitorch.vmap`.
    remade: what makes the result anew where others would keep it, or None.
    """

    __slots__ = (
        "__weakref__",
        "edges",
        "extras",
        "freed",
        "hooks",
        "levels",
        "meta",
        "number",
        "out_dtype",
        "out_shape",
        "primitive",
        "remade",
        "retained",
        "saved",
        "signature",
        "where",
    )

    primitive: Any
    meta: dict[str, Any]
    edges: "list[Node | Tensor | None]"
    signature: list[tuple[tuple[int, ...], Any]]
    saved: dict[int, Any]
    extras: dict[str, Any] | None
    number: int
    hooks: list[Callable[[Tensor], Tensor | None]] | None
    retained: Any
    freed: bool
    out_shape: tuple[int, ...]
    out_dtype: np.dtype
    where: str | None
    levels: tuple[int, ...]
    remade: "Remade | None"

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name

    def __repr__(self) -> str:
        return f"<Node {self.number} {self.name} {self.shapes} -> {self.out_shape}>"

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the inputs."""
        return tuple(shape for shape, _ in self.signature)

    def input(self, position: int) -> Any:
        """The saved input as a tensor in its place on the tape (or the Python scalar)."""
        edge = self.edges[position]
        if isinstance(edge, Tensor):
            self._kept(position)
            return edge
        return self._tensor(position, edge)

    def array(self, position: int) -> Any:
        """The array of a saved input or of the result (or the Python scalar)."""
        saved = self.saved[position]
        if type(saved) is not tuple:
            return saved
        array, counter, version = saved
        if counter[0] != version:
            raise self._overwritten(position, saved)
        return array.recompute() if type(array) is Recomputed else array

    def out(self) -> Tensor:
        """The saved result as a tensor in its place on the tape."""
        return self._tensor(OUT, self)

    def extra(self, name: str) -> Any:
        """An array that the forward kernel left for the backward kernel; None if it left none."""
        return _present(self.extras.get(name))  # type: ignore[union-attr]

    def _tensor(self, position: int, maker: "Node | None") -> Any:
        saved = self._kept(position)
        if type(saved) is not tuple:
            return saved
        array, counter, version = saved
        out = wrap(_present(array))
        out._counter = counter
        out._made_at = version
        if maker is not None:
            out._node = maker
            out.requires_grad = True
        return out

    def _kept(self, position: int) -> Any:
        """What was saved, as it was then."""
        saved = self.saved[position]
        if type(saved) is tuple and saved[1][0] != saved[2]:
            raise self._overwritten(position, saved)
        return saved

    def _overwritten(self, position: int, saved: Saved) -> GraphError:
        _, counter, version = saved
        what, shape = (
            ("its result", self.out_shape)
            if position == OUT
            else (f"input {position}", self.shapes[position])
        )
        return GraphError(
            f"backward: {self.name} needs {what}, of shape {shape}, as it was at version "
            f"{version}, but it has since been changed in place (version {counter[0]})"
            f"{self.line()}. Write into a clone(), or use the out-of-place operation"
        )

    def line(self) -> str:
        """Where in the user's program this node was made, if anomaly mode recorded it."""
        return f"\n  computed at {self.where}" if self.where else ""

    def free(self) -> None:
        """Drop the saved arrays and the edges; a second sweep through here is an error."""
        self.freed = True
        self.saved, self.edges, self.extras = {}, [], None


OUT = -1
"""The position of the result in Node.saved."""


class Recomputed:
    """Stands in for a saved array, the one of this index in a Segment, until it is needed."""

    __slots__ = ("index", "segment")

    def __init__(self, segment: "Segment", index: int):
        self.segment = segment
        self.index = index

    def recompute(self) -> Any:
        return self.segment.array(self.index)


class Segment:
    """A part of the forward pass that runs again when what it computed is needed.

    Who would keep one of its arrays is given a ticket. The first that is presented has it run
    again, and the last frees what it left. given: the tensors that it holds for that, or None.
    """

    given: Sequence[Tensor] | None = None

    def __init__(self) -> None:
        self.tickets = self.left = 0
        self.arrays: Sequence[Any] | None = None

    def ticket(self, index: int) -> Recomputed:
        """What is kept in the place of an array."""
        self.tickets += 1
        return Recomputed(self, index)

    def array(self, index: int) -> Any:
        """The array of a ticket."""
        if self.arrays is None:
            self.arrays, self.left = self.run_again(), self.tickets
        array = self.arrays[index]
        self.left -= 1
        if self.left == 0:
            self.arrays = None
        return array

    def run_again(self) -> Sequence[Any]:
        """All its arrays."""
        raise NotImplementedError


class Remade(Segment):
    """The result of a node, computed again from what the node keeps: no one else need keep it.

    Of a norm, whose input is kept in any case: to normalise once more costs far less than the
    products that its result goes into, and a model keeps one activation less for each norm.
    """

    LEAST_BYTES = 1 << 22
    """Of smaller results there is nothing to gain: the operation would cost more than they do."""

    def __init__(self, node: Node, out: Tensor):
        super().__init__()
        self.node = weakref.ref(node)  # which holds this; whoever has a ticket holds the node
        self.made = weakref.ref(out.data)
        self.version = out._counter[0]

    def stands_for(self, x: Tensor) -> bool:
        """Whether x is the result as it was."""
        return self.made() is x.data and x._counter[0] == self.version

    def run_again(self) -> Sequence[Any]:
        node: Any = self.node()
        inputs = [node.array(position) for position in range(len(node.edges))]
        out, _ = arithmetic.copy().run(node.primitive.compute, inputs, node.meta)
        return [out]


def _present(array: Any) -> Any:
    """A saved array, computed again where another stands for it."""
    return array.recompute() if type(array) is Recomputed else array


class Unfused(Exception):
    """A fused kernel cannot take these arrays: the primitive's reference is computed instead."""


def levels(array: Any) -> tuple[int, ...]:
    """The vmaps of which the array holds all samples: none, for a plain array."""
    return () if isinstance(array, ndarray) else getattr(array, "levels", ())


def apply(primitive: Any, inputs: Sequence[Any], meta: dict[str, Any]) -> Tensor:
    """Compute primitive(*inputs, **meta) and record it if a gradient may be wanted.

    inputs: Tensors, or Python scalars where the primitive takes them. This is the one place
    through which every operation goes, and its cost is each operation's overhead.
    """
    mode = thread.mode
    if mode.observers:
        return _observed(primitive, inputs, meta)
    if mode.lower is not None and primitive.autocast:
        inputs = _cast(primitive, inputs, mode)
    if "cupy" in sys.modules:
        inputs = _together(inputs)
    arrays = []
    wanted, plain = False, True
    for x in inputs:
        if isinstance(x, Tensor):
            if x.requires_grad:
                wanted = True
                if x._node is not None and x._made_at != x._counter[0]:
                    raise _stale(primitive, x)
            x = x.data
            if type(x) is not ndarray or x.itemsize == 2:
                plain = False  # half precision, or not NumPy's: `compute` knows what to do
        arrays.append(x)
    run = arithmetic.copy().run
    try:
        if plain:
            array = run(primitive.forward, *arrays, **meta)
        else:
            array = run(primitive.compute, arrays, meta)
    except (ValueError, TypeError) as error:
        raise _misfit(primitive, arrays, error) from error
    except Unfused:
        return primitive.reference(*inputs, **meta)
    if primitive.saves_extras:
        array, extras = array
    else:
        extras = None
    if not plain or type(array) is not ndarray:
        array = _as_array(array, arrays)
    out = wrap(array)
    if primitive.may_view:
        _share_version(out, inputs)
    if mode.inference:
        out._counter = None
    elif wanted and mode.record and primitive.differentiable:
        _record(primitive, inputs, meta, out, extras, mode)
    if mode.anomaly:
        _check_nan(primitive, arrays, out)
    return out


def _as_array(result: Any, inputs: Sequence[Any]) -> Any:
    """A result as an array of the device of the inputs: NumPy makes numbers of single elements."""
    if not isinstance(result, ndarray) and not hasattr(result, "get"):
        result = np.asarray(result)
    if type(result) is ndarray and backend.SimtArray in map(type, inputs):
        return result.view(backend.SimtArray)
    return result


def _together(inputs: Sequence[Any]) -> Sequence[Any]:
    """The inputs, all on the GPU if one is: constants that a rule makes are in main memory."""
    devices = {x.device for x in inputs if isinstance(x, Tensor)}
    if len(devices) < 2 or "cuda" not in devices:
        return inputs
    return [x.to(device="cuda") if isinstance(x, Tensor) else x for x in inputs]


def computed(
    primitive: Any, inputs: Sequence[Any], meta: dict[str, Any], array: Any, extras: Any = None
) -> Tensor:
    """What apply(primitive, inputs, meta) returns, where its result is known already."""
    mode = thread.mode
    out = wrap(array)
    if mode.inference:
        out._counter = None
    elif mode.record and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        _record(primitive, inputs, meta, out, extras, mode)
    return out


def _observed(primitive: Any, inputs: Sequence[Any], meta: dict[str, Any]) -> Tensor:
    observers = thread.mode.observers
    thread.mode.observers = observers[:-1]
    try:
        return observers[-1].call(primitive, inputs, meta, lambda: apply(primitive, inputs, meta))
    finally:
        thread.mode.observers = observers


def _cast(primitive: Any, inputs: Sequence[Any], mode: Mode) -> list[Any]:
    """The inputs as autocast wants them: lowered for products, raised again for losses."""
    before, after = backend.float32, mode.lower
    if primitive.autocast == "raise":
        before, after = after, before
    return [
        x._in_half(after) if isinstance(x, Tensor) and x.data.dtype == before else x for x in inputs
    ]


def _misfit(
    primitive: Any, arrays: Sequence[Any], error: ValueError | TypeError
) -> ValueError | TypeError:
    """NumPy's complaint about shapes or dtypes as an error that names the operation."""
    if isinstance(error, MinitorchError):
        return error
    if isinstance(error, TypeError):
        dtypes = ", ".join(str(getattr(array, "dtype", array)) for array in arrays)
        return DtypeError(f"{primitive.name}: inputs of {dtypes} do not fit ({error})")
    shapes = ", ".join(str(getattr(array, "shape", ())) for array in arrays)
    return ShapeError(f"{primitive.name}: inputs of shapes {shapes} do not fit ({error})")


def _share_version(out: Tensor, inputs: Sequence[Any]) -> None:
    source = inputs[0]
    base = out.data.base
    while base is not None:
        if base is source.data or base is source.data.base:
            out._counter = source._counter
            out._is_view = True
            out._made_at = 0 if source._counter is None else source._counter[0]
            return
        base = getattr(base, "base", None)


def _record(
    primitive: Any,
    inputs: Sequence[Any],
    meta: dict[str, Any],
    out: Tensor,
    extras: Any,
    mode: Mode,
) -> None:
    edges: list[Any] = []
    needs = []
    signature: list[Any] = []
    for x in inputs:
        if isinstance(x, Tensor):
            need, data = x.requires_grad, x.data
            signature.append((data.shape, data.dtype))
            edges.append((x._node or x) if need else None)
        else:
            need = False
            signature.append(_SCALAR)
            edges.append(None)
        needs.append(need)
    array, keep = out.data, mode.keep
    node = Node()
    node.primitive = primitive
    node.meta = meta
    node.edges = edges
    node.signature = signature
    node.number = next(_numbers)
    node.hooks = None
    node.retained = None
    node.freed = False
    node.extras = extras
    node.out_shape = array.shape
    node.out_dtype = array.dtype
    node.levels = () if type(array) is ndarray else levels(array)
    node.where = None
    node.remade = None
    node.saved = saved = {}
    for position in primitive.saves[tuple(needs)]:
        x = out if position == OUT else inputs[position]
        saved[position] = _save(x, keep) if isinstance(x, Tensor) else x
    if extras is not None and keep is not None:
        node.extras = {name: keep(array) for name, array in extras.items()}
    if mode.anomaly:
        node.where = _user_line()
    if primitive.remakes and type(array) is ndarray and array.nbytes >= Remade.LEAST_BYTES:
        node.remade = Remade(node, out)
    out.requires_grad = True
    out._node = node


_SCALAR = ((), None)


def _save(x: Tensor, keep: Callable[[Any], Any] | None) -> Saved:
    counter = x._counter
    if counter is None:
        raise GraphError(
            "backward: a tensor made under inference_mode cannot be saved for a derivative; "
            "clone() it outside of inference_mode"
        )
    if keep is not None:
        return keep(x.data), counter, counter[0]
    maker = x._node
    if maker is not None and maker.remade is not None and maker.remade.stands_for(x):
        return maker.remade.ticket(0), counter, counter[0]
    return x.data, counter, counter[0]


def _stale(primitive: Any, x: Tensor) -> GraphError:
    return GraphError(
        f"{primitive.name}: an input of shape {x.shape}, computed by {x._node.name}, shares memory "
        "with a tensor that was changed in place after it was computed, so its tape no longer "
        "describes its values. Take the view again after the write, or write into a clone()"
    )


def _user_line() -> str:
    """The innermost line of the calling program outside of this package."""
    package = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(package):
            return f'File "{frame.filename}", line {frame.lineno}: {frame.line}'
    return ""


def _check_nan(primitive: Any, arrays: Sequence[Any], out: Tensor) -> None:
    if not has_nan(out.data) or any(has_nan(a) for a in arrays):
        return
    raise GraphError(
        f"anomaly: {primitive.name} made a NaN from inputs that had none\n  computed at "
        f"{_user_line()}"
    )


def has_nan(x: Any) -> bool:
    array = np.asarray(getattr(x, "array", x))  # inside of vmap: all samples
    return backend.is_float(array.dtype) and bool(np.isnan(array).any())
