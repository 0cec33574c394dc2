r"""The vector chain rule, made visible: each step's Jacobian, and their product.

A function is a composition f = f_n ∘ ... ∘ f_1, and its Jacobian the product J_n ... J_1. `explain`
runs f, takes the steps from the tape, computes each local Jacobian with the step's own derivative
rule, multiplies them, and sets the product next to the Jacobian of the whole. Where a value is used
more than once the tape branches, and the chain rule adds the products over all paths.

The product may be multiplied from either end. From the left a row of J_n is carried on, which costs
one product with each local Jacobian for every output: reverse mode. From the right a column of J_1:
forward mode, for every input. `explain` counts both.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitorch import autograd, modes
from minitorch.errors import GraphError, ShapeError
from minitorch.io import atomic_write
from minitorch.tape import Node
from minitorch.tensor import Tensor, wrap
from minitorch.transforms import jacobian

_LARGEST = 4096  # elements of one local Jacobian's side


@dataclass(frozen=True)
class Step:
    """One operation on the way from x to f(x).

    index: its number, x being 0. sources: the numbers of what it was computed from.
    structure: of its Jacobian. jacobians: one matrix for each source, (outputs, inputs).
    """

    index: int
    operation: str
    structure: str
    formula: str
    sources: tuple[int, ...]
    shape: tuple[int, ...]
    jacobians: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Explanation:
    """The chain of a function at a point; print it, or `plot` it.

    product: the local Jacobians multiplied (and added over paths), composed: `jacobian` of the
    whole function; both (outputs, inputs). difference: the largest between them.
    reverse_cost, forward_cost: multiplications of the product from the left, and from the right.
    """

    input_shape: tuple[int, ...]
    steps: tuple[Step, ...]
    product: np.ndarray
    composed: np.ndarray
    reverse_cost: int
    forward_cost: int

    @property
    def difference(self) -> float:
        """The largest difference between the product and the Jacobian of the whole."""
        return float(np.max(np.abs(self.product - self.composed), initial=0.0))

    def __str__(self) -> str:
        lines = [f"{'step':>4}  {'operation':20}{'from':12}{'result':>12}  local Jacobian"]
        lines.append(f"{0:>4}  {'x':20}{'':12}{_shape(self.input_shape):>12}")
        for step in self.steps:
            sources = ", ".join(map(str, step.sources))
            matrices = ", ".join(f"{j.shape[0]}×{j.shape[1]}" for j in step.jacobians)
            lines.append(
                f"{step.index:>4}  {step.operation:20}{sources:12}{_shape(step.shape):>12}  "
                f"{matrices} {step.structure}"
            )
        rows, columns = self.product.shape
        cheaper = "reverse" if self.reverse_cost <= self.forward_cost else "forward"
        lines += [
            f"product of the chain: {rows}×{columns}; the Jacobian of the whole differs by "
            f"{self.difference:.1e}",
            f"multiplications: from the left (reverse mode) {self.reverse_cost:,}, from the right "
            f"(forward mode) {self.forward_cost:,}: {cheaper} is cheaper",
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """Heat maps of the local Jacobians and of the product, as a matplotlib figure.

        path: also write it there, in the format of its ending.
        """
        from matplotlib.figure import Figure

        panels = [
            (f"{step.index} {step.operation}", matrix)
            for step in self.steps
            for matrix in step.jacobians
        ]
        panels.append(("product", self.product))
        columns = min(len(panels), 4)
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(2.6 * columns, 2.7 * rows), layout="constrained")
        for i, (title, matrix) in enumerate(panels):
            axes = figure.add_subplot(rows, columns, i + 1)
            limit = float(np.max(np.abs(matrix), initial=0.0)) or 1.0
            axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
            axes.set_title(f"{title}\n{matrix.shape[0]}×{matrix.shape[1]}", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
        if path is not None:
            suffix = os.path.splitext(os.fspath(path))[1].lstrip(".") or "png"
            with atomic_write(path) as file:
                figure.savefig(file, format=suffix, dpi=150)
        return figure


def explain(f: Callable[[Tensor], Tensor], x: Tensor) -> Explanation:
    """The chain of local Jacobians of f at x, and their product.

    f: from one tensor to one tensor, by recorded operations. Raises GraphError where f's value does
    not depend on x, and ShapeError where a Jacobian would be too large to look at.
    """
    with modes.enable_grad():
        start = x.detach().requires_grad_()
        out = f(start)
    if not isinstance(out, Tensor) or out.grad_fn is None:
        raise GraphError("explain: the function's result was not computed from x by operations")
    nodes = [n for n in reversed(autograd.ancestors([out.grad_fn])) if _depends(n, start)]
    number: dict[int, int] = {id(start): 0}
    steps: list[Step] = []
    for node in nodes:
        positions = [i for i, edge in enumerate(node.edges) if id(edge) in number]
        if not positions:
            continue
        number[id(node)] = len(steps) + 1
        steps.append(
            Step(
                index=len(steps) + 1,
                operation=node.name,
                structure=node.primitive.structure,
                formula=node.primitive.formula,
                sources=tuple(number[id(node.edges[i])] for i in positions),
                shape=node.out_shape,
                jacobians=tuple(_local(node, i) for i in positions),
            )
        )
    if id(out.grad_fn) not in number:
        raise GraphError("explain: the function's result does not depend on x")
    whole = jacobian(f, x.detach()).data.reshape(out.numel(), x.numel())
    return Explanation(
        input_shape=x.shape,
        steps=tuple(steps),
        product=_product(steps, x.numel()),
        composed=whole,
        reverse_cost=_cost(steps, rows=out.numel()),
        forward_cost=_cost(steps, rows=x.numel()),
    )


def _depends(node: Node, start: Tensor) -> bool:
    seen, stack = set(), [node]
    while stack:
        for edge in stack.pop().edges:
            if edge is start:
                return True
            if isinstance(edge, Node) and id(edge) not in seen:
                seen.add(id(edge))
                stack.append(edge)
    return False


def _local(node: Node, position: int) -> np.ndarray:
    """The Jacobian of one step with respect to one input, row by row, by the step's own rule."""
    shape, _ = node.signature[position]
    outputs, inputs = int(np.prod(node.out_shape)), int(np.prod(shape))
    if max(outputs, inputs) > _LARGEST:
        raise ShapeError(
            f"explain: the Jacobian of {node.name}, {outputs} by {inputs}, is too large to look at "
            f"(at most {_LARGEST} a side); explain a smaller input"
        )
    rows = []
    with modes.no_grad():
        for unit in np.eye(outputs, dtype=node.out_dtype):
            cotangent = wrap(unit.reshape(node.out_shape))
            row = node.primitive.vjp(node, cotangent)[position]
            rows.append(row.sum_to(shape).data.reshape(-1))
    return np.stack(rows) if rows else np.zeros((0, inputs))


def _product(steps: list[Step], inputs: int) -> np.ndarray:
    """d(last)/dx: for each step the sum over its sources of J_step d(source)/dx."""
    totals = {0: np.eye(inputs)}
    for step in steps:
        pairs = zip(step.jacobians, step.sources, strict=True)
        totals[step.index] = np.add.reduce([matrix @ totals[source] for matrix, source in pairs])
    return totals[len(steps)]


def _cost(steps: list[Step], rows: int) -> int:
    """Multiplications to carry that many rows (or columns) through every local Jacobian."""
    return sum(rows * matrix.size for step in steps for matrix in step.jacobians)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"
