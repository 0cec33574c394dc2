"""The tape: what was computed, and the sweep that turns it into gradients.

Every recorded operation leaves a `Node`: which primitive, with what options, from which earlier
nodes (edges), and the arrays that its derivative rule asked to keep. Nodes point backwards only,
and never at the tensor they made, so there are no cycles and memory goes when the last name goes.

The sweep (`backward`, `grad`) is the vector chain rule from the outside in. For y = f_n(...f_1(x))
it computes (((v J_n) J_{n-1}) ... J_1): a row vector times one Jacobian after another, each product
by the rule of its primitive. Nodes are numbered as they are made, so descending number is a
topological order: no recursion, no search. Where a value was used twice its gradients add up.

Rules are written in Tensor operations. With create_graph they are recorded like any others, and
the gradient can be differentiated again.
"""

import functools
import itertools
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitorch import backend, kernels
from minitorch.backend import arithmetic
from minitorch.errors import DtypeError, GraphError, MinitorchError, ShapeError
from minitorch.modes import (
    Mode,
    set_grad_enabled,
    thread,
)
from minitorch.tensor import Tensor, method, wrap

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
            self._check(self.saved[position], position)
            return edge
        return self._unpack(position, edge)

    def out(self) -> Tensor:
        """The saved result as a tensor in its place on the tape."""
        return self._unpack(OUT, self)

    def extra(self, name: str) -> Any:
        """An array that the forward kernel left for the backward kernel; None if it left none."""
        array = self.extras.get(name)  # type: ignore[union-attr]
        return array.recompute() if isinstance(array, Recomputed) else array

    def _unpack(self, position: int, maker: "Node | None") -> Any:
        saved = self.saved[position]
        if not isinstance(saved, tuple):
            return saved
        self._check(saved, position)
        array, counter, version = saved
        out = wrap(array.recompute() if isinstance(array, Recomputed) else array)
        out._counter = counter
        out._made_at = version
        if maker is not None:
            out._node = maker
            out.requires_grad = True
        return out

    def _check(self, saved: Any, position: int) -> None:
        if not isinstance(saved, tuple):
            return
        _, counter, version = saved
        if counter[0] != version:
            what = "its result" if position == OUT else f"input {position}"
            raise GraphError(
                f"backward: {self.name} needs {what}, of shape "
                f"{self.out_shape if position == OUT else self.shapes[position]}, as it was at "
                f"version {version}, but it has since been changed in place (version "
                f"{counter[0]}){self.line()}. Write into a clone(), or use the out-of-place "
                "operation"
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
    """Stands in for a saved array that checkpointing will compute again when it is needed."""

    __slots__ = ("index", "segment")

    def __init__(self, segment: Any, index: int):
        self.segment = segment
        self.index = index

    def recompute(self) -> Any:
        return self.segment.array(self.index)


class Unfused(Exception):
    """A fused kernel cannot take these arrays: the primitive's reference is computed instead."""


def levels(array: Any) -> tuple[int, ...]:
    """The vmaps of which the array holds all samples: none, for a plain array."""
    return () if isinstance(array, np.ndarray) else getattr(array, "levels", ())


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
    arrays = []
    wanted = False
    for x in inputs:
        if isinstance(x, Tensor):
            if x.requires_grad:
                wanted = True
                if x._node is not None and x._made_at != x._counter[0]:
                    raise _stale(primitive, x)
            arrays.append(x.data)
        else:
            arrays.append(x)
    try:
        array = arithmetic.copy().run(primitive.compute, arrays, meta)
    except (ValueError, TypeError) as error:
        raise _misfit(primitive, arrays, error) from error
    except Unfused:
        return primitive.reference(*inputs, **meta)
    if primitive.saves_extras:
        array, extras = array
    else:
        extras = None
    if not isinstance(array, np.ndarray) and not hasattr(array, "get"):
        array = np.asarray(array)
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
    return [x.to(after) if isinstance(x, Tensor) and x.data.dtype == before else x for x in inputs]


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
            need = x.requires_grad
            signature.append((x.data.shape, x.data.dtype))
        else:
            need = False
            signature.append(_SCALAR)
        needs.append(need)
        edges.append((x._node or x) if need else None)
    node = Node.__new__(Node)
    node.primitive = primitive
    node.meta = meta
    node.edges = edges
    node.signature = signature
    node.number = next(_numbers)
    node.hooks = None
    node.retained = None
    node.freed = False
    node.extras = extras
    node.out_shape = out.data.shape
    node.out_dtype = out.data.dtype
    node.levels = levels(out.data)
    node.where = None
    node.saved = {}
    for position in primitive.saves(tuple(needs)):
        x = out if position == OUT else inputs[position]
        node.saved[position] = _save(x, mode.keep) if isinstance(x, Tensor) else x
    if extras is not None and mode.keep is not None:
        node.extras = {name: mode.keep(array) for name, array in extras.items()}
    if mode.anomaly:
        node.where = _user_line()
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
    return (x.data if keep is None else keep(x.data), counter, counter[0])


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
    if not _has_nan(out.data) or any(_has_nan(a) for a in arrays):
        return
    raise GraphError(
        f"anomaly: {primitive.name} made a NaN from inputs that had none\n  computed at "
        f"{_user_line()}"
    )


def _has_nan(x: Any) -> bool:
    array = np.asarray(getattr(x, "array", x))  # inside of vmap: all samples
    return backend.is_float(array.dtype) and bool(np.isnan(array).any())


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of outputs with respect to inputs, as a tuple; `.grad` is left alone.

    outputs: tensors on the tape; inputs: leaves or inner tensors that they were computed from.
    grad_outputs: a cotangent for each output, of its shape; may be left out for outputs of one
        element, where it is 1.
    create_graph: record the sweep, so that the gradients can be differentiated.
    retain_graph: keep what the tape saved for another sweep (defaults to create_graph).
    Raises GraphError for an input that no output depends on, unless allow_unused, which gives
    None for it. In PyTorch: torch.autograd.grad.
    """
    inputs = _as_tuple(inputs)
    for i, x in enumerate(inputs):
        if not x.requires_grad:
            raise GraphError(
                f"grad: input {i} does not require a gradient; call requires_grad_() on it before "
                "the computation"
            )
    roots = _roots("grad", _as_tuple(outputs), grad_outputs)
    found = _sweep(roots, inputs, _default(retain_graph, create_graph), create_graph)
    results = tuple(found.get(id(x._node or x)) for x in inputs)
    for i, result in enumerate(results):
        if result is None and not allow_unused:
            raise GraphError(
                f"grad: the outputs do not depend on input {i}, of shape {inputs[i].shape}; pass "
                "allow_unused=True to get None for it"
            )
    return results


@method
def backward(
    tensor: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Add the gradient of this tensor with respect to every leaf to the leaf's `.grad`.

    gradient: the cotangent, of this tensor's shape; 1 if the tensor has one element.
    Raises GraphError where nothing was recorded, or the tape was freed by an earlier backward.
    """
    roots = _roots("backward", (tensor,), gradient)
    _sweep(roots, None, _default(retain_graph, create_graph), create_graph)


def _default(retain_graph: bool | None, create_graph: bool) -> bool:
    return create_graph if retain_graph is None else retain_graph


def _as_tuple(x: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


def _roots(
    operation: str, outputs: tuple[Tensor, ...], cotangents: Any
) -> list[tuple[Tensor, Tensor]]:
    if cotangents is None or isinstance(cotangents, Tensor):
        cotangents = [cotangents] * len(outputs)
    if len(cotangents) != len(outputs):
        raise ShapeError(
            f"{operation}: expected one cotangent for each of {len(outputs)} outputs; got "
            f"{len(cotangents)}"
        )
    return [
        (output, _cotangent(operation, output, cotangent))
        for output, cotangent in zip(outputs, cotangents, strict=True)
    ]


def _cotangent(operation: str, output: Tensor, cotangent: Tensor | None) -> Tensor:
    if not output.requires_grad:
        raise GraphError(
            f"{operation}: this tensor was not computed from any that requires a gradient (or "
            "under no_grad); there is nothing to differentiate"
        )
    if cotangent is None:
        if output.numel() != 1:
            raise ShapeError(
                f"{operation}: a tensor of shape {output.shape} needs a cotangent of that shape, "
                f"{operation}(..., v) for the product v J; only a single element defaults to 1"
            )
        return wrap(np.ones_like(output.data))
    if cotangent.shape != output.shape:
        raise ShapeError(
            f"{operation}: expected a cotangent of shape {output.shape}; got {cotangent.shape}"
        )
    return cotangent.to(output.dtype)


def _sweep(
    roots: list[tuple[Tensor, Tensor]],
    inputs: tuple[Tensor, ...] | None,
    retain_graph: bool,
    create_graph: bool,
) -> dict[int, Tensor]:
    """Push cotangents from the roots down to the leaves (inputs=None: into their `.grad`).

    Gradients of inner nodes live in `pending` only. Returns the gradients found for inputs, by
    the id of the node or leaf.
    """
    nodes = ancestors([root._node for root, _ in roots if root._node is not None])
    targets = None if inputs is None else {id(x._node or x) for x in inputs}
    useful = None if targets is None else _leading_to(nodes, targets)
    pending: dict[int, Tensor] = {}
    leaves: dict[int, Tensor] = {}
    kept = {level for root, v in roots for level in levels(root.data) + levels(v.data)}
    owned: set[int] = set()  # leaves whose pending gradient nobody else holds
    found: dict[int, Tensor] = {}
    with set_grad_enabled(create_graph):
        for root, cotangent in roots:
            _send(root._node or root, cotangent, pending, leaves)
        for node in nodes:
            if id(node) not in pending:
                continue
            cotangent = pending.pop(id(node))
            if node.hooks or node.retained is not None:
                cotangent = _visit_hooks(node, cotangent)
            if targets is not None and id(node) in targets:
                found[id(node)] = cotangent
            if useful is None or id(node) in useful:
                node.freed = not retain_graph  # already now: its rule may use up what it kept
                _step(node, cotangent, pending, leaves, owned, kept)
                if not retain_graph:
                    node.free()
        for key, leaf in leaves.items():
            gradient = pending.pop(key)
            for hook in leaf._hooks or ():
                gradient = _call_hook(hook, gradient)
            if targets is None:
                _accumulate(leaf, gradient, key in owned and not leaf._hooks)
            elif key in targets:
                found[key] = gradient
    return found


def ancestors(nodes: list[Node]) -> list[Node]:
    """All nodes that the given ones were computed from, the latest first."""
    seen = {id(node): node for node in nodes}
    stack = list(seen.values())
    while stack:
        node = stack.pop()
        if node.freed:
            raise GraphError(
                f"backward: the tape was already used and freed at {node.name}{node.line()}. "
                "Compute the forward pass again, or pass retain_graph=True to the first backward"
            )
        for edge in node.edges:
            if isinstance(edge, Node) and id(edge) not in seen:
                seen[id(edge)] = edge
                stack.append(edge)
    return sorted(seen.values(), key=_number, reverse=True)


def _number(node: Node) -> int:
    return node.number


def _leading_to(nodes: list[Node], targets: set[int]) -> set[int]:
    """The ids of nodes through which a gradient reaches some target."""
    useful: set[int] = set()
    for node in reversed(nodes):
        if any(id(edge) in targets or id(edge) in useful for edge in node.edges):
            useful.add(id(node))
    return useful


def _step(
    node: Node,
    cotangent: Tensor,
    pending: dict[int, Tensor],
    leaves: dict[int, Tensor],
    owned: set[int],
    kept: set[int],
) -> None:
    anomaly = thread.mode.anomaly
    thread.mode.anomaly = (
        False  # a NaN made inside of a rule is reported below, by the forward line
    )
    try:
        if thread.mode.observers:
            gradients = _observed_step(node, cotangent)
        else:
            gradients = node.primitive.vjp(node, cotangent)
    finally:
        thread.mode.anomaly = anomaly
    for position, edge in enumerate(node.edges):
        if edge is None:
            continue
        gradient = gradients[position]
        if gradient is None:
            continue
        shape, dtype = node.signature[position]
        if not isinstance(gradient.data, np.ndarray) and levels(gradient.data):
            own = edge.levels if isinstance(edge, Node) else levels(edge.data)
            gradient = gradient._sum_samples(kept.union(own))
        if gradient.data.shape != shape:
            gradient = gradient.sum_to(shape)
        if gradient.data.dtype != dtype:
            gradient = gradient.to(dtype)
        if anomaly and _has_nan(gradient.data) and not _has_nan(cotangent.data):
            raise GraphError(
                f"anomaly: the derivative of {node.name} with respect to input {position} is NaN"
                f"{node.line()}"
            )
        _send(edge, gradient, pending, leaves)
        if isinstance(edge, Tensor) and _is_own(node, gradient, cotangent):
            owned.add(id(edge))


def _is_own(node: Node, gradient: Tensor, cotangent: Tensor) -> bool:
    """Whether a backward kernel has just allocated this gradient, and nobody else has seen it."""
    return (
        node.primitive.backward is not None
        and not thread.mode.record
        and gradient.data.base is None
        and gradient.data is not cotangent.data
    )


def _observed_step(node: Node, cotangent: Tensor) -> Any:
    observers = thread.mode.observers
    watching = [observer for observer in observers if hasattr(observer, "sweep")]
    thread.mode.observers = tuple(observer for observer in observers if observer not in watching)
    try:
        run = lambda: node.primitive.vjp(node, cotangent)  # noqa: E731
        for observer in watching:
            run = functools.partial(observer.sweep, node, run)
        return run()
    finally:
        thread.mode.observers = observers


def _send(
    edge: "Node | Tensor",
    gradient: Tensor,
    pending: dict[int, Tensor],
    leaves: dict[int, Tensor],
) -> None:
    key = id(edge)
    before = pending.get(key)
    if before is None:
        pending[key] = gradient
    elif thread.mode.record or levels(before.data) or levels(gradient.data):
        pending[key] = before + gradient
    else:
        add = kernels.lookup("add", backend.device_of(before.data))
        total = arithmetic.copy().run(add, before.data, gradient.data)
        pending[key] = wrap(np.asarray(total))
    if isinstance(edge, Tensor):
        leaves[key] = edge


def _accumulate(leaf: Tensor, gradient: Tensor, owned: bool) -> None:
    if not set(levels(gradient.data)) <= set(levels(leaf.data)):
        raise GraphError(
            "backward: inside of vmap each sample has its own gradient, which cannot go to the "
            "`.grad` of a leaf that all samples share. Use minitorch.grad inside, or backward "
            "outside of vmap"
        )
    if leaf.grad is not None:
        leaf.grad = leaf.grad + gradient
    else:
        # A gradient may be a view, or the very array that another leaf received (addition hands
        # its cotangent on unchanged); a leaf owns its own, since optimizers scale it in place.
        leaf.grad = gradient if owned else gradient.clone()


def _visit_hooks(node: Node, cotangent: Tensor) -> Tensor:
    for hook in node.hooks or ():
        cotangent = _call_hook(hook, cotangent)
    owner = node.retained() if node.retained is not None else None
    if owner is not None:
        owner.grad = cotangent if owner.grad is None else owner.grad + cotangent
    return cotangent


def _call_hook(hook: Callable[[Tensor], Tensor | None], gradient: Tensor) -> Tensor:
    result = hook(gradient)
    if result is None:
        return gradient
    if result.shape != gradient.shape:
        raise ShapeError(
            f"hook: expected a gradient of shape {gradient.shape} or None; got {result.shape}"
        )
    return result


class HookHandle:
    """What `register_hook` returns; `remove()` takes the hook away."""

    def __init__(self, hooks: list[Any], hook: Any):
        self._hooks = hooks
        self._hook = hook

    def remove(self) -> None:
        """Take the hook away; a second call does nothing."""
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


@method
def register_hook(tensor: Tensor, hook: Callable[[Tensor], Tensor | None]) -> HookHandle:
    """Call hook(gradient) when the gradient of this tensor is complete.

    A Tensor that it returns takes the gradient's place. Called once per sweep.
    """
    if not tensor.requires_grad:
        raise GraphError("register_hook: this tensor does not require a gradient")
    owner, field = (tensor, "_hooks") if tensor._node is None else (tensor._node, "hooks")
    if getattr(owner, field) is None:
        setattr(owner, field, [])
    hooks = getattr(owner, field)
    hooks.append(hook)
    return HookHandle(hooks, hook)


@method
def retain_grad(tensor: Tensor) -> None:
    """Fill `.grad` of this inner tensor too (leaves always have theirs)."""
    import weakref

    if not tensor.requires_grad:
        raise GraphError("retain_grad: this tensor does not require a gradient")
    if tensor._node is not None:
        tensor._node.retained = weakref.ref(tensor)


def pushforward(output: Tensor, tangents: Sequence[tuple[Tensor, Tensor]]) -> Tensor | None:
    """J u: sweep the tape from the inputs to the output, in the order in which it was made.

    tangents: pairs of an input on the tape and its tangent u, of the input's shape. Returns the
    tangent of the output, or None where the output does not depend on the inputs. The tape is
    kept. Each step is `Primitive.jvp`: for J_n ... J_1 u the product runs from the right.
    """
    moving: dict[int, Tensor] = {}
    for x, tangent in tangents:
        key = id(x._node or x)
        moving[key] = tangent if key not in moving else moving[key] + tangent
    if output._node is None:
        return moving.get(id(output))
    for node in reversed(ancestors([output._node])):
        if id(node) in moving:
            continue
        incoming = [None if edge is None else moving.get(id(edge)) for edge in node.edges]
        if any(tangent is not None for tangent in incoming):
            tangent = node.primitive.jvp(node, incoming)
            if tangent is not None:
                moving[id(node)] = tangent
    return moving.get(id(output._node))
