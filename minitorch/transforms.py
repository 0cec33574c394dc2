r"""Functions that turn a function into its derivative, composed from the two sweeps of the tape.

`vjp` is the reverse sweep, v J, one pass for each output; `jvp` the forward sweep, J u, one pass
for each input. Everything else is made of these: the gradient is 1 J of a scalar, the Jacobian its
rows or its columns, and a Hessian-vector product the tangent of a gradient.

Arguments and results may be tensors, or lists, tuples and dicts of tensors to any depth. Each
transform gives its function fresh stand-ins for the tensors it differentiates, so that derivatives
nest: an inner one never confuses its variable with an outer one's. The results stay on the tape if
the function's value depends on anything recorded outside of the transform, such as the variable of
an outer one or a parameter that the function closes over, or if a cotangent or tangent does, in
which v J and J u are linear (their tape then holds the stand-ins too: detach what is kept); else
they are plain tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitorch import autograd, modes
from minitorch.errors import ConfigError, DtypeError, GraphError, ShapeError
from minitorch.ops.joining import cat
from minitorch.tensor import Tensor, wrap
from minitorch.trees import Rebuild, Tree, flatten
from minitorch.vmap import vmap


def _stand_ins(tensors: Sequence[Tensor], operation: str) -> list[Tensor]:
    """Fresh variables of the same values: new nodes on a tape that goes on, or new leaves."""
    fresh = []
    for x in tensors:
        if not x.is_floating_point():
            raise DtypeError(f"{operation}: expected floating tensors; got one of {x.dtype}")
        outer = x.requires_grad and modes.is_grad_enabled()
        fresh.append(x.alias() if outer else x.detach().requires_grad_())
    return fresh


def _outputs(value: Tree, operation: str) -> tuple[list[Tensor], Rebuild]:
    outputs, rebuild = flatten(value)
    if not outputs:
        raise GraphError(f"{operation}: the function returned no tensors")
    return outputs, rebuild


def _run(f: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    with modes.enable_grad():
        return f(*arguments)


def _continues(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether the outputs depend on anything that was recorded outside of this transform."""
    if not modes.is_grad_enabled():
        return False
    own = {id(x) for x in inputs if x.is_leaf}
    if any(y.requires_grad and y.is_leaf and id(y) not in own for y in outputs):
        return True
    nodes = autograd.ancestors([y.grad_fn for y in outputs if y.grad_fn is not None])
    return any(
        isinstance(edge, Tensor) and id(edge) not in own for node in nodes for edge in node.edges
    )


def _on_tape(tensors: Sequence[Tensor]) -> bool:
    return modes.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _pull(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    continues: bool,
    retain_graph: bool = True,
) -> list[Tensor]:
    """v J for each input, zeros where it has no part in the outputs."""
    pairs = [(y, v) for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if pairs:
        found = autograd.grad(
            [y for y, _ in pairs],
            inputs,
            [v for _, v in pairs],
            retain_graph=retain_graph,
            create_graph=continues,
            allow_unused=True,
        )
    return [
        wrap(np.zeros_like(x.data)) if g is None else g for g, x in zip(found, inputs, strict=True)
    ]


def _like(operation: str, what: str, tree: Tree, models: Sequence[Tensor]) -> list[Tensor]:
    tensors, _ = flatten(tree)
    if [t.shape for t in tensors] != [m.shape for m in models]:
        raise ShapeError(
            f"{operation}: expected {what} of shapes {[m.shape for m in models]}; got "
            f"{[t.shape for t in tensors]}"
        )
    return [t.to(m.dtype) for t, m in zip(tensors, models, strict=True)]


def vjp(f: Callable[..., Any], *args: Tree) -> tuple[Tree, Callable[[Tree], tuple[Tree, ...]]]:
    """(f(*args), pullback); pullback(v) is v J: a cotangent of each argument, as a tuple.

    v has the structure and shapes of f's result. In JAX: jax.vjp.
    """
    tensors, rebuild = flatten(args)
    inputs = _stand_ins(tensors, "vjp")
    value = _run(f, rebuild(inputs))
    outputs, rebuild_value = _outputs(value, "vjp")
    continues = _continues(outputs, inputs)

    def pullback(v: Tree) -> tuple[Tree, ...]:
        cotangents = _like("vjp", "cotangents", v, outputs)
        recorded = continues or _on_tape(cotangents)
        return rebuild(_pull(outputs, inputs, cotangents, recorded))

    return rebuild_value([_result(y, continues) for y in outputs]), pullback


def _result(y: Tensor, continues: bool) -> Tensor:
    """A value for the caller: on the tape only if the tape goes on outside."""
    return y if continues else y.detach()


def jvp(f: Callable[..., Any], args: Sequence[Tree], tangents: Sequence[Tree]) -> tuple[Tree, Tree]:
    """(f(*args), J u) for tangents u, one for each argument, of its structure and shapes.

    The forward sweep; zeros where an output does not depend on the arguments. In JAX: jax.jvp.
    """
    tensors, rebuild = flatten(tuple(args))
    inputs = _stand_ins(tensors, "jvp")
    directions = _like("jvp", "tangents", tuple(tangents), inputs)
    value = _run(f, rebuild(inputs))
    outputs, rebuild_value = _outputs(value, "jvp")
    continues = _continues(outputs, inputs)
    recorded = continues or _on_tape(directions)
    pushed = [_push(y, inputs, directions, recorded) for y in outputs]
    return rebuild_value([_result(y, continues) for y in outputs]), rebuild_value(pushed)


def _push(
    y: Tensor, inputs: Sequence[Tensor], directions: Sequence[Tensor], continues: bool
) -> Tensor:
    with modes.set_grad_enabled(continues):
        tangent = autograd.pushforward(y, list(zip(inputs, directions, strict=True)))
    return wrap(np.zeros_like(y.data)) if tangent is None else tangent


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0
) -> Callable[..., tuple[Tensor, Tree]]:
    """A function that returns (f(*args), the gradient with respect to args[argnums]).

    f returns a tensor of one element. The gradient has the structure of the argument, or is a
    tuple where argnums is one.
    """
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def differentiated(*args: Tree) -> tuple[Tensor, Tree]:
        if any(not -len(args) <= i < len(args) for i in positions):
            raise ConfigError(f"grad: argnums {argnums} name no argument; {len(args)} came")
        tensors, rebuild = flatten([args[i] for i in positions])
        inputs = _stand_ins(tensors, "grad")
        full = list(args)
        for i, argument in zip(positions, rebuild(inputs), strict=True):
            full[i] = argument
        out = _run(f, full)
        if not isinstance(out, Tensor) or out.numel() != 1:
            raise ShapeError(
                "grad: expected the function to return a tensor of one element; got "
                f"{out.shape if isinstance(out, Tensor) else type(out).__name__}. For more outputs "
                "use jacobian or vjp"
            )
        one = wrap(np.ones_like(out.data))
        continues = _continues([out], inputs)
        gradients = rebuild(_pull([out], inputs, [one], continues, retain_graph=continues))
        return _result(out, continues), gradients[0] if isinstance(argnums, int) else tuple(
            gradients
        )

    return differentiated


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Tree]:
    """A function that returns the gradient of f; see value_and_grad. In JAX: jax.grad."""
    both = value_and_grad(f, argnums)
    return lambda *args: both(*args)[1]


def jacobian(f: Callable[..., Any], *args: Tree, mode: str = "auto", chunk_size: int = 64) -> Tree:
    """The Jacobian of f at args: result.shape == (*output.shape, *input.shape).

    For several inputs a tree like the arguments (a single argument stands alone), and for several
    outputs a tree like the result whose leaves are such trees.
    mode: "reverse" builds it from rows, one for each output element; "forward" from columns, one
    for each input element; "auto" takes what there are fewer of.
    chunk_size: how many rows or columns one sweep carries, by `vmap`: more are faster and take more
    memory. With 1 there is no vmap, and rules may do what a batch does not allow.
    """
    if mode not in ("auto", "forward", "reverse"):
        raise ConfigError(f'jacobian: expected mode "auto", "forward" or "reverse"; got {mode!r}')
    if chunk_size < 1:
        raise ConfigError(f"jacobian: expected a chunk_size of at least 1; got {chunk_size}")
    tensors, rebuild = flatten(args)
    inputs = _stand_ins(tensors, "jacobian")
    outputs, rebuild_value = _outputs(_run(f, rebuild(inputs)), "jacobian")
    if mode == "auto":
        rows, columns = (sum(t.numel() for t in side) for side in (outputs, inputs))
        mode = "reverse" if rows <= columns else "forward"
    build = _rows if mode == "reverse" else _columns
    blocks = build(outputs, inputs, _continues(outputs, inputs), chunk_size)
    trees = [rebuild(row) for row in blocks]
    return rebuild_value([tree[0] if len(args) == 1 else tree for tree in trees])


def _rows(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], continues: bool, chunk_size: int
) -> list[list[Tensor]]:
    blocks = []
    for y in outputs:
        rows = _of_units(lambda v: _pull([y], inputs, [v], continues), y, inputs, chunk_size)  # noqa: B023
        blocks.append(
            [row.reshape(*y.shape, *x.shape) for row, x in zip(rows, inputs, strict=True)]
        )
    return blocks


def _columns(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], continues: bool, chunk_size: int
) -> list[list[Tensor]]:
    blocks: list[list[Tensor]] = [[] for _ in outputs]
    for x in inputs:
        push = lambda u: [_push(y, [x], [u], continues) for y in outputs]  # noqa: B023, E731
        columns = _of_units(push, x, outputs, chunk_size)
        for block, column, y in zip(blocks, columns, outputs, strict=True):
            block.append(column.movedim(0, -1).reshape(*y.shape, *x.shape))
    return blocks


def _of_units(
    sweep: Callable[[Tensor], list[Tensor]],
    x: Tensor,
    results: Sequence[Tensor],
    chunk_size: int,
) -> list[Tensor]:
    """sweep(e) for each unit vector e of the shape of x, stacked: for each result (n, *shape)."""
    n = x.numel()
    if n == 0:
        return [wrap(np.zeros((0, *y.shape), y.dtype)) for y in results]
    chunks = []
    for start in range(0, n, chunk_size):
        count = min(chunk_size, n - start)
        units = wrap(np.eye(count, n, start, dtype=x.dtype).reshape(count, *x.shape))
        if count == 1:
            chunks.append([y.unsqueeze(0) for y in sweep(units[0])])
        else:
            chunks.append(vmap(sweep)(units))
    return [cat(parts) for parts in zip(*chunks, strict=True)]


def hessian(f: Callable[..., Any], x: Tensor) -> Tensor:
    """The second derivatives of a scalar function of one tensor: (*x.shape, *x.shape).

    Forward over reverse: the columns of the Jacobian of the gradient.
    """
    return jacobian(_recorded_grad(f), x, mode="forward")


def _recorded_grad(f: Callable[..., Any]) -> Callable[..., Tree]:
    gradient = grad(f)

    def recorded(*args: Tree) -> Tree:
        with modes.enable_grad():
            return gradient(*args)

    return recorded


def hvp(f: Callable[..., Any], x: Tree, v: Tree, mode: str = "forward") -> Tree:
    """The Hessian of a scalar function times v, at the cost of a few gradients.

    mode: "forward" over reverse, the tangent of the gradient along v; or "reverse" over reverse,
    the gradient of <gradient, v>. v has the structure of x. Source: Pearlmutter 1994.
    """
    if mode == "forward":
        return jvp(_recorded_grad(f), (x,), (v,))[1]
    if mode != "reverse":
        raise ConfigError(f'hvp: expected mode "forward" or "reverse"; got {mode!r}')
    _, pullback = vjp(_recorded_grad(f), x)
    return pullback(v)[0]
