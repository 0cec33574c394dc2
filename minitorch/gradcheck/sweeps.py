"""A function at a point: its value, and its derivatives by both sweeps over the tape."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from minitorch import autograd, modes
from minitorch.tensor import Tensor, wrap

Function = Callable[..., Any]


class Sweeps:
    """A function of float64 arrays, and the point at which it is differentiated.

    All arguments of f are given; those at the positions `moving` are its variables.
    """

    def __init__(self, f: Function, arguments: Sequence[Any], moving: Sequence[int], seed: int):
        self.f, self.arguments, self.moving = f, list(arguments), list(moving)
        self.point = [np.array(arguments[i].data, np.float64) for i in moving]
        self.shapes = [x.shape for x in self.point]
        self.flat = join(self.point)
        self.seed = seed
        self.random = np.random.default_rng(seed)

    def evaluate(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The values of f, off the tape, joined."""
        return join([y.data for y in self._call([wrap(a) for a in arrays])[0]])

    def _call(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        full = list(self.arguments)
        for i, x in zip(self.moving, tensors, strict=True):
            full[i] = x
        value = self.f(*full)
        outputs = [value] if isinstance(value, Tensor) else list(value)
        return [y for y in outputs if y.is_floating_point()], value

    def record(self, arrays: Sequence[np.ndarray]) -> tuple[list[Tensor], list[Tensor]]:
        """(variables, outputs) on a fresh tape. The variables are nodes, so that f may write."""
        variables = [wrap(a).requires_grad_() for a in arrays]
        with modes.enable_grad():
            outputs, _ = self._call([x.alias() for x in variables])
        return variables, outputs

    def forward(self, arrays: Sequence[np.ndarray], directions: np.ndarray) -> np.ndarray:
        """J u for each row u of directions, by a fresh tape: (directions, outputs)."""
        variables, outputs = self.record(arrays)
        rows = [push(variables, outputs, split(u, self.shapes)) for u in directions]
        return stack(rows, outputs)

    def reverse(
        self,
        arrays: Sequence[np.ndarray],
        cotangents: np.ndarray,
        create_graph: bool = False,
        order: Literal["C", "F"] = "C",
    ) -> np.ndarray:
        """v J for each row v of cotangents, by a fresh tape: (cotangents, inputs).

        order: of the memory in which the cotangents arrive.
        """
        variables, outputs = self.record(arrays)
        shapes = [y.shape for y in outputs]
        rows = []
        for row in cotangents:
            v = [np.array(part, order=order) for part in split(row, shapes)]
            rows.append(pull(variables, outputs, v, create_graph))
        return stack(rows, variables)


def pull(
    variables: Sequence[Tensor],
    outputs: Sequence[Tensor],
    cotangents: Sequence[np.ndarray],
    create_graph: bool = False,
) -> list[np.ndarray]:
    """v J, an array for each variable; zeros where nothing depends on it."""
    pairs = [(y, wrap(v)) for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [np.zeros_like(x.data) for x in variables]
    roots, seeds = zip(*pairs, strict=True)
    found = autograd.grad(
        list(roots),
        variables,
        list(seeds),
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
    )
    return [
        np.zeros_like(x.data) if g is None else g.data
        for x, g in zip(variables, found, strict=True)
    ]


def push(
    variables: Sequence[Tensor], outputs: Sequence[Tensor], tangents: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """J u, an array for each output; zeros where it depends on no variable."""
    pairs = [(x, wrap(u)) for x, u in zip(variables, tangents, strict=True)]
    with modes.no_grad():
        pushed = [autograd.pushforward(y, pairs) if y.requires_grad else None for y in outputs]
    return [
        np.zeros_like(y.data) if t is None else t.data for y, t in zip(outputs, pushed, strict=True)
    ]


def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """All elements in one float64 vector."""
    flat = [np.asarray(a, np.float64).reshape(-1) for a in arrays]
    return np.concatenate(flat) if flat else np.zeros(0)


def stack(rows: Sequence[Sequence[np.ndarray]], like: Sequence[Tensor]) -> np.ndarray:
    """A matrix of joined rows, each as long as `like`, which also holds where there is no row."""
    return np.array([join(row) for row in rows]).reshape(len(rows), sum(x.numel() for x in like))


def split(flat: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The inverse of join."""
    parts, start = [], 0
    for shape in shapes:
        end = start + math.prod(shape)
        parts.append(flat[start:end].reshape(shape))
        start = end
    return parts
