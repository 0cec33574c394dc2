r"""vmap: a function of one sample, applied to a whole batch at once.

For f: x -> y, vmap(f) maps (x_1, ..., x_B) to (f(x_1), ..., f(x_B)). Its Jacobian is block
diagonal, diag(J_1, ..., J_B): samples do not meet, so v J is each sample's own product v_i J_i, and
the derivative of a vmap is the vmap of the derivative.

Inside of vmap a tensor's data is a `Batched` (ops/batching.py), an array whose hidden first axes
run over the samples. Its shape is that of one sample. Functions, derivative rules and the tape see
nothing else, so that `grad`, `vjp` and `jvp` inside of f give one result for each sample. Only two
things know more:

* the forward functions of primitives, which compute all samples with one call where they can;
* the reverse sweep. A value that all samples share, such as a weight, is broadcast to them, and the
  transpose of a broadcast is a sum. So a gradient that flows from the samples to a shared value is
  summed over them, as over any broadcast dimension; unless the sweep itself was started with a
  value of each sample, which is what a `grad` inside of f does: it wants the gradient of each.

Samples of different (nested) vmaps are told apart by their level, a number that each call of a
vmapped function draws. Entering and leaving are linear primitives, each the other's transpose, so
the tape goes on through a vmap. In JAX: jax.vmap. Source: Frostig, Johnson and Leary 2018,
"Compiling machine learning programs via high-level tracing".
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minitorch import random
from minitorch.errors import ConfigError, DeviceError, GraphError, ShapeError
from minitorch.ops.batching import Batched, levels_of
from minitorch.ops.definition import Primitive, registry
from minitorch.ops.dims import one_dim
from minitorch.ops.primitive import linear
from minitorch.tape import apply
from minitorch.tensor import Tensor, method_as
from minitorch.trees import Tree, flatten


def _parts(x: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    return (x.array, x.levels) if isinstance(x, Batched) else (x, ())


def _enter_forward(x: Any, *, level: int, dim: int, size: int) -> Batched:
    array, levels = _parts(x)
    at = sum(other < level for other in levels)
    return Batched(np.moveaxis(array, len(levels) + dim, at), (*levels[:at], level, *levels[at:]))


def _leave_forward(x: Any, *, level: int, dim: int, size: int) -> Any:
    array, levels = _parts(x)
    rest = tuple(other for other in levels if other != level)
    to = len(rest) + dim
    if level in levels:
        array = np.moveaxis(array, levels.index(level), to)
    else:  # the same for all samples
        array = np.repeat(np.expand_dims(array, to), size, to)
    return Batched(array, rest) if rest else array


_enter: Primitive = linear(
    "vmap_enter",
    _enter_forward,
    lambda grad, level, dim, size: apply(_leave, [grad], _border(level, dim, size)),
    may_view=True,
    moves_data=True,
)
_leave: Primitive = linear(
    "vmap_leave",
    _leave_forward,
    lambda grad, level, dim, size: apply(_enter, [grad], _border(level, dim, size)),
    may_view=True,
    moves_data=True,
)
for _primitive in (_enter, _leave):
    del registry[_primitive.name]  # their results exist inside of a vmap only


def _border(level: int, dim: int, size: int) -> dict[str, int]:
    return {"level": level, "dim": dim, "size": size}


@method_as("_sum_samples")
def _sum_samples(x: Tensor, kept: set[int]) -> Tensor:
    """The sum over the samples of every vmap whose level is not among those kept."""
    for level, size in zip(x.data.levels, x.data.batch, strict=True):
        if level not in kept:
            x = apply(_leave, [x], _border(level, 0, size)).sum(0)
    return x


_numbers = itertools.count(1)

Dims = int | None | Sequence[Any] | dict[Any, Any]


def vmap(f: Callable[..., Any], in_dims: Dims = 0, out_dims: Dims = 0) -> Callable[..., Tree]:
    """f of one sample as a function of a batch: vmap(f)(xs)[i] == f(xs[i]), computed at once.

    in_dims: the dimension of the arguments' tensors that counts the samples, or None for what all
    samples share; one for all, or a sequence with one for each argument, whose entries may be
    trees like the argument. out_dims: where that dimension goes in the results, likewise; None
    for a result that does not depend on the sample. Arguments and results may be lists, tuples and
    dicts of tensors. Per-sample gradients are vmap(grad(loss), in_dims=(None, 0, 0)).

    Inside of f: no if on a sample's values, no results whose shape depends on them, no random
    draws. Raises ShapeError where batch sizes disagree. In JAX: jax.vmap; in PyTorch: torch.vmap.
    """

    def mapped(*args: Tree) -> Tree:
        tensors, rebuild = flatten(args)
        dims = _spread("in_dims", in_dims, args)
        size = _batch_size(tensors, dims)
        level = next(_numbers)
        with random.forbidden(
            "vmap: a random draw inside of the function: it could mean one draw for all samples or "
            "one for each. Draw outside and pass the result in, with in_dims None or 0"
        ):
            inputs = [
                x if d is None else apply(_enter, [x], _border(level, d % x.ndim, size))
                for x, d in zip(tensors, dims, strict=True)
            ]
            value = f(*rebuild(inputs))
        outputs, rebuild_value = flatten(value)
        if not outputs:
            raise GraphError("vmap: the function returned no tensors")
        places = _spread("out_dims", out_dims, value)
        return rebuild_value(
            [_finish(y, level, d, size) for y, d in zip(outputs, places, strict=True)]
        )

    return mapped


def _finish(y: Tensor, level: int, dim: int | None, size: int) -> Tensor:
    if dim is not None:
        return apply(_leave, [y], _border(level, one_dim("vmap", dim, y.ndim + 1), size))
    if level in levels_of([y.data]):
        raise ConfigError(
            "vmap: out_dims is None for a result that depends on the sample; say at which "
            "dimension the samples are to be counted, such as 0"
        )
    return y


def _spread(name: str, dims: Dims, tree: Tree) -> list[int | None]:
    """The dimension for each tensor of the tree, from one for all or a tree of them."""
    if dims is None or isinstance(dims, int):
        return [dims] * len(flatten(tree)[0])
    if isinstance(dims, dict) and isinstance(tree, dict) and dims.keys() == tree.keys():
        return [d for key in tree for d in _spread(name, dims[key], tree[key])]
    both = isinstance(dims, (list, tuple)) and isinstance(tree, (list, tuple))
    if both and len(dims) == len(tree):
        return [d for part, item in zip(dims, tree) for d in _spread(name, part, item)]
    raise ConfigError(
        f"vmap: {name} {dims!r} does not fit; expected an integer, None, or one of them for each "
        f"{'argument' if name == 'in_dims' else 'result'}, in the same lists, tuples and dicts"
    )


def _batch_size(tensors: Sequence[Tensor], dims: Sequence[int | None]) -> int:
    sizes = []
    for x, dim in zip(tensors, dims, strict=True):
        if dim is None:
            continue
        if not -x.ndim <= dim < x.ndim:
            raise ShapeError(f"vmap: in_dims {dim} is out of range for a tensor of shape {x.shape}")
        if x.device != "cpu":
            raise DeviceError(f"vmap: expected tensors in main memory; got one on {x.device!r}")
        sizes.append(x.shape[dim])
    if not sizes:
        raise ConfigError(
            "vmap: no argument has a dimension of samples; give at least one tensor an in_dims "
            "other than None"
        )
    if len(set(sizes)) > 1 or sizes[0] == 0:
        raise ShapeError(f"vmap: expected one number of samples, at least 1; got {sizes}")
    return sizes[0]
