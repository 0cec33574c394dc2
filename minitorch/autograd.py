"""The sweeps over the tape, which turn it into derivatives.

The reverse sweep (`backward`, `grad`) is the vector chain rule from the outside in. For
y = f_n(...f_1(x)) it computes (((v J_n) J_{n-1}) ... J_1): a row vector times one Jacobian after
another, each product by the rule of its primitive, in descending order of the nodes' numbers: no
recursion, no search. Where a value was used twice its gradients add up. The forward sweep
(`pushforward`) computes J_n (... (J_1 u)).

Rules are written in Tensor operations. With create_graph they are recorded like any others, and
the gradient can be differentiated again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from minitorch import backend, kernels
from minitorch.backend import arithmetic
from minitorch.errors import GraphError, ShapeError
from minitorch.modes import (
    set_grad_enabled,
    thread,
)
from minitorch.tape import Node, has_nan, levels
from minitorch.tensor import Tensor, method, wrap


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
    return cotangent.to(output.dtype, output.device)


def _sweep(
    roots: list[tuple[Tensor, Tensor]],
    inputs: tuple[Tensor, ...] | None,
    retain_graph: bool,
    create_graph: bool,
) -> dict[int, Tensor]:
    """Push cotangents from the roots down to the leaves (inputs=None: into their `.grad`).

    Returns the gradients found for inputs, by the id of the node or leaf.
    """
    nodes = ancestors([root._node for root, _ in roots if root._node is not None])
    targets = None if inputs is None else {id(x._node or x) for x in inputs}
    useful = None if targets is None else _leading_to(nodes, targets)
    found: dict[int, Tensor] = {}
    with set_grad_enabled(create_graph):
        sweep = _Sweep(roots, targets or set())
        for node in nodes:
            cotangent = sweep.pending.pop(id(node), None)
            if cotangent is None:
                continue
            if node.hooks or node.retained is not None:
                cotangent = _visit_hooks(node, cotangent)
            if targets is not None and id(node) in targets:
                found[id(node)] = cotangent
            if useful is None or id(node) in useful:
                node.freed = not retain_graph  # already now: its rule may use up what it kept
                sweep.step(node, cotangent)
                if not retain_graph:
                    node.free()
        for key, leaf in sweep.leaves.items():
            gradient = sweep.pending.pop(key)
            for hook in leaf._hooks or ():
                gradient = _call_hook(hook, gradient)
            if targets is None:
                _accumulate(leaf, gradient, key in sweep.owned and not leaf._hooks)
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
            if type(edge) is Node and id(edge) not in seen:
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


class _Sweep:
    """The gradients that are on their way.

    pending: what has arrived so far for a node or leaf, by its id; it lives here and nowhere else.
    leaves: those among them that are leaves. owned: the ids of those whose pending gradient nobody
    else holds, so that more can be added in place. kept: the vmaps that the roots are inside of.
    targets: the ids of nodes and leaves whose gradient somebody asked for.
    """

    __slots__ = ("kept", "leaves", "mode", "owned", "pending", "targets")

    def __init__(self, roots: list[tuple[Tensor, Tensor]], targets: set[int]):
        self.mode = thread.mode
        self.targets = targets
        self.pending: dict[int, Tensor] = {}
        self.leaves: dict[int, Tensor] = {}
        self.owned: set[int] = set()
        self.kept = {level for root, v in roots for level in levels(root.data) + levels(v.data)}
        for root, cotangent in roots:
            self.send(root._node or root, cotangent)

    def step(self, node: Node, cotangent: Tensor) -> None:
        """Send each input of a node its gradient."""
        primitive, mode = node.primitive, self.mode
        if primitive.add_vjp is not None and self._added_in_place(node, cotangent):
            return
        joins = primitive.joins and self._offer(node)
        if mode.observers or mode.anomaly:
            gradients = _watched(node, cotangent)
        else:
            gradients = primitive.vjp(node, cotangent)
        for edge, gradient, (shape, dtype) in zip(node.edges, gradients, node.signature):
            if edge is None or gradient is None:
                continue
            data = gradient.data
            if type(data) is not ndarray or data.shape != shape or data.dtype is not dtype:
                gradient, edge = self._fitted(primitive, gradient, edge, shape, dtype)
            if joins:
                self._taken(node)
                joins = False
            self.send(edge, gradient, self._is_own(primitive, edge, gradient.data, cotangent.data))

    def send(self, edge: "Node | Tensor", gradient: Tensor, own: bool = False) -> None:
        """Add a gradient to what has arrived there so far. own: nobody else holds its array."""
        key = id(edge)
        before = self.pending.get(key)
        if before is None:
            self.pending[key] = gradient
            if own:
                self.owned.add(key)
            if isinstance(edge, Tensor):
                self.leaves[key] = edge
        elif self.mode.record or levels(before.data) or levels(gradient.data):
            self.pending[key] = before + gradient
        else:
            self._add(key, before.data, gradient.data)

    def _add(self, key: int, total: Any, gradient: Any) -> None:
        run = arithmetic.copy().run
        add = kernels.lookup("add", backend.device_of(total))
        if key in self.owned:
            run(add, total, gradient, out=total)
        else:
            self.pending[key] = wrap(backend.beside(run(add, total, gradient), total))
            self.owned.add(key)

    def _fitted(
        self,
        primitive: Any,
        gradient: Tensor,
        edge: "Node | Tensor",
        shape: tuple[int, ...],
        dtype: Any,
    ) -> "tuple[Tensor, Node | Tensor]":
        """What a rule gave as the gradient of an input, summed over what was broadcast; its way.

        It has the input's dtype. Where a kernel was asked for that which the input was converted
        from, and gave it, it goes past the conversion, if nobody looks at it there.
        """
        if levels(gradient.data):
            own = edge.levels if isinstance(edge, Node) else levels(edge.data)
            gradient = gradient._sum_samples(self.kept.union(own))
        if gradient.data.shape != shape:
            gradient = gradient.sum_to(shape)
        if (
            primitive.widens
            and type(edge) is Node
            and edge.primitive.converts
            and edge.signature[0][1] is gradient.dtype
            and not (edge.hooks or edge.retained or id(edge) in self.targets)
        ):
            return gradient, edge.edges[0]  # type: ignore[return-value]  # it needs a gradient
        return gradient.to(dtype), edge

    def _is_own(self, primitive: Any, edge: Any, gradient: Any, cotangent: Any) -> bool:
        """Whether this gradient has just been allocated, and nobody else has seen it."""
        return (
            not self.mode.record
            and (primitive.allocates or (primitive.backward is not None and type(edge) is not Node))
            and gradient.base is None
            and gradient is not cotangent
        )

    def _added_in_place(self, node: Node, cotangent: Tensor) -> bool:
        """Whether the gradient of the first input has been added to the one that was pending."""
        mode, key = self.mode, id(node.edges[0])
        if key not in self.owned or mode.record or mode.anomaly:
            return False
        total = self.pending[key].data
        if levels(cotangent.data) or total.dtype != cotangent.data.dtype:
            return False

        def add() -> tuple[()]:
            arithmetic.copy().run(node.primitive.add_vjp, node, cotangent.data, total)
            return ()

        if not mode.observers:
            add()
        elif all(hasattr(observer, "sweep") for observer in mode.observers):
            _observed_step(node, add)
        else:  # who looks at the operations of a derivative would see none
            return False
        return True

    def _offer(self, node: Node) -> bool:
        """Offer a backward kernel what other paths have brought to its first input; whether it was.

        In a residual stream x + f(norm(x)) the kernel of the norm then adds, in the pass that it
        makes anyway, the gradient that went around it.
        """
        edge = node.edges[0]
        if self.mode.record or self.mode.anomaly or not isinstance(edge, Node):
            return False
        before = self.pending.get(id(edge))
        if before is None or levels(before.data):
            return False
        if node.extras is None:
            node.extras = {}
        node.extras["arrived"] = before.data
        return True

    def _taken(self, node: Node) -> None:
        """Forget what was offered if the kernel took it: it is part of the new gradient."""
        if node.extras.pop("arrived", None) is None:  # type: ignore[union-attr]
            key = id(node.edges[0])
            del self.pending[key]
            self.owned.discard(key)


def _watched(node: Node, cotangent: Tensor) -> Any:
    """The rule, in anomaly mode or under the eyes of observers."""
    anomaly, thread.mode.anomaly = thread.mode.anomaly, False  # reported here, by the forward line
    try:
        gradients = _observed_step(node, lambda: node.primitive.vjp(node, cotangent))
    finally:
        thread.mode.anomaly = anomaly
    if not anomaly or has_nan(cotangent.data):
        return gradients
    for position, gradient in enumerate(gradients):
        if gradient is not None and has_nan(gradient.data):
            raise GraphError(
                f"anomaly: the derivative of {node.name} with respect to input {position} is NaN"
                f"{node.line()}"
            )
    return gradients


def _observed_step(node: Node, run: Callable[[], Any]) -> Any:
    observers = thread.mode.observers
    watching = [observer for observer in observers if hasattr(observer, "sweep")]
    thread.mode.observers = tuple(observer for observer in observers if observer not in watching)
    try:
        for observer in watching:
            run = functools.partial(observer.sweep, node, run)
        return run()
    finally:
        thread.mode.observers = observers


def _accumulate(leaf: Tensor, gradient: Tensor, owned: bool) -> None:
    if type(gradient.data) is not ndarray or type(leaf.data) is not ndarray:
        if (own := levels(gradient.data)) and not set(own) <= set(levels(leaf.data)):
            raise GraphError(
                "backward: inside of vmap each sample has its own gradient, which cannot go to the "
                "`.grad` of a leaf that all samples share. Use minitorch.grad inside, or backward "
                "outside of vmap"
            )
        if gradient.device != leaf.device:
            gradient, owned = gradient.to(leaf.device), True
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
