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

A rule is a function of Tensors, and its signature is the declaration of what the tape keeps:

    grad      the cotangent v, of the result's shape
    out       the result (kept)
    x, index  an input, by its name in the forward function (kept)
    shape     the shape of the first input; shapes: of all (free)
    needs     for each input whether its gradient is wanted (free)
    last      whether the tape is freed behind the sweep, so that a backward kernel may overwrite
              what the forward left for it (free)
    dim, ...  an option of the call, by its name (free)

Rules ignore broadcasting: the sweep sums a gradient down to the shape of its input.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType, MethodType
from typing import Any

import numpy as np
from numpy import ndarray

from minitorch import autograd, backend, kernels, modes
from minitorch.autograd import OUT, Node, apply, levels
from minitorch.errors import DtypeError, GraphError, ShapeError
from minitorch.tensor import Tensor, wrap

registry: dict[str, "Primitive"] = {}
"""Every primitive by name: what gradcheck, the tests and chapter 4 of the book walk through."""


@dataclass(frozen=True)
class Sample:
    """Inputs on which a primitive is checked.

    inputs: float64 arrays where a gradient is wanted, integer or bool arrays, Python numbers.
    meta: the options of the call.
    singular: a point where the derivative does not exist and a convention is chosen (a kink, a
        tie); it is compared with other implementations instead of with finite differences.
    """

    inputs: tuple[Any, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    singular: bool = False


class Rule:
    """A derivative rule, and how to fetch from a node what its signature asks for.

    arrays: it is a kernel, on arrays in place of Tensors. defaults: of options left out of a call.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Sequence[str],
        extras: Sequence[str] = (),
        arrays: bool = False,
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ):
        names = list(inspect.signature(function).parameters)
        self.function = function
        self.arrays = arrays
        self.saves = tuple(
            OUT if name == "out" else inputs.index(name)
            for name in names
            if name == "out" or name in inputs
        )
        self._fetch = [_fetcher(name, inputs, extras, arrays, defaults) for name in names]

    def __call__(self, node: Node, cotangent: Any) -> Any:
        result = self.function(*[fetch(node, cotangent) for fetch in self._fetch])
        if result is None or isinstance(result, np.ndarray):
            kind = "None" if result is None else "an array"
            wanted = (
                "a backward kernel returns a tuple of arrays, one for each input"
                if self.arrays
                else "a rule is made of Tensor operations and returns a Tensor"
            )
            raise GraphError(f"{node.name}: the derivative rule returned {kind}; {wanted}")
        return result


_FREE = ("shape", "shapes", "needs", "last")  # what a rule may ask for at no cost
_REQUIRED = inspect.Parameter.empty
_ANY = "**"


def _fetcher(
    name: str,
    inputs: Sequence[str],
    extras: Sequence[str],
    arrays: bool,
    defaults: Mapping[str, Any],
) -> Callable[[Node, Any], Any]:
    if name == "grad":
        return lambda node, cotangent: cotangent
    if name == "out":
        return (lambda node, _: node.out().data) if arrays else (lambda node, _: node.out())
    if name == "shape":
        return lambda node, _: node.signature[0][0]
    if name == "shapes":
        return lambda node, _: node.shapes
    if name == "needs":
        return lambda node, _: tuple(edge is not None for edge in node.edges)
    if name == "last":
        return lambda node, _: node.freed
    if name in extras:
        return lambda node, _: node.extra(name)
    if name in inputs:
        position = inputs.index(name)
        if arrays:
            return lambda node, _: _raw(node.input(position))
        return lambda node, _: node.input(position)
    if name in defaults:
        return lambda node, _: node.meta.get(name, defaults[name])
    return lambda node, _: node.meta[name]


def _raw(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


class Primitive:
    """The base of the five structures. Call it on Tensors: primitive(x, y, dim=0).

    name: unique, and the key in `registry`.
    forward(*arrays, **meta): computes the result from raw arrays (and Python numbers).
    inputs: names of the positional inputs, read from forward's signature if left out; a single
        name with a star, "*xs", for any number.
    formula, jacobian: LaTeX, for people.
    samples(): a list of Sample, on which `minitorch gradcheck` checks it.
    floating: integer inputs are converted to the default float dtype first.
    may_view: the result may share memory with the first input.
    moves_data: no arithmetic happens, so half precision is passed as it is.
    kernel: the name of the kernel behind forward, and with "_backward" behind backward, which are
        given half precision as it is if they take it.
    autocast: "lower" where mixed precision takes and gives half precision, "raise" where it must
        not, see `modes.autocast`; "" where the inputs decide.
    """

    structure = "general"
    differentiable = True
    backward: Rule | None = None  # a kernel on arrays that gives v J

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        *,
        formula: str = "",
        samples: Callable[[], list[Sample]] = list,
        jacobian: str = "",
        inputs: Sequence[str] | None = None,
        floating: bool = False,
        may_view: bool = False,
        moves_data: bool = False,
        kernel: str = "",
        autocast: str = "",
        extras: Sequence[str] = (),
        doc: str = "",
    ):
        self.name = name
        self.__name__ = name
        self.__doc__ = doc
        self.forward = forward
        self.inputs = tuple(inputs) if inputs is not None else _positional(forward)
        self.variadic = len(self.inputs) == 1 and self.inputs[0].startswith("*")
        many = any(x.startswith("*") for x in self.inputs)
        self._counts = range(1, sys.maxsize if many else len(self.inputs) + 1)
        self.formula = formula
        self.jacobian = jacobian
        self.samples = samples
        self.floating = floating
        self.may_view = may_view
        self.moves_data = moves_data
        self.kernel = kernel
        self.autocast = autocast
        self.extras = tuple(extras)
        self.saves_extras = bool(extras)
        self.saves = lru_cache(maxsize=None)(self._positions)
        caller = inspect.currentframe().f_back  # type: ignore[union-attr]
        while caller.f_globals["__name__"] == __name__:  # type: ignore[union-attr]
            caller = caller.f_back  # type: ignore[union-attr]
        self.module = caller.f_globals["__name__"]  # type: ignore[union-attr]
        if name in registry and registry[name].module != self.module:
            raise GraphError(
                f"primitive: the name {name!r} is taken by {registry[name].module}; choose another"
            )
        registry[name] = self

    def __call__(self, *inputs: Any, **meta: Any) -> Tensor:
        if len(inputs) not in self._counts:
            raise ShapeError(
                f"{self.name}: expected the inputs ({', '.join(self.inputs)}); got {len(inputs)}"
            )
        return apply(self, promote(inputs, self.floating), meta)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Bind as a method, so that a primitive can be an attribute of Tensor."""
        if instance is None:
            return self
        return MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<{self.structure} primitive {self.name}>"

    def compute(self, arrays: Sequence[Any], meta: dict[str, Any]) -> Any:
        """forward(*arrays), in float32 and rounded once where the arrays are half precision.

        An array that holds all samples of a vmap computes the result for each of them.
        """
        half = None
        for array in arrays:
            if isinstance(array, ndarray):
                if array.itemsize == 2 and backend.half_precision(array.dtype):
                    half = array.dtype
            elif hasattr(array, "levels"):
                return array.compute(self, arrays, meta)
        if half is None or self.moves_data:
            return self.forward(*arrays, **meta)
        if self.kernel and kernels.takes_half(self.kernel, half):
            return self.forward(*arrays, **meta)
        return in_float32(self.forward, arrays, meta, half)

    def _positions(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        """Which inputs (and OUT) to keep when these inputs need gradients."""
        raise NotImplementedError

    def vjp(self, node: Node, cotangent: Tensor) -> Sequence[Tensor | None]:
        """v J for each input: the gradients, None where node.edges is None."""
        raise NotImplementedError

    def jvp(self, node: Node, tangents: Sequence[Tensor | None]) -> Tensor | None:
        """J u: the tangent of the result, from those of the inputs (None is zero)."""
        raise NotImplementedError

    def _rule(self, function: Callable[..., Any], arrays: bool = False) -> Rule:
        options = _options(self.forward)
        known = {*_FREE, "grad", "out", *self.inputs, *self.extras, *options}
        unknown = [name for name in inspect.signature(function).parameters if name not in known]
        if unknown and _ANY not in options:
            raise self._refusal(
                f"a derivative rule asks for {', '.join(unknown)}, which is not to be had. Its "
                f"parameters can be grad, out, {', '.join(_FREE)}, the inputs "
                f"({', '.join(self.inputs)}), and the forward function's keyword-only options "
                f"({', '.join(options) or 'it has none'})"
            )
        defaults = {name: value for name, value in options.items() if value is not _REQUIRED}
        return Rule(function, self.inputs, self.extras, arrays, defaults)

    def _rules(self, functions: Sequence[Any], least: int) -> list[Any]:
        """Rules for the first inputs, at least so many; None stays None: there is no derivative."""
        if not least <= len(functions) <= len(self.inputs):
            raise self._refusal(
                f"expected a derivative rule for each of the inputs ({', '.join(self.inputs)}); "
                f"got {len(functions)}. Give None for an input without a derivative, and make an "
                "option of the forward function keyword-only"
            )
        return [function and self._rule(function) for function in functions]

    def _refusal(self, message: str) -> GraphError:
        """The error of a definition that cannot be used; its name is free again."""
        del registry[self.name]
        return GraphError(f"{self.name}: {message}")

    def _needs_rule(self, rules: Sequence[Rule | None], position: int) -> Rule:
        rule = rules[position] if position < len(rules) else None
        if rule is None:
            raise GraphError(
                f"{self.name}: no derivative is defined with respect to its input "
                f"{self.inputs[position]!r}; detach() it"
            )
        return rule


def _positional(function: Callable[..., Any]) -> tuple[str, ...]:
    if isinstance(function, np.ufunc):
        return ("x",) if function.nin == 1 else ("a", "b")
    return tuple(
        name if parameter.kind is not parameter.VAR_POSITIONAL else f"*{name}"
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.KEYWORD_ONLY
    )


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters and their defaults; _ANY, where others are taken too."""
    if isinstance(function, np.ufunc):
        return {}
    parameters = inspect.signature(function).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        options[_ANY] = _REQUIRED
    return options


def in_float32(
    function: Callable[..., Any], arrays: Sequence[Any], meta: dict[str, Any], dtype: np.dtype
) -> Any:
    """function(*arrays) with half precision widened before and float32 results narrowed after."""
    result = function(*[_widen(array) for array in arrays], **meta)
    if isinstance(result, tuple):
        return (_narrow(result[0], dtype), *result[1:])
    return _narrow(result, dtype)


def _widen(x: Any) -> Any:
    if isinstance(x, np.ndarray) and backend.half_precision(x.dtype):
        return x.astype(np.float32)
    return x


def _narrow(x: Any, dtype: np.dtype) -> Any:
    return np.asarray(x).astype(dtype) if getattr(x, "dtype", None) == np.float32 else x


def promote(inputs: Sequence[Any], floating: bool = False) -> Sequence[Any]:
    """The inputs with a common dtype; Python numbers stay as they are (they never widen)."""
    first = inputs[0]
    if len(inputs) == 1:
        if isinstance(first, Tensor):
            if floating and not backend.is_float(first.data.dtype):
                return (first.to(backend.DEFAULT_FLOAT),)
            return inputs
    elif len(inputs) == 2:
        second = inputs[1]
        if isinstance(first, Tensor):
            dtype = first.data.dtype
            if isinstance(second, Tensor):
                if second.data.dtype is dtype and (not floating or dtype.kind == "f"):
                    return inputs
            elif type(second) in _NUMBERS and dtype.kind == "f":
                return inputs
        elif (
            isinstance(second, Tensor) and type(first) in _NUMBERS and second.data.dtype.kind == "f"
        ):
            return inputs
    operands = [_operand(x) for x in inputs]
    dtype = backend.result_type([_raw(x) for x in operands])
    if floating and not backend.is_float(dtype):
        dtype = backend.DEFAULT_FLOAT
    if not any(isinstance(x, Tensor) for x in operands):
        return [Tensor(x, dtype) for x in operands]
    return [
        (x if x.data.dtype == dtype else x.to(dtype)) if isinstance(x, Tensor) else _cast(x, dtype)
        for x in operands
    ]


_NUMBERS = frozenset({int, float})


def _operand(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x
    if isinstance(x, (np.ndarray, np.generic)):
        return Tensor(x)
    backend.scalar_dtype(x)
    return x


def _cast(number: Any, dtype: np.dtype) -> Any:
    if backend.is_float(dtype):
        return float(number)
    if dtype == backend.bool:
        return bool(number)
    limits = np.iinfo(dtype)
    if not limits.min <= number <= limits.max:
        raise DtypeError(
            f"the number {number} does not fit in {dtype}; convert the tensor with .long() first"
        )
    return int(number)


class Elementwise(Primitive):
    """J = diag(f'(x)): `derivative` gives the factor f'(x), one for each input."""

    structure = "elementwise"

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
        None if edge is None or array is None else wrap(array)
        for edge, array in zip(node.edges, arrays, strict=False)
    ]
    return results + [None] * (len(node.edges) - len(results))


def _backward_arrays(rule: Rule, node: Node, cotangent: Any) -> Sequence[Any]:
    dtype, name = cotangent.dtype, node.primitive.kernel
    if not backend.half_precision(dtype) or (
        name and kernels.takes_half(f"{name}_backward", dtype)
    ):
        return rule(node, cotangent)
    kept = [fetch(node, _widen(cotangent)) for fetch in rule._fetch]
    arrays = rule.function(*[_widen(x) for x in kept])
    return [None if array is None else array.astype(dtype) for array in arrays]


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
