r"""What a primitive is: a forward function, a derivative rule, and the structure of its Jacobian.

The structure decides what has to be written:

* elementwise: J = diag(f'(x)). One derivative, a factor, serves both products: v J = v * f'(x)
  and J u = f'(x) * u.
* linear: J is the map itself, so J u is the operation applied to u, and v J needs the transpose.
* bilinear (or multilinear): linear in each argument, so J u is a sum of calls with one argument
  replaced by its tangent, and each argument has its transpose.
* general: v J is written; J u comes from v J by differentiating it with respect to v, in which it
  is linear (the double-vjp trick), unless it is written too.
* fused: one kernel for a composition of the above, which is its `reference`. The kernel's own
  backward gives v J; J u and every higher derivative come from differentiating the reference.

What a rule may ask for, and what that costs, says definition.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitorch import autograd, backend, kernels, modes
from minitorch.errors import GraphError
from minitorch.ops.definition import Primitive, Rule
from minitorch.ops.promotion import cast, widen
from minitorch.tape import OUT, Node, apply, levels
from minitorch.tensor import Tensor, wrap


class Elementwise(Primitive):
    """J = diag(f'(x)): `derivative` gives the factor f'(x), one for each input."""

    structure = "elementwise"
    allocates = True

    def __init__(self, name: str, forward: Callable[..., Any], *derivatives: Any, **options: Any):
        super().__init__(name, forward, **options)
        self.rules = self._rules(derivatives, len(self.inputs))

    def _positions(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        return _union(self._needs_rule(self.rules, i).saves for i, need in enumerate(needs) if need)

    def vjp(self, node: Node, cotangent: Tensor) -> Sequence[Tensor | None]:
        return [
            None if edge is None else cotangent * rule(node, cotangent)
            for edge, rule in zip(node.edges, self.rules, strict=True)
        ]

    def jvp(self, node: Node, tangents: Sequence[Tensor | None]) -> Tensor | None:
        return _total(
            None if tangent is None else tangent * rule(node, tangent)
            for tangent, rule in zip(tangents, self.rules, strict=True)
        )


class Linear(Primitive):
    """J is the map itself. `transpose` gives v J for the first inputs, in which it is linear.

    One rule for each linear input; further inputs (indices, conditions) are kept. For any number
    of inputs one rule gives the gradients of all.
    """

    structure = "linear"

    def __init__(self, name: str, forward: Callable[..., Any], *transpose: Any, **options: Any):
        super().__init__(name, forward, **options)
        self.rules = self._rules(transpose, 0)

    def _positions(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        if self.variadic:
            return ()
        count = len(self.rules)
        if any(needs[count:]):
            raise GraphError(
                f"{self.name}: no derivative is defined with respect to its input "
                f"{self.inputs[needs.index(True, count)]!r}; detach() it"
            )
        return tuple(range(count, len(needs)))

    def vjp(self, node: Node, cotangent: Tensor) -> Sequence[Tensor | None]:
        if self.variadic:
            return self.rules[0](node, cotangent)
        return [
            None if edge is None else rule(node, cotangent)
            for edge, rule in zip(node.edges, self.rules, strict=False)
        ] + [None] * (len(node.edges) - len(self.rules))

    def jvp(self, node: Node, tangents: Sequence[Tensor | None]) -> Tensor | None:
        count = len(node.edges) if self.variadic else len(self.rules)
        linear = [
            _zeros(*node.signature[i]) if tangents[i] is None else tangents[i] for i in range(count)
        ]
        rest = [node.input(i) for i in range(count, len(node.edges))]
        return apply(self, linear + rest, node.meta)


class Bilinear(Primitive):
    """Linear in each of its inputs; `transposes`: one rule for each, or one that takes `needs`."""

    structure = "bilinear"
    allocates = True

    def __init__(self, name: str, forward: Callable[..., Any], *transposes: Any, **options: Any):
        super().__init__(name, forward, **options)
        self.rules = [] if self.variadic else self._rules(transposes, len(self.inputs))
        self.joint = transposes[0] if self.variadic else None

    def _positions(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        if not self.variadic:
            return _union(
                self._needs_rule(self.rules, i).saves for i, need in enumerate(needs) if need
            )
        return tuple(i for i in range(len(needs)) if any(needs[:i]) or any(needs[i + 1 :]))

    def vjp(self, node: Node, cotangent: Tensor) -> Sequence[Tensor | None]:
        if self.joint is None:
            return [
                None if edge is None else rule(node, cotangent)
                for edge, rule in zip(node.edges, self.rules, strict=True)
            ]
        return [
            None if edge is None else self.joint(cotangent, node, position)
            for position, edge in enumerate(node.edges)
        ]

    def jvp(self, node: Node, tangents: Sequence[Tensor | None]) -> Tensor | None:
        return _total(
            None
            if tangent is None
            else apply(
                self,
                [tangent if i == position else node.input(i) for i in range(len(node.edges))],
                node.meta,
            )
            for position, tangent in enumerate(tangents)
        )


class General(Primitive):
    """A written rule: `vjp` gives v J, one rule for each differentiable input.

    backward: an optional kernel on arrays, used where no graph of the gradient is wanted; its
        signature names what it takes, like a rule's, and it returns one array for each rule.
    """

    structure = "general"

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        *vjp: Any,
        backward: Callable[..., Any] | None = None,
        **options: Any,
    ):
        super().__init__(name, forward, **options)
        self.rules = self._rules(vjp, 1)
        self.backward = backward and self._rule(backward, arrays=True)
        if self.backward is not None:
            self.joins, self.widens = self.backward.joins, self.backward.widens

    def _positions(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        rules = [self._needs_rule(self.rules, i) for i, need in enumerate(needs) if need]
        return _union(
            [rule.saves for rule in rules] + [self.backward.saves if self.backward else ()]
        )

    def vjp(self, node: Node, cotangent: Tensor) -> Sequence[Tensor | None]:
        if self.backward is not None and not _wants_rule(node, cotangent):
            return _run_backward(self.backward, node, cotangent)
        return [
            None if edge is None else rule(node, cotangent)
            for edge, rule in zip(node.edges, self.rules, strict=False)
        ] + [None] * (len(node.edges) - len(self.rules))

    def jvp(self, node: Node, tangents: Sequence[Tensor | None]) -> Tensor | None:
        """J u = d/dv <v J, u>: the reverse rule is linear in v, so its transpose is J."""
        moving = [i for i, tangent in enumerate(tangents) if tangent is not None]
        v = wrap(np.zeros(node.out_shape, node.out_dtype)).requires_grad_()
        with modes.enable_grad():
            rows = self.vjp(node, v)
            pairs = [
                (row.sum_to(node.signature[i][0]), tangents[i])
                for i in moving
                if (row := rows[i]) is not None
            ]
        used = [(row, tangent) for row, tangent in pairs if row.requires_grad]
        if not used:
            return None
        rows, cotangents = zip(*used, strict=True)
        (out,) = autograd.grad(
            rows, v, cotangents, create_graph=modes.is_grad_enabled(), allow_unused=True
        )
        return out


class Fused(Primitive):
    """One kernel for a composition, its `reference`: a function of Tensors and the same options.

    backward: a kernel on arrays that gives v J for every differentiable input, used where no
        graph of the gradient is wanted. All inputs are kept, and what `extras` names: the forward
        function returns (out, {name: array}).
    """

    structure = "fused"

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        *,
        reference: Callable[..., Tensor],
        backward: Callable[..., Any],
        **options: Any,
    ):
        super().__init__(name, forward, **options)
        self.reference = reference
        self.kernel_rule = self.backward = self._rule(backward, arrays=True)
        self.joins, self.widens = self.backward.joins, self.backward.widens

    def _positions(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        return (*range(len(needs)), *(p for p in self.kernel_rule.saves if p == OUT))

    def vjp(self, node: Node, cotangent: Tensor) -> Sequence[Tensor | None]:
        if not _wants_rule(node, cotangent):
            return _run_backward(self.kernel_rule, node, cotangent)
        recorded = modes.is_grad_enabled()
        out, inputs = self._replay(node)
        wanted = [x for x, edge in zip(inputs, node.edges, strict=True) if edge is not None]
        found = iter(autograd.grad(out, wanted, cotangent, None, recorded, allow_unused=True))
        return [None if edge is None else next(found) for edge in node.edges]

    def jvp(self, node: Node, tangents: Sequence[Tensor | None]) -> Tensor | None:
        out, inputs = self._replay(node)
        pairs = [
            (x, tangent) for x, tangent in zip(inputs, tangents, strict=True) if tangent is not None
        ]
        return autograd.pushforward(out, pairs)

    def _replay(self, node: Node) -> tuple[Tensor, list[Any]]:
        """The reference computed again on stand-ins for the inputs, where the sweep may stop."""
        with modes.enable_grad():
            inputs = [
                node.input(i) if edge is None else node.input(i).alias()
                for i, edge in enumerate(node.edges)
            ]
            return self.reference(*inputs, **node.meta), inputs


class Nondifferentiable(Primitive):
    """An operation that says it has no derivative: its result is an index or a truth value."""

    structure = "nondifferentiable"
    differentiable = False

    def __init__(self, name: str, forward: Callable[..., Any], *, why: str, **options: Any):
        super().__init__(name, forward, **options)
        self.why = why


def _wants_rule(node: Node, cotangent: Tensor) -> bool:
    """Whether Tensor operations are needed: for a graph of the gradient, or for samples of vmap."""
    return modes.is_grad_enabled() or bool(node.levels or levels(cotangent.data))


def _run_backward(rule: Rule, node: Node, cotangent: Tensor) -> list[Tensor | None]:
    run = backend.arithmetic.copy().run
    arrays = run(_backward_arrays, rule, node, cotangent.data)
    results = [
        None if edge is None or array is None else wrap(backend.beside(array, cotangent.data))
        for edge, array in zip(node.edges, arrays, strict=False)
    ]
    return results + [None] * (len(node.edges) - len(results))


def _backward_arrays(rule: Rule, node: Node, cotangent: Any) -> Sequence[Any]:
    dtype, name = cotangent.dtype, node.primitive.kernel
    if not backend.half_precision(dtype) or (
        name and kernels.takes_half(f"{name}_backward", dtype, backend.device_of(cotangent))
    ):
        return rule(node, cotangent)
    kept = [fetch(node, widen(cotangent)) for fetch in rule._fetch]
    arrays = rule.function(*[widen(x) for x in kept])
    return [None if array is None else cast(array, dtype) for array in arrays]


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    return wrap(np.zeros(shape, dtype))


def _union(parts: Any) -> tuple[int, ...]:
    return tuple(sorted({position for part in parts for position in part}))


def _total(terms: Any) -> Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


elementwise = Elementwise
linear = Linear
bilinear = Bilinear
general = General
fused = Fused
nondifferentiable = Nondifferentiable
