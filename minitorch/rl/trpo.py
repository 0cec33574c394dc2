r"""The best step inside a region in which the policy is still itself.

    maximise  g·s   subject to   s·H s / 2 <= delta

g is the gradient of the surrogate E[rho A] and H the Hessian of the mean KL(old || new), which at
the old policy is the Fisher matrix: KL and its gradient vanish there, so that H is all there is of
it to second order. The solution is s = sqrt(2 delta / x·H x) x with H x = g. H is never written
down: conjugate gradients ask for products H v only, and those are derivatives of gradients
(`minitorch.hvp`). Since the model of KL is a parabola and KL is not, the step is shortened until
the true KL is within delta and the true surrogate is better.

Parameters are tensors in lists, tuples and dicts to any depth, and surrogate and divergence are
functions of them. Source: Schulman et al. 2015, "Trust region policy optimization" (arXiv
1502.05477), appendix C.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from minitorch.errors import ConfigError
from minitorch.modes import no_grad
from minitorch.tensor import Tensor
from minitorch.transforms import hvp, value_and_grad
from minitorch.trees import Tree, flatten

Objective = Callable[[Tree], Tensor]
"""Parameters to a tensor of one element."""

Vector = list[Tensor]


def fisher_vector_product(
    divergence: Objective, parameters: Tree, vector: Tree, *, damping: float = 0.0
) -> Tree:
    """(H + damping I) v, where H is the Hessian of the divergence at the parameters.

    vector and the result have the structure of the parameters. For H to be the Fisher matrix the
    divergence must be the mean KL(old || new), the old policy's part detached.
    """
    product, rebuild = flatten(hvp(divergence, parameters, vector))
    return rebuild([h + damping * v for h, v in zip(product, flatten(vector)[0], strict=True)])


def conjugate_gradient(
    product: Callable[[Tree], Tree],
    target: Tree,
    *,
    iterations: int = 10,
    tolerance: float = 1e-10,
) -> Tree:
    """x with A x = target, where product(v) is A v for a symmetric A that is positive definite.

    Stops after `iterations` or when |A x - target|² is below tolerance. In exact arithmetic as many
    iterations as unknowns suffice. Source: Hestenes and Stiefel 1952.
    """
    residual, rebuild = flatten(target)
    solution = [0.0 * r for r in residual]
    direction = residual
    size = _dot(residual, residual)
    for _ in range(iterations):
        if size <= tolerance:
            break
        image, _ = flatten(product(rebuild(direction)))
        step = size / _dot(direction, image)
        solution = _add(solution, step, direction)
        residual = _add(residual, -step, image)
        previous, size = size, _dot(residual, residual)
        direction = _add(residual, size / previous, direction)
    return rebuild(solution)


class TrustRegionStep(NamedTuple):
    """Where a step led. If it was not accepted, the parameters are the old ones."""

    parameters: Tree
    accepted: bool
    divergence: float
    gain: float


def trpo_step(
    surrogate: Objective,
    divergence: Objective,
    parameters: Tree,
    *,
    max_divergence: float = 0.01,
    damping: float = 0.1,
    iterations: int = 10,
    backtrack: float = 0.8,
    tries: int = 10,
) -> TrustRegionStep:
    """One step that raises the surrogate while the divergence stays within max_divergence.

    surrogate: the mean of rho A, to be maximised; divergence: the mean KL(old || new), 0 at the
    parameters. iterations: of conjugate gradients; backtrack: by how much a step that goes too far
    is shortened, up to `tries` times. Nothing is changed in place.
    """
    if not (max_divergence > 0 and 0 < backtrack < 1):
        raise ConfigError(
            "trpo_step: expected max_divergence above 0 and backtrack in (0, 1); got "
            f"{max_divergence} and {backtrack}"
        )
    value, gradient = value_and_grad(surrogate)(parameters)

    def product(vector: Tree) -> Tree:
        return fisher_vector_product(divergence, parameters, vector, damping=damping)

    direction = conjugate_gradient(product, gradient, iterations=iterations)
    x, rebuild = flatten(direction)
    curvature = _dot(x, flatten(product(direction))[0])
    if curvature > 0:
        length = math.sqrt(2 * max_divergence / curvature)
        start = [p.detach() for p in flatten(parameters)[0]]
        for attempt in range(tries):
            candidate = rebuild(_add(start, length * backtrack**attempt, x))
            with no_grad():
                moved = divergence(candidate).item()
                gain = surrogate(candidate).item() - value.item()
            if moved <= max_divergence and gain > 0:
                return TrustRegionStep(candidate, True, moved, gain)
    return TrustRegionStep(parameters, False, 0.0, 0.0)


@no_grad()
def _add(a: Vector, factor: float, b: Vector) -> Vector:
    return [x + factor * y for x, y in zip(a, b, strict=True)]


@no_grad()
def _dot(a: Vector, b: Vector) -> float:
    return sum((x * y).sum().item() for x, y in zip(a, b, strict=True))
