r"""What every primitive has: name, forward function, samples, and rules that say what they need.

A rule is a function of Tensors, and its signature is the declaration of what the tape keeps:

    grad      the cotangent v, of the result's shape
    out       the result (kept)
    x, index  an input, by its name in the forward function (kept)
    shape     the shape of the first input; shapes: of all (free)
    needs     for each input whether its gradient is wanted (free)
    wide      for each input whether it was rounded from float32 just before, as autocast does: a
              backward kernel may then give that gradient in float32 (free)
    last      whether the tape is freed behind the sweep, so that a backward kernel may overwrite
              what the forward left for it (free)
    arrived   the gradient that the first input has from other paths so far, or None; a backward
              kernel that asks for it returns the sum of both as the gradient of that input (free)
    dim, ...  an option of the call, by its name (free)

Rules ignore broadcasting: the sweep sums a gradient down to the shape of its input. What rules
there are depends on the structure of the Jacobian: primitive.py.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, MethodType
from typing import Any

import numpy as np

from minitorch import backend, kernels
from minitorch.errors import GraphError, ShapeError
from minitorch.ops.promotion import in_float32, promote
from minitorch.tape import OUT, Node, apply
from minitorch.tensor import Tensor

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
        self.joins, self.widens = "arrived" in names, "wide" in names
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


class Saves(dict[tuple[bool, ...], tuple[int, ...]]):
    """For each combination of inputs that need gradients what to keep, worked out once."""

    def __init__(self, positions: Callable[[tuple[bool, ...]], tuple[int, ...]]):
        self._positions = positions

    def __missing__(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        self[needs] = self._positions(needs)
        return self[needs]


_FREE = ("shape", "shapes", "needs", "wide", "last", "arrived")  # what a rule gets at no cost
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
        return (lambda node, _: node.array(OUT)) if arrays else (lambda node, _: node.out())
    if name == "shape":
        return lambda node, _: node.signature[0][0]
    if name == "shapes":
        return lambda node, _: node.shapes
    if name == "needs":
        return lambda node, _: tuple(edge is not None for edge in node.edges)
    if name == "wide":
        return lambda node, _: tuple(_takes_wide(edge) for edge in node.edges)
    if name == "last":
        return lambda node, _: node.freed
    if name == "arrived":
        return lambda node, _: node.extras.pop("arrived", None) if node.extras else None
    if name in extras:
        return lambda node, _: node.extra(name)
    if name in inputs:
        position = inputs.index(name)
        if arrays:
            return lambda node, _: node.array(position)
        return lambda node, _: node.input(position)
    if name in defaults:
        return lambda node, _: node.meta.get(name, defaults[name])
    return lambda node, _: node.meta[name]


def _takes_wide(edge: Any) -> bool:
    """Whether this input was rounded from float32 just before: its gradient may be float32."""
    return (
        type(edge) is Node and edge.primitive.converts and edge.signature[0][1] is backend.float32
    )


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
    joins = False  # it takes `arrived`
    widens = False  # it asks which gradients may be `wide`
    allocates = False  # the rules give new arrays that nobody else holds
    remakes = False  # what others would keep of a large result is computed again: see `Remade`
    converts = False  # to another dtype, and nothing else: a gradient in the input's is as good
    add_vjp: Callable[[Node, Any, Any], None] | None = None
    """add_vjp(node, v, total) adds v J of the first input to an array, for where the sweep has
    another gradient of that input already, and v J would be as large and nearly all zeros."""

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
        self.saves = Saves(self._positions)
        caller = inspect.currentframe().f_back  # type: ignore[union-attr]
        while caller.f_locals.get("self") is self:  # type: ignore[union-attr]
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
            if type(array) is np.ndarray:
                if half is not None and array.dtype is half.dtype:
                    continue
            elif hasattr(array, "levels"):
                return array.compute(self, arrays, meta)
            if hasattr(array, "dtype") and array.dtype.itemsize == 2:
                half = array if backend.half_precision(array.dtype) else half
        if half is None or self.moves_data:
            return self.forward(*arrays, **meta)
        if self.kernel and kernels.takes_half(self.kernel, half.dtype, backend.device_of(half)):
            return self.forward(*arrays, **meta)
        return in_float32(self.forward, arrays, meta, half.dtype)

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


@functools.cache
def _kernel(name: str) -> Any:
    """The kernel of this name for the device of its first array, found at the call."""

    def kernel(x: Any, *rest: Any, **meta: Any) -> Any:
        device = "cpu" if type(x) is np.ndarray else backend.device_of(x)
        return kernels.lookup(name, device)(x, *rest, **meta)

    return kernel


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
