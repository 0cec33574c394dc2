r"""Reading and writing by index: linear primitives whose matrix picks rows of the identity.

To gather is to pick, its transpose is to scatter: the cotangent of each picked value is added at
the place it came from, twice if it was picked twice. Also here: sorting (a permutation that depends
on the values, differentiated as the permutation that it is) and writing in place.
"""

from typing import Any

import numpy as np

from minitorch import backend, kernels, modes
from minitorch.errors import DtypeError, GraphError, ShapeError
from minitorch.kernels.reference.topk import order
from minitorch.ops.creation import full
from minitorch.ops.definition import Primitive, _kernel
from minitorch.ops.dims import one_dim
from minitorch.ops.primitive import linear, nondifferentiable
from minitorch.ops.reductions import ValuesAndIndices
from minitorch.ops.samples import distinct, integers, mask, real, sample
from minitorch.tape import Node, apply, levels
from minitorch.tensor import Tensor, method, method_as, wrap

# An index such as x[1, :, ids] travels as its `key`, a tuple in which the n-th Tensor is replaced
# by Slot(n), and the tensors themselves as inputs of the primitive, which the tape keeps.


class Slot(int):
    """The place of an index tensor in a key."""

    def __repr__(self) -> str:
        return f"Slot({int(self)})"


def _fill(key: tuple[Any, ...], index: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(index[part] if isinstance(part, Slot) else part for part in key)


def _select(
    x: np.ndarray, key: tuple[Any, ...], index: tuple[Any, ...]
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """x with the integers of key picked, as a view, and the rest of the key for that view.

    In PyTorch x[0, :, ids] is x[0][:, ids]; NumPy would broadcast the 0 with ids, and move the
    picked dimension to the front.
    """
    if not _has_arrays(key) or all(type(part) is not int for part in key):
        return x, _fill(key, index)
    first: list[Any] = []
    rest: list[Any] = []
    for part in key:
        if type(part) is int:
            first.append(part)
            continue
        if isinstance(part, Slot):
            part = index[part]
            first += [slice(None)] * (part.ndim if part.dtype == bool else 1)
        elif part is not None:
            first.append(Ellipsis if part is Ellipsis else slice(None))
        rest.append(part)
    return x[tuple(first)], tuple(rest)


def _has_arrays(key: tuple[Any, ...]) -> bool:
    return any(isinstance(part, Slot) for part in key)


def _pick(x: np.ndarray, *index: np.ndarray, key: tuple[Any, ...]) -> np.ndarray:
    x, where = _select(x, key, index)
    return x[where]


def _add_at(
    x: np.ndarray, *index: np.ndarray, key: tuple[Any, ...], to: tuple[int, ...]
) -> np.ndarray:
    out = np.zeros_like(x, shape=to)
    _add_to(out, x, index, key)
    return out


def _add_to(out: np.ndarray, x: np.ndarray, index: tuple[Any, ...], key: tuple[Any, ...]) -> None:
    target, where = _select(out, key, index)
    if any(hasattr(part, "dtype") and part.dtype != bool for part in where):
        np.add.at(target, where, x)
    else:
        target[where] += x


def _write(x: np.ndarray, value: np.ndarray, *index: np.ndarray, key: tuple[Any, ...]) -> Any:
    out = x.copy()
    target, where = _select(out, key, index)
    target[where] = value
    return out


def _index_inputs(node: Any, start: int) -> list[Any]:
    return [node.input(i) for i in range(start, len(node.edges))]


class _Indexing(linear):
    """Linear in its first `count` inputs; the others are index tensors, as many as the key has."""

    def __init__(self, name: str, forward: Any, count: int, transpose: Any, **options: Any):
        super().__init__(name, forward, inputs=("x", "*index"), moves_data=True, **options)
        self.count = count
        self.transpose = transpose

    def _positions(self, needs: tuple[bool, ...]) -> tuple[int, ...]:
        return tuple(range(self.count, len(needs)))

    def vjp(self, node: Any, cotangent: Tensor) -> Any:
        index = _index_inputs(node, self.count)
        gradients = self.transpose(cotangent, index, node)
        return [*gradients, *[None] * len(index)]

    def jvp(self, node: Any, tangents: Any) -> Tensor | None:
        moving = [
            wrap(np.zeros(*node.signature[i])) if tangents[i] is None else tangents[i]
            for i in range(self.count)
        ]
        return apply(self, [*moving, *_index_inputs(node, self.count)], node.meta)


_getitem = _Indexing(
    "getitem",
    _pick,
    1,
    lambda grad, index, node: [
        apply(_scatter, [grad, *index], {"key": node.meta["key"], "to": node.shapes[0]})
    ],
    formula=r"y = x_{I}",
    samples=lambda: [
        sample(real(3, 4), key=(1,)),
        sample(real(3, 4), key=(slice(None), slice(3, 0, -2))),
        sample(real(3, 4), key=(Ellipsis, None, 2)),
        sample(real(3, 4), integers(3, 5), key=(Slot(0),)),
        sample(real(3, 4), integers(3, 2, 2), integers(4, 2), key=(Slot(0), Slot(1))),
        sample(real(3, 4), mask(3, 4), key=(Slot(0),)),
        sample(real(2, 3, 4), integers(4, 2), key=(0, slice(None), Slot(0))),
    ],
    may_view=True,
)


def _add_part(node: Node, grad: Any, total: Any) -> None:
    index = [node.input(i).data for i in range(1, len(node.edges))]
    _add_to(total, grad, tuple(index), node.meta["key"])


_getitem.add_vjp, _getitem.allocates = _add_part, True  # it has put the part between zeros

_scatter: Primitive = _Indexing(
    "scatter_index",
    _add_at,
    1,
    lambda grad, index, node: [apply(_getitem, [grad, *index], {"key": node.meta["key"]})],
    formula=r"y_{I} \mathrel{+}= x",
    samples=lambda: [
        sample(real(4), key=(1,), to=(3, 4)),
        sample(real(5, 4), integers(3, 5), key=(Slot(0),), to=(3, 4)),
    ],
)
_setitem: Primitive = _Indexing(
    "setitem",
    _write,
    2,
    lambda grad, index, node: [
        apply(
            _setitem,
            [grad, wrap(np.zeros(node.shapes[1], grad.dtype)), *index],
            {"key": node.meta["key"]},
        ),
        apply(_getitem, [grad, *index], {"key": node.meta["key"]}),
    ],
    formula=r"y = x, \; y_{I} = v",
    samples=lambda: [
        sample(real(3, 4), real(4), key=(1,)),
        sample(real(3, 4), real(1), key=(slice(None), 2)),
        sample(real(3, 4), real(2, 4), np.array([2, 0]), key=(Slot(0),)),
    ],
)


def _parse_key(operation: str, x: Tensor, key: Any) -> tuple[tuple[Any, ...], list[Tensor]]:
    parts = key if isinstance(key, tuple) else (key,)
    slots: list[Any] = []
    tensors: list[Tensor] = []
    for part in parts:
        if isinstance(part, (list, np.ndarray)):
            part = Tensor(np.asarray(part) if len(part) else np.zeros(0, np.int64))
        if isinstance(part, Tensor):
            if backend.is_float(part.dtype):
                raise DtypeError(
                    f"{operation}: an index must be integers or bools; got {part.dtype}"
                )
            if part.ndim == 0 and part.dtype != backend.bool and not levels(part.data):
                part = int(part.item())
            else:
                slots.append(Slot(len(tensors)))
                tensors.append(part)
                continue
        elif isinstance(part, slice):
            part = slice(*(None if v is None else int(v) for v in _ends(part)))
        elif part is not None and part is not Ellipsis and not isinstance(part, bool):
            try:
                part = part.__index__()
            except AttributeError:
                raise ShapeError(
                    f"{operation}: an index may hold integers, slices, None, ... and tensors; got "
                    f"{type(part).__name__}"
                ) from None
        slots.append(part)
    return tuple(slots), tensors


def _ends(part: slice) -> tuple[Any, Any, Any]:
    return part.start, part.stop, part.step


@method_as("__getitem__")
def getitem(x: Tensor, key: Any) -> Tensor:
    """x[key]: integers, slices, None and ... give views; index or bool tensors give copies."""
    slots, tensors = _parse_key("getitem", x, key)
    try:
        return apply(_getitem, [x, *tensors], {"key": slots})
    except IndexError as error:
        raise ShapeError(f"getitem: {error}; the tensor has shape {x.shape}") from None


@method_as("__setitem__")
def setitem(x: Tensor, key: Any, value: Any) -> None:
    """x[key] = value in place; gradients flow to value and to the rest of x.

    Raises GraphError where x is a leaf that requires a gradient, or a view, while recording.
    """
    slots, tensors = _parse_key("setitem", x, key)
    if not isinstance(value, Tensor):
        value = Tensor(value, x.dtype)
    try:
        if recording(x, value):
            new = apply(
                _setitem, [writable("setitem", x), value.to(x.dtype), *tensors], {"key": slots}
            )
            rebase(x, new)
        else:
            target, where = _select(
                x.data, slots, tuple(t.to(device=x.device).data for t in tensors)
            )
            target[where] = value.to(x.dtype, x.device).data
            x.bump_version()
    except (IndexError, ValueError) as error:
        if isinstance(error, ShapeError):
            raise
        raise ShapeError(
            f"setitem: {error}; the tensor has shape {x.shape}, the value {value.shape}"
        ) from None


def recording(x: Tensor, *values: Any) -> bool:
    """Whether a write of values into x belongs on the tape."""
    return modes.is_grad_enabled() and any(
        isinstance(v, Tensor) and v.requires_grad for v in (x, *values)
    )


def writable(operation: str, x: Tensor) -> Tensor:
    """The old value of x, as a tensor of its own on the tape, before x is written in place."""
    if x._node is None and x.requires_grad:
        raise GraphError(
            f"{operation}: a leaf that requires a gradient cannot be changed in place while "
            "recording; do it under no_grad(), or use the out-of-place operation"
        )
    if x._is_view:
        raise GraphError(
            f"{operation}: writing in place through a view is not recorded, since the tape of the "
            "tensor it was taken from would not know; index that tensor directly, as in "
            "base[...] = value, or clone() the view"
        )
    old = wrap(x.data.copy())
    old.requires_grad, old._node = x.requires_grad, x._node
    return old


def rebase(x: Tensor, new: Tensor) -> None:
    """Write the value of new into the memory of x, and let x stand where new stands on the tape."""
    x.data[...] = new.data
    x.bump_version()
    x._node, x.requires_grad = new._node, new.requires_grad


_take = linear(
    "gather",
    lambda x, index, *, dim: np.take_along_axis(x, index, dim),
    lambda grad, shape, index, dim: scatter_add(
        wrap(np.zeros(shape, grad.dtype)), dim, index, grad
    ),
    formula=r"y_{ij} = x_{I_{ij} j}",
    samples=lambda: [
        sample(real(3, 4), integers(4, 3, 2), dim=1),
        sample(real(3, 4), integers(3, 5, 4), dim=0),
    ],
    moves_data=True,
)


@method
def gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """out[i][j] = x[i][index[i][j]] for dim = 1: picks along dim; the shape of index.

    Other lengths of index may be shorter than those of x.
    """
    dim = _check_index("gather", x, dim, index)
    window = _leading(x, index.shape, dim)
    return apply(_take, [window, index], {"dim": dim})


def _leading(x: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    """x cut down to shape in every dimension but dim."""
    if all(i == dim or n == m for i, (n, m) in enumerate(zip(x.shape, shape, strict=True))):
        return x
    return x[tuple(slice(None) if i == dim else slice(n) for i, n in enumerate(shape))]


def _check_index(operation: str, x: Tensor, dim: int, index: Tensor) -> int:
    dim = one_dim(operation, dim, x.ndim)
    if backend.is_float(index.dtype) or index.dtype == backend.bool:
        raise DtypeError(f"{operation}: expected an integer index; got {index.dtype}")
    if index.ndim != x.ndim or any(i != dim and n > x.shape[i] for i, n in enumerate(index.shape)):
        raise ShapeError(
            f"{operation}: expected an index of {x.ndim} dimensions, no longer than {x.shape} but "
            f"in dimension {dim}; got {index.shape}"
        )
    limit = x.shape[dim] if x.ndim else 1
    if index.numel() and not 0 <= index.data.min() <= index.data.max() < limit:
        raise ShapeError(
            f"{operation}: expected indices in [0, {limit}) along dimension {dim}; got values from "
            f"{index.data.min()} to {index.data.max()}"
        )
    return dim


def _along(index: np.ndarray, dim: int) -> tuple[np.ndarray, ...]:
    grid = np.ogrid[tuple(slice(n) for n in index.shape)]
    here = backend.device_of(index)
    return tuple(index if i == dim else backend.to_device(at, here) for i, at in enumerate(grid))


def _scatter_add_forward(
    x: np.ndarray, source: np.ndarray, index: np.ndarray, *, dim: int
) -> np.ndarray:
    out, places, step = x.copy(), np.zeros_like(index, dtype=np.int64), 1
    for length, at in zip(x.shape[::-1], _along(index, dim)[::-1], strict=True):
        places += at * step
        step *= length
    np.add.at(out.reshape(-1), places.reshape(-1), source.reshape(-1))  # faster than by dimensions
    return out


_scatter_add = linear(
    "scatter_add",
    _scatter_add_forward,
    lambda grad: grad,
    lambda grad, index, dim: gather(grad, dim, index),
    formula=r"y = x, \; y_{I_{ij} j} \mathrel{+}= s_{ij}",
    samples=lambda: [
        sample(real(3, 4), real(3, 2), integers(4, 3, 2), dim=1),
        sample(real(3, 4), real(5, 4), integers(3, 5, 4), dim=0),
    ],
)


@method
def scatter_add(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """x with src[i][j] added at [i][index[i][j]] for dim = 1; repeated places add up."""
    dim = _check_index("scatter_add", x, dim, index)
    src = src.to(x.dtype)
    if src.shape != index.shape:
        src = _leading(src, index.shape, -1)
    return apply(_scatter_add, [x, src, index], {"dim": dim})


@method
def scatter(x: Tensor, dim: int, index: Tensor, src: Any) -> Tensor:
    """x with src[i][j] written at [i][index[i][j]] for dim = 1; src may be a number."""
    dim = _check_index("scatter", x, dim, index)
    if not isinstance(src, Tensor):
        src = full(index.shape, src, x.dtype)
    out = x.clone()
    key = tuple(Tensor(part) for part in _along(index.data, dim))
    setitem(out, key, _leading(src, index.shape, -1) if src.shape != index.shape else src)
    return out


@method
def index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """x[..., index, ...] along dim, for a vector of integers."""
    dim = one_dim("index_select", dim, x.ndim)
    if index.ndim != 1:
        raise ShapeError(f"index_select: expected a vector of indices; got shape {index.shape}")
    return getitem(x, (slice(None),) * dim + (index,))


@method
def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """x with source[i] added at x[index[i]] along dim; repeated places add up."""
    dim = one_dim("index_add", dim, x.ndim)
    key: tuple[Any, ...] = (*(slice(None),) * dim, Slot(0))
    return x + apply(_scatter, [source.to(x.dtype), index], {"key": key, "to": x.shape})


@method
def take_along_dim(x: Tensor, indices: Tensor, dim: int) -> Tensor:
    """`gather`, with x and indices broadcast in the other dimensions."""
    dim = one_dim("take_along_dim", dim, x.ndim)
    shape = np.broadcast_shapes(
        tuple(1 if i == dim else n for i, n in enumerate(x.shape)),
        tuple(1 if i == dim else n for i, n in enumerate(indices.shape)),
    )
    wide = [(*shape[:dim], n, *shape[dim + 1 :]) for n in (x.shape[dim], indices.shape[dim])]
    return gather(x.expand(wide[0]), dim, indices.expand(wide[1]))


_embedding = linear(
    "embedding",
    lambda weight, index: kernels.lookup("embedding", backend.device_of(weight))(weight, index),
    lambda grad, shape, index: apply(_embedding_transpose, [grad, index], {"rows": shape[0]}),
    formula=r"y_i = W_{I_i}",
    samples=lambda: [
        sample(real(5, 3), integers(5, 2, 4)),
        sample(real(2, 3), np.array([1, 1, 1])),
    ],
    moves_data=True,
)


def _add_rows(node: Node, grad: Any, total: Any) -> None:
    kernel = kernels.lookup("embedding_backward", backend.device_of(grad))
    kernel(grad, node.input(1).data, num_embeddings=len(total), out=total)


_embedding.add_vjp, _embedding.allocates = _add_rows, True

_embedding_transpose: Primitive = linear(
    "embedding_transpose",
    lambda x, index, *, rows: kernels.lookup("embedding_backward", backend.device_of(x))(
        x, index, num_embeddings=rows
    ),
    lambda grad, index: embedding(index, grad),
    kernel="embedding_backward",
    formula=r"W_{I_i} \mathrel{+}= x_i",
    samples=lambda: [sample(real(2, 4, 3), integers(5, 2, 4), rows=5)],
)


def embedding(index: Tensor, weight: Tensor) -> Tensor:
    """Row index[i] of weight for each i: (*index.shape, features). In PyTorch: F.embedding.

    index: integers below the number of rows; weight: (rows, features).
    """
    if backend.is_float(index.dtype) or weight.ndim != 2:
        raise ShapeError(
            f"embedding: expected integer indices and a weight of 2 dimensions; got {index.dtype} "
            f"and {weight.shape}"
        )
    return apply(_embedding, [weight, index], {})


_argsort = nondifferentiable(
    "argsort",
    lambda x, *, dim, descending: order(x, dim, descending),
    formula=r"\operatorname{argsort} x",
    samples=lambda: [sample(distinct(3, 4), dim=1, descending=False)],
    why="an order is piecewise constant",
)


@method
def argsort(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    """The indices that sort along dim; equal elements keep their order."""
    return _argsort(x, dim=one_dim("argsort", dim, x.ndim), descending=descending)


@method
def sort(x: Tensor, dim: int = -1, descending: bool = False) -> ValuesAndIndices:
    """Sorted along dim, stable: (values, indices)."""
    indices = argsort(x, dim, descending)
    return ValuesAndIndices(gather(x, dim, indices), indices)


_topk = nondifferentiable(
    "topk",
    lambda x, *, k, dim, largest: _kernel("topk")(x, k=k, dim=dim, largest=largest)[1],
    kernel="topk",
    formula=r"I : x_{I_1} \ge x_{I_2} \ge \dots \ge x_{I_k}",
    samples=lambda: [
        sample(distinct(3, 4), k=2, dim=1, largest=True),
        sample(distinct(12, 2), k=10, dim=0, largest=False),
    ],
    why="an order is piecewise constant",
)


@method
def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True) -> ValuesAndIndices:
    """The k largest (or smallest) along dim in order: (values, indices)."""
    axis = one_dim("topk", dim, x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ShapeError(f"topk: expected k in [0, {x.shape[axis]}], the length of dim; got {k}")
    indices = _topk(x, k=k, dim=axis, largest=largest)
    return ValuesAndIndices(gather(x, axis, indices), indices)


@method
def nonzero(x: Tensor) -> Tensor:
    """The indices of the elements that are not zero: (count, ndim)."""
    return Tensor(np.stack(np.nonzero(x.data), 1))


@method
def masked_select(x: Tensor, mask: Tensor) -> Tensor:
    """The elements where mask (bool, broadcast) is true, as a vector."""
    shape = np.broadcast_shapes(x.shape, mask.shape)
    return getitem(x.expand(shape), mask.expand(shape))


def one_hot(index: Tensor, num_classes: int = -1) -> Tensor:
    """int64 rows of zeros with a one at each index: (*index.shape, num_classes)."""
    count = int(index.data.max()) + 1 if num_classes == -1 else num_classes
    if index.numel() and not 0 <= index.data.min() <= index.data.max() < count:
        raise ShapeError(f"one_hot: expected indices in [0, {count}); got {index.data.max()}")
    classes = backend.to_device(np.arange(count), backend.device_of(index.data))
    return Tensor((index.data[..., None] == classes).astype(np.int64))


@method
def bincount(x: Tensor, minlength: int = 0) -> Tensor:
    """How often each integer 0, 1, ... occurs in a vector."""
    return Tensor(np.bincount(x.data, minlength=minlength))


def _in_place(name: str, operation: Any) -> None:
    def write(x: Tensor, *arguments: Any) -> Tensor:
        if recording(x, *arguments):
            rebase(x, _fitting(name, x, operation(writable(name, x), *arguments)))
        else:
            with modes.no_grad():
                x.data[...] = _fitting(name, x, operation(x, *arguments)).data
            x.bump_version()
        return x

    write.__doc__ = f"`{name.rstrip('_')}` in place; returns the tensor."
    method_as(name)(write)


def _fitting(name: str, x: Tensor, result: Tensor) -> Tensor:
    if result.shape != x.shape:
        raise ShapeError(f"{name}: a result of shape {result.shape} does not fit in {x.shape}")
    if backend.is_float(result.dtype) and not backend.is_float(x.dtype):
        raise DtypeError(f"{name}: a result of {result.dtype} cannot be stored in {x.dtype}")
    return result.to(x.dtype)


def _broadcast_value(x: Tensor, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        return full(x.shape, value, x.dtype)
    return value.to(x.dtype).expand(x.shape)


for _name, _operation in {
    "add_": lambda x, y, alpha=1: x + (y if alpha == 1 else y * alpha),
    "sub_": lambda x, y: x - y,
    "mul_": lambda x, y: x * y,
    "div_": lambda x, y: x / y,
    "pow_": lambda x, y: x**y,
    "neg_": lambda x: -x,
    "exp_": lambda x: x.exp(),
    "sqrt_": lambda x: x.sqrt(),
    "relu_": lambda x: x.relu(),
    "clamp_": lambda x, *limits: x.clamp(*limits),
    "copy_": _broadcast_value,
    "fill_": _broadcast_value,
    "zero_": lambda x: _broadcast_value(x, 0),
    "masked_fill_": lambda x, mask, value: x.masked_fill(mask, value),
    "scatter_add_": scatter_add,
    "index_add_": index_add,
}.items():
    _in_place(_name, _operation)
method_as("__iadd__")(Tensor.add_)
method_as("__isub__")(Tensor.sub_)
method_as("__imul__")(Tensor.mul_)
method_as("__itruediv__")(Tensor.div_)
